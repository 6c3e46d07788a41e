"""Reads and writes small safetensors files as a whole: latents, upscale models, results of training.

Models of any size go through load.py instead, which reads only what it needs. Independent of: what the tensors mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..quant.formats import PLAIN, decode
from .files import open_weights
from .load import read
from .stored import whole

_NAMES = {dtype: name for name, dtype in PLAIN.items()}
_ALIGNMENT = 8  # bytes; the header is padded with spaces so that the tensors start aligned


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by its name, in its stored format. Raises the errors of `open_weights`."""
    file = open_weights(path)
    stored = {name: whole(file, entry) for name, entry in file.entries.items()}
    return {name: decode(read(one), one.encoding, one.shape) for name, one in stored.items()}


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file: 8 bytes of header length, the header as JSON, then the tensors one after another."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position, parts = 0, []
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        data = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + len(data)],
        }
        position += len(data)
        parts.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)
