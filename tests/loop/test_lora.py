"""LoRAs through the command line: whoever wrote the file, the picture is that of weights that were changed by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doubles import adapter_files
from PIL import Image
from safetensors.torch import load_file, save_file
from sluice.flux_core.memory import manager
from sluice.flux_core.memory.plan import Plan, plan
from sluice.flux_core.memory.workload import Budget, Machine, Workload
from torch import Tensor

RANK, ALPHA = 4, 2.0
Run = Callable[..., list[Path]]
Chain = list[tuple[str, float, float]]  # file, strength of the transformer's part, of the text encoder's part
Picture = Callable[..., np.ndarray]

MODULES = ("double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.0", "single_blocks.0.linear1")
CLIP = ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc1")
DIFFUSERS = {  # the same rows under diffusers' names, in BFL's order
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"],
    "double_blocks.0.txt_mlp.0": ["transformer_blocks.0.ff_context.net.0.proj"],
    "single_blocks.0.linear1": [
        *(f"single_transformer_blocks.0.attn.to_{part}" for part in "qkv"), "single_transformer_blocks.0.proj_mlp",
    ],
}  # fmt: skip
Matrices = dict[str, tuple[Tensor, Tensor]]  # module -> down [rank, in], up [out, rank]


def matrices(weights: dict[str, Tensor], modules: tuple[str, ...], seed: int) -> Matrices:
    generator = torch.Generator().manual_seed(seed)
    shapes = {module: weights[f"{module}.weight"].shape for module in modules}
    return {
        module: (torch.randn(RANK, columns, generator=generator), torch.randn(rows, RANK, generator=generator) / 8)
        for module, (rows, columns) in shapes.items()
    }


def kohya(flux: Matrices, clip: Matrices) -> dict[str, Tensor]:
    """Underscored paths, and an alpha for each."""
    file: dict[str, Tensor] = {}
    for prefix, parts in (("lora_unet", flux), ("lora_te1", clip)):
        for module, (down, up) in parts.items():
            name = f"{prefix}_{module.replace('.', '_')}"
            file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            file[f"{name}.alpha"] = torch.tensor(ALPHA)
    return file


def diffusers(flux: Matrices, clip: Matrices) -> dict[str, Tensor]:
    """Its own modules, of which some share a matrix in BFL's layout, and no alpha: the numbers carry it."""
    file: dict[str, Tensor] = {}
    for module, (down, up) in flux.items():
        start, names = 0, DIFFUSERS[module]
        for place, name in enumerate(names):
            end = up.shape[0] if place == len(names) - 1 else start + down.shape[1]
            file[f"transformer.{name}.lora_A.weight"] = down.clone()
            file[f"transformer.{name}.lora_B.weight"] = up[start:end] * (ALPHA / RANK)
            start = end
    for module, (down, up) in clip.items():
        file[f"text_encoder.{module}.lora_A.weight"] = down
        file[f"text_encoder.{module}.lora_B.weight"] = up * (ALPHA / RANK)
    return file


@pytest.fixture
def changes(store: Path) -> list[tuple[Matrices, Matrices]]:
    """Two changes of transformer and CLIP-L."""
    flux = load_file(store / "diffusion_models/flux1-schnell.safetensors")
    clip = load_file(store / "text_encoders/clip_l.safetensors")
    return [(matrices(flux, MODULES, seed), matrices(clip, CLIP, seed + 10)) for seed in (1, 2)]


@pytest.fixture
def picture(changes: list[tuple[Matrices, Matrices]], here: Path, sluice_run: Run) -> Picture:
    """picture(chain): the pixels made with these LoRAs, one after another."""
    folder = here / "models/loras"
    folder.mkdir(parents=True)
    for number, (flux, clip) in enumerate(changes):
        save_file(kohya(flux, clip), folder / f"kohya{number}.safetensors")
        save_file(diffusers(flux, clip), folder / f"diffusers{number}.safetensors")

    def run(chain: Chain, unet: str = "flux1-schnell.safetensors", model_only: bool = False) -> np.ndarray:
        prompt = workflow(chain, unet, model_only)
        (here / "api.json").write_text(json.dumps(prompt))
        (path,) = sluice_run(here / "api.json")
        with Image.open(path) as image:
            return np.asarray(image).astype(int)

    return run


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def workflow(chain: Chain, unet: str, model_only: bool) -> dict[str, Any]:
    prompt, model, clip = {}, ["1", 0], ["2", 0]
    for number, (file, strength, strength_clip) in enumerate(chain):
        inputs = {"model": model, "lora_name": f"{file}.safetensors", "strength_model": strength}
        if model_only:
            prompt[f"lora{number}"] = node("LoraLoaderModelOnly", **inputs)
        else:
            prompt[f"lora{number}"] = node("LoraLoader", **inputs, clip=clip, strength_clip=strength_clip)
            clip = [f"lora{number}", 1]
        model = [f"lora{number}", 0]
    return prompt | {
        "1": node("UNETLoader", unet_name=unet, weight_dtype="default"),
        "2": node("DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors", type="flux"),
        "3": node("VAELoader", vae_name="ae.safetensors"),
        "4": node("CLIPTextEncode", text="a fox", clip=clip),
        "5": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "6": node(
            "KSampler", seed=1, steps=2, cfg=1, sampler_name="euler", scheduler="simple", denoise=1, model=model,
            positive=["4", 0], negative=["4", 0], latent_image=["5", 0],
        ),
        "7": node("VAEDecode", samples=["6", 0], vae=["3", 0]),
        "8": node("SaveImage", images=["7", 0], filename_prefix="x"),
    }  # fmt: skip


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(abs(one - other).max())


