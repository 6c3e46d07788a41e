"""A safetensors file of zeros in float16, written without torch, for tests that read only headers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

HIDDEN = 192  # of the shipped model


def zeros_file(place: Path, shapes: Shapes, metadata: Mapping[str, str] | None = None) -> None:
    """Write the file, and the folders above it."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    end = 0
    for name, shape in shapes.items():
        size = 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def lora_shapes(hidden: int = HIDDEN, rank: int = 4, block: int = 0) -> Shapes:
    """Of a LoRA for one matrix of a FLUX.1 transformer, as diffusers names it."""
    module = f"transformer.single_transformer_blocks.{block}.attn.to_q"
    return {f"{module}.lora_B.weight": (hidden, rank), f"{module}.lora_A.weight": (rank, hidden)}
