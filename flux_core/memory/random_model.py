"""Files of the published sizes with weights that mean nothing: to measure with, without downloading anything.

Real names, real shapes, the same bytes on every machine. Written once from front to back, a slice of one block of
random numbers for each tensor, so that it takes as long as the disk needs and no longer.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from torch import nn

from ..autoencoder import Autoencoder, AutoencoderConfig
from ..checkpoint.stored import nbytes_of
from ..text.clip import ClipConfig, ClipTextModel
from ..text.t5 import T5Config, T5Encoder
from ..transformer import Flux, FluxConfig
from .workload import MiB

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
POOL = 1 << 24  # random numbers all weights are taken from
SPREAD = 0.02  # their standard deviation
FLUSH = 512 * MiB  # written between two waits for the disk


def flux(depth: int = 19, depth_single: int = 38, hidden: int = 3072) -> nn.Module:
    """FLUX.1-dev, or one of fewer blocks or another width."""
    heads = hidden // 128
    return Flux(
        FluxConfig(16, 16, hidden, heads, 128, 4 * hidden, depth, depth_single, 4096, 768, True, (16, 56, 56))
    )


def t5(layers: int = 24) -> nn.Module:
    """T5-XXL."""
    return T5Encoder(T5Config(vocabulary=32128, width=4096, inner=4096, heads=64, mlp=10240, layers=layers))


def clip() -> nn.Module:
    """CLIP-L."""
    return ClipTextModel(
        ClipConfig(vocabulary=49408, positions=77, width=768, mlp=3072, layers=12, heads=12, eos_token_id=49407)
    )


def autoencoder() -> nn.Module:
    """The FLUX autoencoder."""
    return Autoencoder(AutoencoderConfig(channels=3, ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=16))


def write(path: Path, make: Callable[[], nn.Module], format: str) -> int:
    """Write a safetensors file of the module `make` makes, stored as `format`. Returns its bytes."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = nbytes_of(format, shape)
        header[name] = {"dtype": format, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        _write_all(stream.fileno(), stream, _parts(shapes, format))
    return 8 + len(text) + end


def _parts(shapes: Mapping[str, tuple[int, ...]], format: str) -> Iterator[memoryview]:
    """The bytes of every tensor in turn: norms are ones, the rest comes out of the pool."""
    numbers = torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * SPREAD
    pool = memoryview(numbers.to(DTYPES[format]).view(torch.uint8).numpy())
    size = len(pool) // POOL
    for name, shape in shapes.items():
        count = prod(shape)
        if len(shape) == 1 and not name.endswith("bias"):
            yield memoryview(torch.ones(count).to(DTYPES[format]).view(torch.uint8).numpy())
            continue
        start = zlib.crc32(name.encode()) % POOL
        while count:
            part = min(count, POOL - start)
            yield pool[start * size : (start + part) * size]
            count, start = count - part, 0


def _write_all(descriptor: int, stream: object, parts: Iterator[memoryview]) -> None:
    """Leave nothing in the page cache: the next thing to be measured is the disk."""
    stream.flush()  # type: ignore[attr-defined]
    pending = 0
    for part in parts:
        while part:
            part = part[os.write(descriptor, part) :]
        pending += len(part)
        if pending > FLUSH:
            pending = 0
            _drop(descriptor)
    _drop(descriptor)


def _drop(descriptor: int) -> None:
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
