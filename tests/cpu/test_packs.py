"""Node packs with our models: through ComfyUI's modules they get the results of our own nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.simulated import SimulatedMemory
from sluice.flux_core.facade import engine as around
from sluice.flux_core.facade.engine import Engine
from sluice.flux_core.graph.execute import Executor, Result
from sluice.flux_core.graph.validate import validate
from sluice.flux_core.io.folders import standard_folders
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.models.latents import process_in
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.worker.node_packs import NodePacks
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import Host

CPU = torch.device("cpu")
MiB = 1 << 20
WORKSPACE, TIGHT, FOR_PICTURES = 128 * MiB, 6 * MiB, 300 * MiB
PACKS = Path(__file__).parent / "packs"
Prompt = dict[str, Any]
LATENT = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}


class Show:
    """Keeps its arguments."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "show", (), True
    seen: list[Any] = []

    @classmethod
    def INPUT_TYPES(cls) -> Any:
        return {"required": {"value": ("*", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any) -> bool:
        return True

    def show(self, value: Any) -> Any:
        self.seen.append(value)
        return {}


class House:
    """The program with the pack. `run` returns the outputs of the nodes named in `shown`, in that order."""

    def __init__(self, base: Path, managed: bool) -> None:
        folders = standard_folders(base)
        folders.temp.mkdir()
        self.runtime = Runtime(Settings.parse("cpu", "fp32", *(("auto", "1G") if managed else ("off", "auto"))))
        self.memory = SimulatedMemory(1 << 40)
        if managed:  # weights are streamed: there is room for what computing takes, and for few of them
            manager = self.runtime.managers[CPU] = Manager(CPU, self.runtime.budget, None, self.runtime.events.emit)
            manager.memory = self.memory
            self.memory.budget = WORKSPACE + TIGHT
        host = Host(folders, make_runtime=lambda: self.runtime)
        classes, titles = standalone_tables(host)
        classes["Show"] = Show
        self.folders, self.classes = folders, classes
        self.executor = Executor(classes, around=torch.inference_mode)
        self.packs = NodePacks(Engine(host, folders, classes, titles, self.executor))
        self.packs.load([PACKS])

    def result(self, prompt: Prompt) -> Result:
        found = validate(prompt, self.classes)
        assert not found.problems
        return self.executor.execute(found.prompt, "1", {}, found.outputs)

    def run(self, prompt: Prompt, *shown: str) -> list[Any]:
        Show.seen = []
        showing = {f"show{name}": {"class_type": "Show", "inputs": {"value": [name, 0]}} for name in shown}
        result = self.result({**prompt, **showing})
        if result.exception is not None:
            raise result.exception
        return list(Show.seen)


@pytest.fixture(params=[False, True], ids=["loaded", "streamed"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path, request.param)
    yield built
    built.packs.isolation.remove()
    around.forget()


def loaders() -> Prompt:
    names = {"unet_name": "sluice-tiny.safetensors", "weight_dtype": "default"}
    clips = {"clip_name1": "sluice-tiny-clip_l.safetensors", "clip_name2": "sluice-tiny-t5xxl.safetensors"}
    return {
        "model": {"class_type": "UNETLoader", "inputs": names},
        "clip": {"class_type": "DualCLIPLoader", "inputs": {**clips, "type": "flux"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "sluice-tiny-ae.safetensors"}},
        "latent": LATENT,
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a (red:1.2) circle"}},
        "guided": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["text", 0], "guidance": 3.5}},
        "sampled": sampling("model"),
    }


def sampling(model: str) -> Prompt:
    numbers = {"seed": 7, "steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"positive": ["guided", 0], "negative": ["guided", 0], "latent_image": ["latent", 0]}
    return {"class_type": "KSampler", "inputs": {"model": [model, 0], **numbers, **links}}


def test_the_packs_load_whole(house: House) -> None:
    builds, uses = house.packs.packs
    assert builds["error"] is None and builds["nodes"] == ("PackNetwork",)
    assert (Path(builds["extensions"]["built"]) / "built.js").is_file() and not uses["extensions"]
    assert uses["error"] is None and uses["left_out"] == {} and len(uses["nodes"]) == 9


def test_a_pack_builds_networks_from_comfyuis_layers(house: House) -> None:
    prompt = {"latent": LATENT, "made": {"class_type": "PackNetwork", "inputs": {"latent": ["latent", 0]}}}
    (latent,) = house.run(prompt, "made")
    assert latent["samples"].shape == (1, 81, 16) and bool(latent["samples"].isfinite().all())


def test_prompts_are_encoded_alike(house: House) -> None:
    prompt = loaders()
    prompt["theirs"] = {"class_type": "PackEncode", "inputs": {"clip": ["clip", 0], "text": "a (red:1.2) circle"}}
    ours, theirs = house.run(prompt, "guided", "theirs")
    assert torch.equal(ours[0][0], theirs[0][0]) and ours[0][1]["guidance"] == theirs[0][1]["guidance"]
    assert torch.equal(ours[0][1]["pooled_output"], theirs[0][1]["pooled_output"])


@pytest.mark.parametrize("way", ["common", "node", "guider", "own_guider", "direct", "wrapped"])
def test_every_way_of_sampling_gives_the_same_latent(house: House, way: str) -> None:
    prompt = loaders()
    inputs = {"model": ["model", 0], "positive": ["guided", 0], "latent": ["latent", 0], "way": way}
    prompt["theirs"] = {"class_type": "PackSample", "inputs": inputs}
    ours, theirs = house.run(prompt, "sampled", "theirs")
    torch.testing.assert_close(theirs["samples"], ours["samples"], atol=0 if way != "direct" else 1e-5, rtol=0)


def test_our_nodes_list_and_run_what_a_pack_adds(house: House) -> None:
    prompt = loaders()
    added = {"sampler_name": "pack_euler", "scheduler": "pack_simple"}
    for name, changed in (("both", added), ("schedule", {"scheduler": "pack_simple"})):
        plain = sampling("model")
        prompt[name] = {**plain, "inputs": {**plain["inputs"], **changed}}
    links = {"positive": ["guided", 0], "negative": ["guided", 0], "model": ["model", 0], "latent_image": ["latent", 0]}
    half = {"steps": 3, "cfg": 1.0, **added, "return_with_leftover_noise": "enable", "add_noise": "enable", **links}
    steps = {"start_at_step": 0, "end_at_step": 2, "noise_seed": 7}
    prompt["first"] = {"class_type": "KSamplerAdvanced", "inputs": {**half, **steps}}
    rest = {"start_at_step": 2, "end_at_step": 3, "add_noise": "disable", "return_with_leftover_noise": "disable"}
    inputs = {**half, **steps, **rest, "latent_image": ["first", 0]}
    prompt["advanced"] = {"class_type": "KSamplerAdvanced", "inputs": inputs}
    prompt["sampler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "pack_euler"}}
    basic = {"model": ["model", 0], "scheduler": "pack_simple", "steps": 3, "denoise": 1.0}
    prompt["sigmas"] = {"class_type": "BasicScheduler", "inputs": basic}
    prompt["noise"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}}
    prompt["guider"] = {"class_type": "BasicGuider", "inputs": {"model": ["model", 0], "conditioning": ["guided", 0]}}
    parts = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")}
    custom = {**parts, "latent_image": ["latent", 0]}
    prompt["custom"] = {"class_type": "SamplerCustomAdvanced", "inputs": custom}
    ours, *theirs = house.run(prompt, "sampled", "both", "schedule", "advanced", "custom")
    for one in theirs:
        torch.testing.assert_close(one["samples"], ours["samples"], atol=1e-5, rtol=0)


def test_models_of_a_packs_loader_run_on_our_nodes(house: House) -> None:
    house.memory.budget = FOR_PICTURES
    prompt = loaders()
    prompt["files"] = {"class_type": "PackFiles", "inputs": {}}
    prompt["theirs"] = sampling("files")
    decode: dict[str, Any] = {"class_type": "VAEDecode", "inputs": {"samples": ["sampled", 0], "vae": ["files", 2]}}
    prompt |= {"theirs_decoded": decode, "decoded": {**decode, "inputs": {**decode["inputs"], "vae": ["vae", 0]}}}
    ours, theirs, decoded, theirs_decoded = house.run(prompt, "sampled", "theirs", "decoded", "theirs_decoded")
    assert torch.equal(ours["samples"], theirs["samples"]) and torch.equal(decoded, theirs_decoded)


def test_what_a_pack_sets_on_a_model_is_taken_over_or_refused_by_name(house: House) -> None:
    prompt = loaders()
    size = {"max_shift": 0.9, "base_shift": 0.5, "width": 1024, "height": 1024}
    prompt["shifted"] = {"class_type": "ModelSamplingFlux", "inputs": {"model": ["model", 0], **size}}
    prompt["theirs"] = {"class_type": "PackShift", "inputs": {"model": ["model", 0], "mu": 0.9}}
    prompt |= {"a": sampling("shifted"), "b": sampling("theirs")}
    plain, ours, theirs = house.run(prompt, "sampled", "a", "b")
    assert torch.equal(ours["samples"], theirs["samples"]) and not torch.equal(plain["samples"], ours["samples"])
    patched = {**loaders(), "theirs": {"class_type": "PackPatch", "inputs": {"model": ["model", 0], "how": "attn1"}}}
    with pytest.raises(Exception, match="is not possible for a model of Sluice"):
        house.run({**patched, "b": sampling("theirs")}, "b")


@pytest.mark.parametrize("how", ["wrapper", "cfg", "pre_cfg", "post_cfg", "batch"])
def test_guidance_that_a_pack_puts_on_a_model_is_used_by_our_samplers(house: House, how: str) -> None:
    """Each function does the same in its own place: a scale of 2.5 in place of 4; the wrapper halves the last image."""
    prompt = loaders()
    prompt["empty"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": ""}}
    prompt["theirs"] = {"class_type": "PackPatch", "inputs": {"model": ["model", 0], "how": how}}

    def with_scale(model: str, cfg: float) -> Prompt:
        node = sampling(model)
        return {**node, "inputs": {**node["inputs"], "cfg": cfg, "negative": ["empty", 0]}}

    prompt |= {"plain": with_scale("model", 2.5), "changed": with_scale("theirs", 2.5 if how == "wrapper" else 4.0)}
    plain, changed = (value["samples"] for value in house.run(prompt, "plain", "changed"))
    if how == "wrapper":
        torch.testing.assert_close(process_in(changed), process_in(plain) / 2, atol=1e-4, rtol=0)
    else:
        torch.testing.assert_close(changed, plain, atol=1e-4, rtol=0)


def test_pictures_are_decoded_and_saved_alike(house: House) -> None:
    house.memory.budget = FOR_PICTURES
    prompt = loaders()
    prompt["ours"] = {"class_type": "VAEDecode", "inputs": {"samples": ["sampled", 0], "vae": ["vae", 0]}}
    prompt["theirs"] = {"class_type": "PackPicture", "inputs": {"latent": ["sampled", 0], "vae": ["vae", 0]}}
    prompt["saved"] = {"class_type": "PackSave", "inputs": {"images": ["theirs", 0]}}
    prompt["inverted"] = {"class_type": "SchemaInvert", "inputs": {"image": ["ours", 0]}}
    ours, theirs, inverted = house.run(prompt, "ours", "theirs", "inverted")
    assert torch.equal(ours, theirs) and torch.equal(1 - ours, inverted)
    assert (house.folders.output / "derived" / "name_00001_.png").is_file()
    assert list(house.folders.temp.glob("*.png"))


def test_tools_that_need_no_model(house: House) -> None:
    assert house.result({"1": {"class_type": "PackTools", "inputs": {}}}).outputs == {"1": {"done": [True]}}
