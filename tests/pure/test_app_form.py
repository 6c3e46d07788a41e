"""A workflow as a form, the form filled in, and the LoRAs that can be chosen in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from doubles.zeros_file import lora_shapes, zeros_file
from sluice.flux_core.commands.flux1_workflows import ALL, FOLDER
from sluice.flux_core.errors import WorkflowError
from sluice.flux_core.graph.canvas_edit import with_loras
from sluice.flux_core.graph.flatten import canvas_to_prompt
from sluice.flux_core.io.embedded import read_workflow
from sluice.flux_core.io.folders import standard_folders
from sluice.flux_core.worker.forms import filled, form
from sluice.flux_core.worker.lora_info import lora_list, trigger_words
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import pack_host

CLASSES, _ = standalone_tables(pack_host())
WORKFLOWS = Path(__file__).parents[2] / "workflows"
TINY = ("diffusion_models", "sluice-tiny.safetensors")


def shipped(name: str = "text_to_image") -> Any:
    return read_workflow(WORKFLOWS / f"{name}.png").workflow


def values_of(prompt: dict[str, Any], kind: str) -> dict[str, Any]:
    [found] = [node["inputs"] for node in prompt.values() if node["class_type"] == kind]
    return dict(found)


def test_the_form_has_what_app_mode_declares_in_that_order() -> None:
    told = form(shipped(), CLASSES)
    assert [(one["label"], one["kind"]) for one in told["fields"]] == [
        ("Prompt", "text"), ("Width", "integer"), ("Height", "integer"), ("Images", "integer"), ("Seed", "seed"),
        ("Steps", "integer"), ("Denoise", "number"),
    ]  # fmt: skip
    assert told["model"] == dict(zip(("category", "name"), TINY, strict=True)) and told["loras"]
    assert told["fields"][0]["value"] == "a yellow star in the middle on a navy background"
    assert told["fields"][1]["max"] == 16384 and told["fields"][1]["step"] == 16


@pytest.mark.parametrize("name", ALL)
def test_every_workflow_of_flux1_is_a_form(name: str) -> None:
    told = form(json.loads((FOLDER / f"{name}.json").read_text("utf-8")), CLASSES)
    kinds = [one["kind"] for one in told["fields"]]
    assert kinds[0] == "text" and {"seed", "integer"} <= set(kinds)
    assert ("lora" in kinds) != told["loras"]
    assert ("image" in kinds) == (name in ("image_to_image", "fill", "kontext", "canny", "depth"))


def test_what_is_filled_in_is_queued_and_stands_in_the_canvas_and_the_shift_follows_the_size() -> None:
    workflow = shipped()
    fields = {one["label"]: one for one in form(workflow, CLASSES)["fields"]}
    wanted = {"Prompt": "a red {5|6}", "Width": 256, "Seed": 9, "Steps": 3}
    values = [[fields[label]["node"], fields[label]["input"], value] for label, value in wanted.items()]
    told = filled(workflow, values, [], CLASSES)
    prompt = told["prompt"]
    assert values_of(prompt, "CLIPTextEncode")["text"] in ("a red 5", "a red 6")
    assert values_of(prompt, "EmptySD3LatentImage")["width"] == values_of(prompt, "ModelSamplingFlux")["width"] == 256
    assert values_of(prompt, "ModelSamplingFlux")["height"] == 128
    assert values_of(prompt, "RandomNoise")["noise_seed"] == 9 and values_of(prompt, "BasicScheduler")["steps"] == 3
    again = canvas_to_prompt(told["workflow"], CLASSES, choose=lambda options: options[0])
    assert values_of(again, "CLIPTextEncode")["text"] == "a red 5"
    assert form(told["workflow"], CLASSES)["fields"][0]["value"] == "a red {5|6}"


def test_loras_are_added_behind_the_loader_on_the_canvas_too() -> None:
    workflow = shipped()
    told = filled(workflow, [], [["a.safetensors", 0.5], ["b.safetensors", 1.0]], CLASSES)
    prompt, again = told["prompt"], form(told["workflow"], CLASSES)
    assert [one["value"] for one in again["fields"] if one["kind"] == "lora"] == ["a.safetensors", "b.safetensors"]
    assert not again["loras"]
    loras = {key: node["inputs"] for key, node in prompt.items() if node["class_type"] == "LoraLoaderModelOnly"}
    [(first, inputs), (second, others)] = loras.items()
    assert (inputs["lora_name"], others["lora_name"]) == ("a.safetensors", "b.safetensors")
    shift = values_of(prompt, "ModelSamplingFlux")["model"][0]
    assert shift == first and inputs["model"] == [second, 0] and others["strength_model"] == 1.0
    assert prompt[others["model"][0]]["class_type"] == "UNETLoader"
    assert workflow == shipped()
    with pytest.raises(WorkflowError, match="no node that loads a model"):
        with_loras({"nodes": [], "links": []}, [("a", 1.0)], CLASSES)


def test_a_prompt_without_canvas_is_a_form_too() -> None:
    prompt = canvas_to_prompt(shipped(), CLASSES)
    told = form(prompt, CLASSES)
    assert told["fields"][0]["label"] == "Prompt" and not told["loras"]
    [node] = [one["node"] for one in told["fields"] if one["kind"] == "seed"]
    queued = filled(told["workflow"], [[node, "noise_seed", 5], ["99", "x", 1]], [], CLASSES)
    assert queued["workflow"] is None and values_of(queued["prompt"], "RandomNoise")["noise_seed"] == 5


def test_loras_are_told_with_family_rank_trigger_words_and_whether_they_fit(tmp_path: Path) -> None:
    folder = tmp_path / "models/loras"
    zeros_file(folder / "fits.safetensors", lora_shapes(), {"modelspec.trigger_phrase": "my\ncat"})
    tags = json.dumps({"10_cat": {"cat": 3, "sofa": 5}})
    zeros_file(folder / "large.safetensors", lora_shapes(3072, 16), {"ss_tag_frequency": tags})
    zeros_file(folder / "deep.safetensors", lora_shapes(block=37))
    zeros_file(folder / "sdxl.safetensors", {"lora_unet_input_blocks_1_0_proj.lora_down.weight": (4, 4)})
    (folder / "broken.safetensors").write_bytes(b"nonsense")
    (folder / "Hyper-FLUX.1-dev-8steps-lora.safetensors").write_bytes((folder / "fits.safetensors").read_bytes())
    folders = standard_folders(tmp_path)
    told = {one["name"].removesuffix(".safetensors"): one for one in lora_list(folders, *TINY)}
    fits, large = told["fits"], told["large"]
    assert fits["fits"] is True and fits["why"] == "" and fits["rank"] == 4 and fits["triggers"] == ["my cat"]
    assert fits["family"] == "diffusers" and fits["changes"] == "transformer" and fits["strength"] is None
    assert large["fits"] is False and "another shape" in large["why"] and large["triggers"] == ["sofa", "cat"]
    assert told["deep"]["fits"] is False and told["deep"]["why"] == "None of its tensors belong to this model."
    assert told["sdxl"]["fits"] is False and "another model family" in told["sdxl"]["why"]
    assert told["broken"]["fits"] is False and told["broken"]["why"]
    assert told["Hyper-FLUX.1-dev-8steps-lora"]["strength"] == 0.125
    assert {one["fits"] for one in lora_list(folders) if one["rank"]} == {None}


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"a": 5}', '{"a": {"b": "many"}}', "{}"])
def test_metadata_that_says_nothing_gives_no_trigger_words(text: str) -> None:
    assert trigger_words({"ss_tag_frequency": text}) == []
