"""Writes the trained networks as files that other programs read: safetensors, in the layout of a models folder.

diffusion_models/sluice-tiny.safetensors      BFL's keys text_encoders/sluice-tiny-clip_l.safetensors  Hugging Face's
keys text_encoders/sluice-tiny-t5xxl.safetensors vae/sluice-tiny-ae.safetensors                BFL's keys
tokenizers/clip_l/, tokenizers/t5xxl/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..checkpoint.whole_files import safetensors
from ..io.saving import write_whole
from ..models.autoencoder import Autoencoder
from .system import System

FILES = {
    "transformer": "diffusion_models/sluice-tiny.safetensors",
    "clip": "text_encoders/sluice-tiny-clip_l.safetensors",
    "t5": "text_encoders/sluice-tiny-t5xxl.safetensors",
    "codec": "vae/sluice-tiny-ae.safetensors",
}
TOKENIZERS = "tokenizers"


def export(models: Path, system: System | None, codec: Autoencoder | None) -> None:
    """Write the given networks into the models folder, with weights as bfloat16."""
    parts: dict[str, nn.Module | None] = {"codec": codec}
    if system is not None:
        parts |= {"transformer": system.transformer, "clip": system.clip, "t5": system.t5}
    for part, module in parts.items():
        if module is not None:
            write_module(models / FILES[part], module)


def write_module(path: Path, module: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """All weights of a module as bfloat16. metadata: for the header, beside what every file has."""
    write_weights(path, module.state_dict(), metadata)


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Weights by name, as bfloat16."""
    write_safetensors(path, {name: tensor.bfloat16() for name, tensor in weights.items()}, metadata)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name, which replaces the old file when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, safetensors(tensors, {"format": "pt", "made_by": "sluice train", **(metadata or {})}))
