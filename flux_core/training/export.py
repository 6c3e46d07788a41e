"""The trained networks in the files that everybody reads: safetensors, in the layout of a models folder.

diffusion_models/sluice-tiny.safetensors      BFL's keys
text_encoders/sluice-tiny-clip_l.safetensors  Hugging Face's keys
text_encoders/sluice-tiny-t5xxl.safetensors
vae/sluice-tiny-ae.safetensors                BFL's keys
tokenizers/clip_l/, tokenizers/t5xxl/
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..models.autoencoder import Autoencoder
from .system import System

FILES = {
    "transformer": "diffusion_models/sluice-tiny.safetensors",
    "clip": "text_encoders/sluice-tiny-clip_l.safetensors",
    "t5": "text_encoders/sluice-tiny-t5xxl.safetensors",
    "codec": "vae/sluice-tiny-ae.safetensors",
}
TOKENIZERS = "tokenizers"
ALIGNMENT = 8  # bytes; the header is padded with spaces so that the tensors start aligned


def export(models: Path, system: System | None, codec: Autoencoder | None) -> None:
    """Write what is given into the models folder, weights as bfloat16."""
    parts = {"codec": codec}
    if system is not None:
        parts |= {"transformer": system.transformer, "clip": system.clip, "t5": system.t5}
    for part, module in parts.items():
        if module is not None:
            path = models / FILES[part]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, {name: tensor.bfloat16() for name, tensor in module.state_dict().items()})


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One bfloat16 safetensors file: 8 bytes of header length, the header as JSON, then the tensors one after another.

    It is written beside the old file and takes its place when it is whole.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", "made_by": "sluice train"}}
    position, parts = 0, []
    for name in sorted(tensors):
        data = tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [position, position + len(data)],
        }  # fmt: skip
        position += len(data)
        parts.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    os.replace(fresh, path)
