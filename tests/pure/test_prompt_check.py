"""Problems are data: programs use their kind and place, and not the sentences. Workflows are read once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sluice.flux_core.commands import prepare, workflows
from sluice.flux_core.errors import InputError, PromptError
from sluice.flux_core.graph import canvas, canvas_edit, problems
from sluice.flux_core.graph.problems import MISSING_MODEL, MISSING_TOKENIZER, NO_OUTPUT, UNKNOWN_CLASS
from sluice.flux_core.io.folders import Folders, standard_folders
from sluice.flux_core.limits import is_out_of_memory
from sluice.flux_core.worker import prompt_check, required_models
from sluice.flux_core.worker.prompt_check import check_prompt
from sluice.flux_core.worker.registry import standalone_tables
from sluice.flux_core.worker.required_models import Wanted
from sluice.nodes.host import pack_host

CLASSES, TITLES = standalone_tables(pack_host())
ROOT = Path(__file__).parents[2]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return standard_folders(tmp_path)


def workflow() -> dict[str, Any]:
    return {
        "1": node("VAELoader", vae_name="gone.safetensors"),
        "2": node("EmptySD3LatentImage", width=64, height=7, batch_size=1),
        "3": node("VAEDecode", samples=["2", 0], vae=["1", 0]),
        "4": node("SaveImage", images=["3", 0], filename_prefix="x"),
    }


def test_every_problem_has_a_kind_and_a_place(folders: Folders) -> None:
    found = check_prompt(workflow(), CLASSES, folders).found
    assert {(one.kind, one.node_id, one.input) for one in found.problems} == {
        (MISSING_MODEL, "1", "vae_name"), ("value_smaller_than_min", "2", "height"),
    }  # fmt: skip
    assert [one.sentence for one in found.problems] == list(found.sentences)
    (unknown,) = check_prompt({"1": node("Unheard")}, CLASSES, folders).found.problems
    assert (unknown.kind, unknown.node_id, unknown.input) == (UNKNOWN_CLASS, "1", None)
    (empty,) = check_prompt({}, CLASSES, folders).found.problems
    assert (empty.kind, empty.node_id) == (NO_OUTPUT, None)


def test_a_missing_tokenizer_is_one_of_them(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice.flux_core.conditioning.tokenizer_files.package_folder", lambda name: None)
    monkeypatch.setattr("sluice.flux_core.conditioning.tokenizer_files.comfyui_installations", lambda: ())
    monkeypatch.setattr("sluice.flux_core.conditioning.tokenizer_files.hugging_face_snapshots", lambda *names: ())
    loader = node("DualCLIPLoader", clip_name1="t5xxl.sft", clip_name2="clip_l.sft", type="flux")
    prompt = {
        "1": loader,
        "2": node("CLIPTextEncode", clip=["1", 0], text="x"),
        "3": node("PreviewAny", source=["2", 0]),
    }
    found = check_prompt(prompt, CLASSES, folders).found
    kinds = [(one.kind, one.node_id) for one in found.problems]
    assert kinds.count((MISSING_MODEL, "1")) == 2 and kinds.count((MISSING_TOKENIZER, "1")) == 2


def test_a_missing_model_is_explained_whatever_the_sentence_about_it_was(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = check_prompt(workflow(), CLASSES, folders).found.sentences
    explanation = folders.explain_missing("vae", "gone.safetensors")
    assert any(explanation in sentence for sentence in expected)
    reworded = {kind: lambda case: "In other words." for kind in problems._REASONS}
    monkeypatch.setattr(problems, "_REASONS", reworded)
    monkeypatch.setattr(problems, "place_of", lambda *_: "Somewhere")
    told = check_prompt(workflow(), CLASSES, folders).found.sentences
    assert [sentence for sentence in told if explanation in sentence]
    assert "Somewhere: In other words." in told and len(told) == len(expected)


def test_only_the_words_of_others_say_that_memory_ran_out() -> None:
    text = "CUDA out of memory. Tried to allocate 20.00 GiB"
    assert is_out_of_memory(RuntimeError(text)) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(InputError(text)) and not is_out_of_memory(RuntimeError("other"))


def test_a_workflow_is_read_once_and_its_files_are_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Any] = []
    searches: list[Any] = []

    def read_canvas(document: Any) -> canvas.Workflow:
        reads.append(document)
        return canvas.read_canvas(document)

    def wanted_files(*args: Any) -> list[Wanted]:
        searches.append(args)
        return required_models.wanted_files(*args)

    for module in (workflows, canvas_edit):
        monkeypatch.setattr(module, "read_canvas", read_canvas)
    monkeypatch.setattr(prompt_check, "wanted_files", wanted_files)
    for file in sorted((ROOT / "workflows").glob("*.png")):
        reads.clear()
        searches.clear()
        job = prepare.prepared(file, CLASSES, TITLES, standard_folders(tmp_path))
        assert (len(reads), len(searches)) == (1, 1) and job.canvas


def test_a_damaged_canvas_beside_a_prompt_is_left_out(tmp_path: Path) -> None:
    drawn = tmp_path / "w.json"
    drawn.write_text(json.dumps({"prompt": workflow(), "workflow": {"nodes": "none"}}))
    with pytest.raises(PromptError, match=r"gone\.safetensors"):
        prepare.prepared(drawn, CLASSES, TITLES, standard_folders(tmp_path))


def test_outputs_that_lack_only_a_link_are_left_out_as_in_comfyui(tmp_path: Path) -> None:
    file = tmp_path / "w.json"
    prompt = workflows.read(ROOT / "workflows/four_steps.png", CLASSES).prompt
    loose = {"90": node("VAEDecode", vae=["91", 0]), "92": node("PreviewImage", images=["90", 0])}
    loose["91"] = node("VAELoader", vae_name="sluice-tiny-ae.safetensors")
    file.write_text(json.dumps({**prompt, **loose}))
    job = prepare.prepared(file, CLASSES, TITLES, standard_folders(tmp_path))
    assert "92" not in job.outputs and job.outputs
    assert any("(VAEDecode), input samples" in note and "left out" in note for note in job.notes)

    loose["91"]["inputs"].clear()  # no link gives a choice: a person can mend it
    file.write_text(json.dumps({**prompt, **loose}))
    with pytest.raises(PromptError, match="vae_name"):
        prepare.prepared(file, CLASSES, TITLES, standard_folders(tmp_path))

    file.write_text(json.dumps({"92": node("PreviewImage")}))  # nothing else
    with pytest.raises(PromptError, match="images"):
        prepare.prepared(file, CLASSES, TITLES, standard_folders(tmp_path))
