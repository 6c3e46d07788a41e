"""Tokenizers that a workflow needs are listed before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sluice.flux_core.conditioning import tokenizer_files
from sluice.flux_core.graph.validate import Validation, validate
from sluice.flux_core.io.folders import TINY_MODELS, Folders, standard_folders
from sluice.flux_core.worker.registry import standalone_tables
from sluice.flux_core.worker.required_models import wanted_files
from sluice.flux_core.worker.required_tokenizers import Lacking, lacking_tokenizers, refused
from sluice.nodes.host import pack_host

CLASSES, _ = standalone_tables(pack_host())

TINY_CLIP, TINY_T5 = "sluice-tiny-clip_l.safetensors", "sluice-tiny-t5xxl.safetensors"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """A store with a CLIP encoder that has a thousand tokens more than the tokenizer of the small one."""
    for name in ("comfyui_installations", "hugging_face_snapshots"):
        monkeypatch.setattr(tokenizer_files, name, lambda *words: iter(()))
    monkeypatch.setattr(tokenizer_files, "package_folder", lambda name: None)
    weights = load_file(TINY_MODELS / "text_encoders" / TINY_CLIP)
    name = next(name for name in weights if name.endswith("token_embedding.weight"))
    weights[name] = torch.cat([weights[name], weights[name].new_zeros(1000, weights[name].shape[1])])
    place = tmp_path / "models" / "text_encoders"
    place.mkdir(parents=True)
    save_file(weights, place / "large_clip.safetensors")
    return standard_folders(tmp_path)


def prompt(t5: str, clip: str, linked: bool = True) -> dict[str, Any]:
    loader = {"clip_name1": t5, "clip_name2": clip, "type": "flux"}
    nodes: dict[str, Any] = {"1": {"class_type": "DualCLIPLoader", "inputs": loader}}
    if linked:
        nodes["2"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 0], "text": "x"}}
    return nodes


def lacking_in(nodes: dict[str, Any], folders: Folders) -> list[Lacking]:
    return lacking_tokenizers(nodes, CLASSES, folders, wanted_files(nodes, CLASSES, folders))


@pytest.mark.parametrize(
    ("t5", "clip", "titles"),
    [
        (TINY_T5, TINY_CLIP, []),
        (TINY_T5, "large_clip.safetensors", ["CLIP-L"]),
        ("t5xxl_fp16.safetensors", "clip_l.safetensors", ["T5-XXL", "CLIP-L"]),
        ("t5-v1_1-xxl-encoder-Q8_0.gguf", TINY_CLIP, []),
        ("folder\\t5xxl_fp8_e4m3fn.safetensors", TINY_CLIP, ["T5-XXL"]),
    ],
)
def test_what_is_nowhere_is_listed_also_for_files_that_are_not_there_yet(
    folders: Folders, t5: str, clip: str, titles: list[str]
) -> None:
    lacking = lacking_in(prompt(t5, clip), folders)
    assert [one.published.title for one in lacking] == titles
    for one in lacking:
        assert str(folders.place_for("tokenizers")) in one.text and one.published.address in one.text


def test_encoders_that_nobody_reads_need_none(folders: Folders) -> None:
    assert lacking_in(prompt(TINY_T5, "large_clip.safetensors", False), folders) == []


def test_a_prompt_without_its_tokenizer_is_refused_in_comfyuis_form(folders: Folders) -> None:
    nodes = prompt(TINY_T5, "large_clip.safetensors")
    fit = Validation(nodes, ("2",))
    found = refused(fit, lacking_in(nodes, folders))
    assert found.outputs == () and found.error is not None and found.error["type"] == "missing_tokenizer"
    (error,) = found.node_errors["1"]["errors"]
    assert set(error) == {"type", "message", "details", "extra_info"}
    assert "The tokenizer of CLIP-L is missing" in found.sentences[0] and found.sentences[0].startswith("Node 1 ")
    assert refused(fit, []) is fit
    unknown = validate({"9": {"class_type": "Unheard", "inputs": {}}}, CLASSES)
    assert refused(unknown, lacking_in(nodes, folders)) is unknown
