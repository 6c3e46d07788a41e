"""Files of random weights with the names in ComfyUI's example images for FLUX.1.

Layouts and shapes are those of the published files. Transformers and ControlNets have fewer blocks and, if asked,
another width; T5 has its published width, layers and vocabulary, but fewer heads and a narrower middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from doubles.diffusers_names import diffusers_weights
from safetensors.torch import load_file, save_file
from sluice.flux_core.bench import random_model
from sluice.flux_core.models.clip_vision import VisionConfig, VisionEncoder
from sluice.flux_core.models.controlnet import ControlNet
from sluice.flux_core.models.controlnet_config import ControlNetConfig
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.redux import Redux, ReduxConfig
from sluice.flux_core.models.style_projector import StyleConfig, StyleProjector
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from torch import Tensor

T5_HEADS, T5_MLP = 2, 64
T5_QUERIES = 0.125  # T5 divides no products by the root of 64: with larger queries float32 is not exact enough
VISION_LAYERS = 27
PUBLISHED_WIDTH = 3072  # for which random_model's weights have a spread that keeps values in range
RANK = 16
FP8 = torch.float8_e4m3fn
File = dict[str, Tensor]


def write_models(models: Path, hidden: int, depth: int, depth_single: int) -> None:
    """Write all of them below `models`, in folders as ComfyUI's."""
    sizes = FluxConfig(
        16, 16, hidden, hidden // 128, 128, 4 * hidden, depth, depth_single, 4096, 768, True, (16, 56, 56)
    )  # fmt: skip
    _encoders(models)
    diffusion = models / "diffusion_models"
    diffusion.mkdir()
    for name, channels, guidance in (
        *(("flux1-dev", 16, True), ("flux1-schnell", 16, False), ("flux1-kontext-dev", 16, True)),
        *(("flux1-canny-dev", 32, True), ("flux1-fill-dev", 96, True)),
    ):
        config = replace(sizes, in_channels=channels, guidance=guidance)
        path = diffusion / f"{name}.safetensors"
        random_model.write(path, partial(Flux, config), "BF16")
        if hidden != PUBLISHED_WIDTH:
            _scale(path, ".weight", (PUBLISHED_WIDTH / hidden) ** 0.5)
    projector = models / "model_patches" / "uso-flux1-projector-v1.safetensors"
    projector.parent.mkdir()
    random_model.write(projector, partial(StyleProjector, StyleConfig(729, 1152, 64, hidden)), "F32")
    save_file({f"feature_embedder.{name}": value for name, value in load_file(projector).items()}, projector)
    (models / "checkpoints").mkdir()
    for name in ("flux1-dev", "flux1-schnell"):
        save_file(_checkpoint(models, name), models / "checkpoints" / f"{name}-fp8.safetensors")
    (models / "loras").mkdir()
    lora = _control_lora(load_file(diffusion / "flux1-dev.safetensors"))
    save_file(lora, models / "loras" / "flux1-depth-dev-lora.safetensors")
    (models / "controlnet").mkdir()
    for name, file in _controlnets(models, replace(sizes, depth=1, depth_single=0)):
        save_file(file, models / "controlnet" / f"{name}.safetensors")


def _encoders(models: Path) -> None:
    """Text and vision encoders, the autoencoder, Redux."""
    vision = VisionConfig(1152, 4304, VISION_LAYERS, 16, 14, 384, True, "tanh")
    t5 = T5Config(vocabulary=32128, width=4096, inner=64 * T5_HEADS, heads=T5_HEADS, mlp=T5_MLP, layers=24)
    for name, make, format in (
        ("text_encoders/clip_l", random_model.clip, "F16"),
        ("text_encoders/t5xxl_fp16", partial(T5Encoder, t5), "F16"),
        ("vae/ae", random_model.autoencoder, "F32"),
        ("clip_vision/sigclip_vision_patch14_384", partial(VisionEncoder, vision), "F16"),
        ("style_models/flux1-redux-dev", partial(Redux, ReduxConfig(1152, 12288, 4096)), "BF16"),
    ):
        path = models / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        random_model.write(path, make, format)
    _scale(models / "text_encoders" / "t5xxl_fp16.safetensors", ".SelfAttention.q.weight", T5_QUERIES)


