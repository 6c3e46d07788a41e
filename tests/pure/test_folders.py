"""Model files are found as ComfyUI finds them, and no name leads out of its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sluice.flux_core.errors import InputError, MissingFileError, SluiceError
from sluice.flux_core.io.folders import TINY_MODELS, Folders, annotated, confined, standard_folders
from sluice.flux_core.io.published_files import gigabytes, published, size_text, smaller_forms
from sluice.flux_core.io.shards import PAIR


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def own(folders: Folders, category: str) -> list[Path]:
    return [d for d in folders.directories(category) if not d.is_relative_to(TINY_MODELS)]


def test_a_category_gathers_its_folders_of_all_roots_in_order(tmp_path: Path) -> None:
    put(tmp_path, "a/models/vae/x", "b/vae/x")
    folders = standard_folders(tmp_path / "a", [tmp_path / "b"])
    assert own(folders, "diffusion_models") == [
        tmp_path / "b/unet",
        tmp_path / "b/diffusion_models",
        tmp_path / "a/models/unet",
        tmp_path / "a/models/diffusion_models",
    ]
    assert folders.directories("unet") == folders.directories("diffusion_models")
    assert folders.directories("clip") == folders.directories("text_encoders")


def test_the_tiny_model_is_always_the_last_place(tmp_path: Path) -> None:
    (tmp_path / "extra_model_paths.yaml").write_text("mine:\n  vae: elsewhere\n")
    folders = standard_folders(tmp_path)
    assert folders.directories("vae") == (tmp_path / "models/vae", tmp_path / "elsewhere", TINY_MODELS / "vae")


def test_lists_are_sorted_relative_names_of_weight_files_below_sub_folders(tmp_path: Path) -> None:
    put(tmp_path / "models/loras", "b.safetensors", "style/a.sft", "c.GGUF", "notes.txt", "bad.ckpt", ".git/x.sft")
    os.symlink(tmp_path / "models/loras", tmp_path / "models/loras/style/loop")
    assert standard_folders(tmp_path).filenames("loras") == ["b.safetensors", "c.GGUF", "style/a.sft"]


def test_a_model_in_several_files_is_listed_once_and_found_by_any_of_its_names(tmp_path: Path) -> None:
    shards = [f"fine/m-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    put(tmp_path / "models/unet", *shards, "fine/m.safetensors.index.json", "x-00002-of-00002.gguf", "one.safetensors")
    put(tmp_path / "models/unet", *(f"svdq/{name}" for name in PAIR))
    folders = standard_folders(tmp_path)
    names = [name for name in folders.filenames("unet") if "tiny" not in name]
    assert names == [shards[0], "one.safetensors", f"svdq/{PAIR[0]}", "x-00002-of-00002.gguf"]
    assert [folders.listed("unet", name) for name in ("svdq", f"svdq\\{PAIR[1]}")] == [f"svdq/{PAIR[0]}"] * 2
    for name in ("fine", "fine/", "fine\\m.safetensors.index.json", *shards):
        assert folders.listed("unet", name) == shards[0]
        assert folders.find("unet", name) is not None
    for name in ("one.safetensors", "other", "other/m-00001-of-00003.safetensors"):
        assert folders.listed("unet", name) == name
    assert folders.find("unet", "other") is None


def test_links_to_nowhere_are_not_listed(tmp_path: Path) -> None:
    put(tmp_path, "models/loras/a.sft", "elsewhere/b.sft")
    os.symlink(tmp_path / "elsewhere/b.sft", tmp_path / "models/loras/b.sft")
    os.symlink(tmp_path / "gone.sft", tmp_path / "models/loras/c.sft")
    assert standard_folders(tmp_path).filenames("loras") == ["a.sft", "b.sft"]


def test_a_list_is_read_again_when_a_folder_has_changed(tmp_path: Path) -> None:
    folders = standard_folders(tmp_path)
    assert folders.filenames("loras") == []
    put(tmp_path / "models/loras", "deep/a.sft")
    assert folders.filenames("loras") == ["deep/a.sft"]
    os.utime(tmp_path / "models/loras/deep", ns=(1, 1))
    folders.filenames("loras")
    put(tmp_path / "models/loras", "deep/b.sft")
    assert folders.filenames("loras") == ["deep/a.sft", "deep/b.sft"]


def test_the_first_folder_that_has_the_name_wins(tmp_path: Path) -> None:
    put(tmp_path, "models/unet/m.sft", "models/diffusion_models/m.sft", "models/diffusion_models/sub/n.sft")
    folders = standard_folders(tmp_path)
    assert folders.path("diffusion_models", "m.sft") == tmp_path / "models/unet/m.sft"
    assert folders.path("diffusion_models", "sub\\n.sft") == tmp_path / "models/diffusion_models/sub/n.sft"


def test_extra_model_paths_as_comfyui_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE", "shelf")
    file = tmp_path / "conf" / "paths.yaml"
    file.parent.mkdir()
    file.write_text(
        "empty:\n"
        "other:\n"
        "  base_path: ../$STORE/\n"
        "  clip: |\n"
        "    one\n"
        "    two/\n"
        "  my_own_category: own\n"
        "first:\n"
        "  is_default: true\n"
        f"  vae: {tmp_path}/absolute\n"
        "  loras: beside\n"
    )
    folders = standard_folders(tmp_path / "base", extra=[file])
    shelf = tmp_path / "shelf"
    assert own(folders, "text_encoders")[-2:] == [shelf / "one", shelf / "two"]
    assert folders.directories("my_own_category") == (shelf / "own",)
    assert folders.directories("vae")[0] == tmp_path / "absolute"
    assert folders.directories("loras")[0] == tmp_path / "conf" / "beside"
    assert folders.place_for("loras") == tmp_path / "base/models/loras"


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "extra_model_paths.yaml").write_text("x:\n  base_path: ~/store\n  vae: v\n")
    assert tmp_path / "home/store/v" in standard_folders(tmp_path).directories("vae")


@pytest.mark.parametrize("text", ["- a list", "x: 3", "x: [1", "\x00\x01", "x: y: z", "x: {vae: {}}", "x: {vae: 3}"])
def test_a_file_that_is_no_such_yaml_is_told_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "extra_model_paths.yaml").write_text(text)
    with pytest.raises(SluiceError, match=r"extra_model_paths\.yaml"):
        standard_folders(tmp_path)


def test_a_root_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        standard_folders(tmp_path, [tmp_path / "nowhere"])
    with pytest.raises(MissingFileError, match=r"nothing\.yaml"):
        standard_folders(tmp_path, extra=[tmp_path / "nothing.yaml"])


def test_a_missing_model_is_explained(tmp_path: Path) -> None:
    put(tmp_path, "models/diffusion_models/flux/flux1-dev-fp8.safetensors", "models/vae/stray.sft")
    folders = standard_folders(tmp_path)
    with pytest.raises(MissingFileError) as told:
        folders.path("diffusion_models", "flux1-dev.safetensors")
    for part in (
        "flux1-dev.safetensors",
        str(tmp_path / "models/unet"),
        "Close names there:",
        "flux/flux1-dev-fp8.safetensors",
        "black-forest-labs/FLUX.1-dev",
        f"put it into {tmp_path / 'models/diffusion_models'}",
    ):
        assert part in str(told.value)
    assert "lies in vae" in folders.explain_missing("loras", "stray.sft")
    assert "may run code" in folders.explain_missing("checkpoints", "old.ckpt")
    both = folders.explain_missing("diffusion_models", "stray.sft", also=("vae",))
    assert both.startswith("'stray.sft' is in none of the diffusion_models and vae folders (") and "lies in" not in both


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("flux1-dev.safetensors", "black-forest-labs/FLUX.1-dev"),
        ("sub\\flux1-schnell-fp8.safetensors", "Comfy-Org/flux1-schnell"),
        ("FLUX1-dev-Q8_0.gguf", "city96/FLUX.1-dev-gguf"),
        ("t5xxl_fp8_e4m3fn.safetensors", "comfyanonymous/flux_text_encoders"),
        ("ae.safetensors", "black-forest-labs/FLUX.1-schnell"),
        ("flux1-kontext-dev.safetensors", "black-forest-labs/FLUX.1-Kontext-dev"),
        ("my_own.safetensors", None),
    ],
)
def test_published_names_are_known(name: str, repository: str | None) -> None:
    assert published(name) == repository


def test_a_missing_file_is_told_with_its_size_and_smaller_forms_which_are_smaller(tmp_path: Path) -> None:
    told = standard_folders(tmp_path).explain_missing("diffusion_models", "flux1-dev.safetensors")
    assert "FLUX.1-dev (23.8 GB)" in told and "flux1-dev-Q4_K_S.gguf (6.81 GB)" in told
    assert size_text("clip_l.safetensors") == "246 MB" and size_text("mine.safetensors") == ""
    for name in ("flux1-dev.safetensors", "sub/T5XXL_fp16.safetensors", "flux1-kontext-dev.safetensors"):
        sizes = [gigabytes(form) for form in (name, *smaller_forms(name))]
        assert len(sizes) > 1 and None not in sizes and sizes == sorted(sizes, key=lambda size: -(size or 0))
        assert all(published(form) for form in smaller_forms(name))


HOSTILE = ["../x", "a/../../x", "/etc/passwd", "..\\x", "C:\\x", "c:/x", "", "a\0b", "\\\\server\\x"]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    put(tmp_path, "x", "models/vae/keep.sft")
    assert standard_folders(tmp_path).find("vae", name) is None
    with pytest.raises(InputError, match="leads out"):
        confined(tmp_path / "models", name)


def test_a_symbolic_link_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    put(tmp_path, "secret", "out/real/a")
    os.symlink(tmp_path, tmp_path / "out/escape")
    os.symlink(tmp_path / "out/real", tmp_path / "out/alias")
    assert confined(tmp_path / "out", "alias/a") == tmp_path / "out/alias/a"
    assert confined(tmp_path / "out", "new/deep/b") == tmp_path / "out/new/deep/b"
    with pytest.raises(InputError, match="escape/secret"):
        confined(tmp_path / "out", "escape/secret")


def test_a_mark_after_the_name_picks_the_folder() -> None:
    assert annotated("a b.png [output]") == ("a b.png", "output")
    assert annotated("a.png [temp]") == ("a.png", "temp")
    assert annotated("a.png") == ("a.png", "input")
