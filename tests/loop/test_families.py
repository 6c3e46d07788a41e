"""ComfyUI's four FLUX.1 workflows, dev and schnell, in parts and in one file, run unchanged."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sluice.flux_core.commands import run
from sluice.flux_core.graph.flatten import canvas_to_prompt
from sluice.flux_core.io.embedded import read_workflow
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import pack_host

CLASSES, _ = standalone_tables(pack_host())
Run = Callable[..., list[Path]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"inputs": inputs, "class_type": class_type}


def in_parts(unet: str) -> dict[str, Any]:
    """What both modular workflows have in common."""
    return {
        "6": node("CLIPTextEncode", text="a fox with a lantern, (autumn:1.2) leaves", clip=["11", 0]),
        "8": node("VAEDecode", samples=["13", 0], vae=["10", 0]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
        "10": node("VAELoader", vae_name="ae.safetensors"),
        "11": node("DualCLIPLoader", clip_name1="t5xxl_fp16.safetensors", clip_name2="clip_l.safetensors", type="flux"),
        "12": node("UNETLoader", unet_name=unet, weight_dtype="default"),
        "13": node(
            "SamplerCustomAdvanced",
            noise=["25", 0],
            guider=["22", 0],
            sampler=["16", 0],
            sigmas=["17", 0],
            latent_image=["27", 0],
        ),
        "16": node("KSamplerSelect", sampler_name="euler"),
    }


def dev() -> dict[str, Any]:
    return in_parts("flux1-dev.safetensors") | {
        "17": node("BasicScheduler", scheduler="simple", steps=20, denoise=1.0, model=["30", 0]),
        "22": node("BasicGuider", model=["30", 0], conditioning=["26", 0]),
        "25": node("RandomNoise", noise_seed=219670278747233),
        "26": node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
        "27": node("EmptySD3LatentImage", width=512, height=512, batch_size=1),
        "30": node("ModelSamplingFlux", max_shift=1.15, base_shift=0.5, width=512, height=512, model=["12", 0]),
    }


def schnell() -> dict[str, Any]:
    return in_parts("flux1-schnell.safetensors") | {
        "17": node("BasicScheduler", scheduler="simple", steps=4, denoise=1.0, model=["12", 0]),
        "22": node("BasicGuider", model=["12", 0], conditioning=["6", 0]),
        "25": node("RandomNoise", noise_seed=112298569477003),
        "27": node("EmptyLatentImage", width=1024, height=1024, batch_size=1),
    }


def in_one(checkpoint: str, positive: str, seed: int, steps: int) -> dict[str, Any]:
    return {
        "6": node("CLIPTextEncode", text="a fox with a lantern", clip=["30", 1]),
        "8": node("VAEDecode", samples=["31", 0], vae=["30", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
        "27": node("EmptySD3LatentImage", width=512, height=512, batch_size=1),
        "30": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "31": node(
            "KSampler",
            seed=seed,
            steps=steps,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
            model=["30", 0],
            positive=[positive, 0],
            negative=["33", 0],
            latent_image=["27", 0],
        ),
        "33": node("CLIPTextEncode", text="", clip=["30", 1]),
    }


def dev_checkpoint() -> dict[str, Any]:
    guided = {"35": node("FluxGuidance", guidance=3.5, conditioning=["6", 0])}
    return in_one("flux1-dev-fp8.safetensors", "35", 972054013131368, 20) | guided


def schnell_checkpoint() -> dict[str, Any]:
    return in_one("flux1-schnell-fp8.safetensors", "6", 173805153958730, 4)


FAMILIES = [dev, schnell, dev_checkpoint, schnell_checkpoint]


def canvas(prompt: dict[str, Any], extra: dict[str, list[Any]]) -> dict[str, Any]:
    """The prompt as the editor saves it: values by position, links by number. `extra` follows a widget's value."""
    boxes: dict[str, dict[str, Any]] = {}
    links: list[list[Any]] = []
    for order, (node_id, one) in enumerate(prompt.items()):
        declared = CLASSES[one["class_type"]].INPUT_TYPES()["required"]
        outputs = [{"name": kind, "type": kind, "links": []} for kind in CLASSES[one["class_type"]].RETURN_TYPES]
        values = []
        for name in declared:
            if not isinstance(one["inputs"][name], list):
                values += [one["inputs"][name], *extra.get(name, ())]
        boxes[node_id] = {
            "id": int(node_id),
            "type": one["class_type"],
            "pos": [0, 0],
            "size": {"0": 315, "1": 106},
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": [],
            "outputs": outputs,
            "widgets_values": values,
            "properties": {"Node name for S&R": one["class_type"]},
        }
    for node_id, one in prompt.items():
        for name, value in one["inputs"].items():
            if isinstance(value, list):
                kind = boxes[value[0]]["outputs"][value[1]]["type"]
                link = [len(links) + 1, int(value[0]), value[1], int(node_id), len(boxes[node_id]["inputs"]), kind]
                links.append(link)
                boxes[value[0]]["outputs"][value[1]]["links"].append(link[0])
                boxes[node_id]["inputs"].append({"name": name, "type": kind, "link": link[0]})
    note = {"id": 90, "type": "Note", "order": 99, "mode": 0, "widgets_values": ["read me"], "properties": {}}
    return {"last_node_id": 90, "nodes": [*boxes.values(), note], "links": links, "groups": [], "version": 0.4}