def _scale(path: Path, ending: str, factor: float) -> None:
    """Multiply the matrices of a file whose names end so."""
    file = load_file(path)
    for name, value in file.items():
        if name.endswith(ending) and value.ndim > 1:
            file[name] = value * factor
    save_file(file, path)


def _checkpoint(models: Path, name: str) -> File:
    """All parts in one file, the matrices of the transformer and of T5 in fp8."""
    parts = (
        ("diffusion_models", name, "model.diffusion_model.", FP8),
        ("text_encoders", "clip_l", "text_encoders.clip_l.transformer.", torch.float16),
        ("text_encoders", "t5xxl_fp16", "text_encoders.t5xxl.transformer.", FP8),
        ("vae", "ae", "vae.", torch.float32),
    )
    return {
        prefix + key: value.to(dtype).contiguous()
        for folder, file, prefix, dtype in parts
        for key, value in load_file(models / folder / f"{file}.safetensors").items()
    }


def _control_lora(state: Mapping[str, Tensor]) -> File:
    """A LoRA of Depth's kind: every matrix of the blocks, the norms' scales, and an input that is twice as wide."""
    generator = torch.Generator().manual_seed(3)
    file: File = {}
    for name, weight in state.items():
        module, _, part = name.rpartition(".")
        if part == "scale":
            file[name] = (1 + 0.1 * torch.randn(weight.shape, generator=generator)).bfloat16()
        if part == "weight" and ("_blocks." in name or module == "img_in"):
            rows, columns = weight.shape[0], weight.shape[1] * (2 if module == "img_in" else 1)
            file[f"{module}.lora_A.weight"] = (torch.randn(RANK, columns, generator=generator) * 0.02).bfloat16()
            file[f"{module}.lora_B.weight"] = (torch.randn(rows, RANK, generator=generator) * 0.05).bfloat16()
            file[f"{module}.lora_B.bias"] = (torch.randn(rows, generator=generator) * 0.02).bfloat16()
    return file


def _controlnets(models: Path, body: FluxConfig) -> Iterator[tuple[str, File]]:
    """One of each family: InstantX, its union, alimama for inpainting (diffusers' names), XLabs (BFL's names)."""
    for name, channels, modes in (("instantx_flux_canny", 16, 0), ("union", 16, 10), ("alimama_inpaint", 17, 0)):
        state = _controlnet(models, ControlNetConfig(body, "latent", channels, modes))
        outside = {key: value for key, value in state.items() if "controlnet_" in key or "pos_embed_input" in key}
        last = {
            "final_layer.linear": (64, body.hidden),
            "final_layer.adaLN_modulation.1": (2 * body.hidden, body.hidden),
        }  # which no ControlNet has
        for module, shape in last.items():
            state |= {f"{module}.weight": torch.zeros(shape), f"{module}.bias": torch.zeros(shape[:1])}
        named = diffusers_weights(state, body)
        named = {key: value for key, value in named.items() if not key.startswith(("proj_out", "norm_out"))}
        for part in ("weight", "bias"):
            named[f"controlnet_x_embedder.{part}"] = outside.pop(f"pos_embed_input.{part}")
        yield name, {key: value.contiguous() for key, value in (named | outside).items()}
    yield "xlabs_canny", _controlnet(models, ControlNetConfig(body, "picture", 16))


def _controlnet(models: Path, config: ControlNetConfig) -> File:
    path = models / "controlnet" / "in-our-names.safetensors"
    random_model.write(path, partial(ControlNet, config), "BF16")
    if config.body.hidden != PUBLISHED_WIDTH:
        _scale(path, ".weight", (PUBLISHED_WIDTH / config.body.hidden) ** 0.5)
    state: File = load_file(path)
    path.unlink()
    return state