def test_both_layouts_give_the_picture_of_changed_weights(
    picture: Picture, changes: list[tuple[Matrices, Matrices]], store: Path, here: Path
) -> None:
    weights = load_file(store / "diffusion_models/flux1-schnell.safetensors")
    weights = {name: value.float() for name, value in weights.items()}
    for module, (down, up) in changes[0][0].items():
        weights[f"{module}.weight"] += 0.8 * ALPHA / RANK * up @ down
    (here / "models/unet").mkdir()
    save_file(weights, here / "models/unet/changed.safetensors")
    plain, changed = picture([]), picture([], unet="changed.safetensors")
    assert apart(plain, changed) > 20
    assert apart(picture([("kohya0", 0.8, 0)]), changed) <= 1
    assert apart(picture([("diffusers0", 0.8, 0)]), changed) <= 1


def test_at_strength_zero_no_pixel_changes(picture: Picture) -> None:
    plain = picture([])
    assert np.array_equal(picture([("kohya0", 0, 0), ("diffusers1", 0, 0)]), plain)
    assert np.array_equal(picture([("kohya0", 0, 0)], model_only=True), plain)


def test_the_order_of_two_is_of_no_effect_and_opposites_cancel(picture: Picture) -> None:
    first, second = ("kohya0", 0.6, 0.3), ("diffusers1", -0.4, 1.0)
    both = picture([first, second])
    assert apart(both, picture([second, first])) <= 1
    assert min(apart(both, picture([one])) for one in (first, second)) > 5
    assert apart(picture([first, second, ("diffusers0", -0.6, -0.3)]), picture([second])) <= 1


def test_the_text_encoder_has_a_strength_of_its_own(picture: Picture) -> None:
    plain, text = picture([]), picture([("kohya0", 0, 1.0)])
    assert apart(plain, text) > 5, "what is encoded has changed"
    assert apart(picture([("diffusers0", 0, 1.0)]), text) <= 1
    model = picture([("kohya0", 1.0, 0)])
    assert np.array_equal(picture([("kohya0", 1.0, 0)], model_only=True), model)
    assert min(apart(picture([("kohya0", 1.0, 1.0)]), one) for one in (plain, text, model)) > 5


def depth_workflow(strength: float) -> dict[str, Any]:
    """ComfyUI's example of FLUX.1-Depth-lora, smaller: a picture of one colour in the place of a depth map."""
    return {
        "1": node("UNETLoader", unet_name="flux1-dev.safetensors", weight_dtype="default"),
        "2": node("LoraLoaderModelOnly", model=["1", 0], lora_name="depth.safetensors", strength_model=strength),
        "3": node("DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors", type="flux"),
        "4": node("CLIPTextEncode", text="a fox", clip=["3", 0]),
        "5": node("FluxGuidance", conditioning=["4", 0], guidance=10.0),
        "6": node("VAELoader", vae_name="ae.safetensors"),
        "7": node("EmptyImage", width=64, height=48, batch_size=1, color=0x6699CC),
        "8": node("InstructPixToPixConditioning", positive=["5", 0], negative=["4", 0], vae=["6", 0], pixels=["7", 0]),
        "9": node(
            "KSampler", seed=1, steps=2, cfg=1, sampler_name="euler", scheduler="normal", denoise=1, model=["2", 0],
            positive=["8", 0], negative=["8", 1], latent_image=["8", 2],
        ),
        "10": node("VAEDecode", samples=["9", 0], vae=["6", 0]),
        "11": node("SaveImage", images=["10", 0], filename_prefix="x"),
    }  # fmt: skip


def test_a_depth_lora_makes_the_same_picture_managed_or_not(
    store: Path, here: Path, sluice_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a model of full size, from which on memory is managed; here every model is."""
    (here / "models/loras").mkdir(parents=True)
    state = load_file(store / "diffusion_models/flux1-dev.safetensors")
    save_file(adapter_files.control(state), here / "models/loras/depth.safetensors")

    def pixels(strength: float, *options: str) -> np.ndarray:
        (here / "api.json").write_text(json.dumps(depth_workflow(strength)))
        (path,) = sluice_run(here / "api.json", *options)
        with Image.open(path) as image:
            return np.asarray(image).astype(int)

    whole, plain = pixels(1.0), pixels(0.0)
    assert apart(whole, plain) > 20
    monkeypatch.setattr("sluice.flux_core.runtime.runtime.SMALL_BYTES", 0)
    plans: list[Plan] = []

    def noted(workload: Workload, budget: Budget, machine: Machine) -> Plan:
        plans.append(plan(workload, budget, machine))
        return plans[-1]

    monkeypatch.setattr(manager, "plan", noted)
    assert np.array_equal(pixels(1.0), whole) and np.array_equal(pixels(0.0), plain)
    assert any("double_blocks" in weight.name for made in plans for weight in made.workload.weights)