AFTER_SEED = {"seed": ["randomize"], "noise_seed": ["randomize"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_workflow_runs_unchanged(family: Callable[[], dict[str, Any]], here: Path, sluice_run: Run) -> None:
    prompt = family()
    drawn = canvas(prompt, AFTER_SEED)
    (here / "api.json").write_text(json.dumps({"prompt": prompt, "workflow": drawn}))
    (picture,) = sluice_run(here / "api.json")
    assert picture == here / "output/ComfyUI_00001_.png"
    with Image.open(picture) as image:
        size = prompt["27"]["inputs"]
        assert image.size == (size["width"], size["height"]) and image.mode == "RGB"
        assert len(set(image.resize((8, 8)).get_flattened_data())) > 20, "the picture shows something"
    carried = read_workflow(picture)
    assert carried.workflow == drawn
    assert carried.prompt is not None
    assert {node_id: one["inputs"] for node_id, one in carried.prompt.items()} == {
        node_id: one["inputs"] for node_id, one in prompt.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_run_again_gives_the_same_pixels(
    family: Callable[[], dict[str, Any]], here: Path, sluice_run: Run
) -> None:
    prompt = family()
    (here / "api.json").write_text(json.dumps({"prompt": prompt, "workflow": canvas(prompt, AFTER_SEED)}))
    smaller = ["--set", "27.width=128", "--set", "27.height=64", "--set", "steps=2", "--set", "6.text=12"]
    (first,) = sluice_run(here / "api.json", *smaller)
    (again,) = sluice_run(first)
    (other,) = sluice_run(first, "--seed", "1")
    with Image.open(first) as a, Image.open(again) as b, Image.open(other) as c:
        assert a.size == (128, 64)
        assert a.tobytes() == b.tobytes() != c.tobytes()
    assert len({first, again, other}) == 3
    carried = read_workflow(other)
    assert canvas_to_prompt(carried.workflow, CLASSES)["6"]["inputs"]["text"] == "12"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_canvas_alone_gives_the_same_prompt(family: Callable[[], dict[str, Any]]) -> None:
    prompt = family()
    converted = canvas_to_prompt(canvas(prompt, AFTER_SEED), CLASSES)
    for node_id, one in converted.items():
        given = {"device": "default"} | prompt[node_id]["inputs"]
        assert {name: given[name] for name in one["inputs"]} == one["inputs"]
        assert one["inputs"].keys() >= prompt[node_id]["inputs"].keys()
    assert converted.keys() == prompt.keys()


def test_workflows_of_one_call_share_what_they_have_in_common(
    here: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = schnell()
    first["27"]["inputs"] |= {"width": 64, "height": 64}
    second = json.loads(json.dumps(first))
    second["25"]["inputs"]["noise_seed"] = 7
    (here / "first.json").write_text(json.dumps(first))
    (here / "second.json").write_text(json.dumps(second))
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    executed: list[list[str]] = []

    def listen(event: str, data: Mapping[str, Any]) -> None:
        if event == "execution_start":
            executed.append([])
        if event == "executing":
            executed[-1].append(data["node"])

    options = ["first.json", "second.json", "second.json", "--models", str(store), "--device", "cpu", "--json"]
    assert run.run(parser.parse_args(options), listen) == 0
    assert set(executed[0]) == set(first)
    assert set(executed[1]) == {"25", "13", "8", "9"}
    assert executed[2] == ["9"], "what is named twice is saved twice"
    told = capsys.readouterr()
    results = json.loads(told.out.splitlines()[-1])["workflows"]
    assert [len(result["images"]) for result in results] == [1, 1, 1]
    assert len({picture for result in results for picture in result["images"]}) == 3
    assert "SamplerCustomAdvanced: 4 steps" in told.err
