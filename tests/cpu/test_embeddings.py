"""Textual inversion files: where they are found, which tensor is taken, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sluice.flux_core.conditioning.embeddings import find, lookup
from sluice.flux_core.errors import FileFormatError


def rows(folder: Path, name: str, encoder: str = "clip_l") -> torch.Tensor:
    vectors = lookup([folder], encoder)(name)
    assert vectors is not None
    return torch.stack([vector.values for vector in vectors])


def test_names_are_found_with_and_without_ending_in_any_folder_below(tmp_path: Path) -> None:
    (tmp_path / "a" / "styles").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    save_file({"x": torch.ones(1, 4)}, tmp_path / "a" / "styles" / "ink.safetensors")
    save_file({"x": torch.zeros(1, 4)}, tmp_path / "b" / "ink.safetensors")
    folders = [tmp_path / "missing", tmp_path / "a", tmp_path / "b"]
    for name in ("ink", "ink.safetensors", "styles/ink"):
        assert find(name, folders) == tmp_path / "a" / "styles" / "ink.safetensors"
    assert find("ink2", folders) is None


def test_names_cannot_leave_their_folder(tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    save_file({"x": torch.ones(1, 4)}, tmp_path / "secret.safetensors")
    for name in ("../secret", str(tmp_path / "secret"), "x/../../secret"):
        assert find(name, [tmp_path / "embeddings"]) is None


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege there")
def test_a_link_in_a_circle_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find("nothing", [tmp_path]) is None


def test_each_encoder_takes_the_tensor_named_like_it(tmp_path: Path) -> None:
    clip, t5 = torch.randn(3, 8), torch.randn(2, 16)
    save_file({"clip_l": clip, "t5xxl": t5, "clip_g": torch.randn(3, 12)}, tmp_path / "style.safetensors")
    assert torch.equal(rows(tmp_path, "style"), clip)
    assert torch.equal(rows(tmp_path, "style", "t5xxl"), t5)


def test_without_such_a_name_bundled_tensors_and_then_the_first_one_are_taken(tmp_path: Path) -> None:
    one, two = torch.randn(2, 8), torch.randn(1, 8)
    bundle = {"bundle_emb.style.clip_l": one, "lora_unet_x": two}
    save_file(bundle, tmp_path / "bundle.safetensors")
    assert torch.equal(rows(tmp_path, "bundle"), one)
    save_file({"emb_params": two}, tmp_path / "plain.safetensors")
    assert torch.equal(rows(tmp_path, "plain"), two)
    save_file({"emb_params": two[0]}, tmp_path / "flat.safetensors")
    assert torch.equal(rows(tmp_path, "flat"), two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_floating_point_format_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(2, 8).to(dtype)
    save_file({"clip_l": values}, tmp_path / "x.safetensors")
    assert torch.equal(rows(tmp_path, "x"), values.float())


def test_a_file_written_again_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"clip_l": torch.zeros(1, 4)}, file)
    before = lookup([tmp_path], "clip_l")("x")
    save_file({"clip_l": torch.ones(1, 4)}, file)
    os.utime(file, ns=(1, 1))
    after = lookup([tmp_path], "clip_l")("x")
    assert before and after and before != after and after[0].values.sum() == 4


@pytest.mark.parametrize("ending", [".pt", ".bin"])
def test_pickles_are_refused_by_name(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"style{ending}").write_bytes(b"\x80\x02")
    with pytest.raises(FileFormatError, match="safetensors"):
        lookup([tmp_path], "clip_l")("style")


def test_files_without_rows_of_numbers_are_refused(tmp_path: Path) -> None:
    save_file({"n": torch.tensor([1, 2])}, tmp_path / "integers.safetensors")
    save_file({"n": torch.tensor(1.0)}, tmp_path / "scalar.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    for name in ("integers", "scalar", "empty"):
        with pytest.raises(FileFormatError, match=name):
            lookup([tmp_path], "clip_l")(name)
