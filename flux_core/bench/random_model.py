"""Files of the published sizes with random weights, for measurements without a download.

The names and shapes are the real ones, and the bytes are the same on every machine. Several threads write slices of one
block of random numbers at once, so that only the speed of the disk, or of RAM for a file system in RAM, limits them.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import torch
from torch import nn

from ..checkpoint.gguf_file import TYPES
from ..io.descriptors import drop_cached
from ..memory.workload import MiB
from ..models.autoencoder import Autoencoder, AutoencoderConfig
from ..models.clip_text import ClipConfig, ClipTextModel
from ..models.flux import Flux
from ..models.flux_config import FluxConfig
from ..models.t5 import T5Config, T5Encoder
from ..quant.sizes import BLOCK, nbytes_of

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
POOL = 1 << 24  # random numbers from which all weights are taken
SPREAD = 0.02  # their standard deviation
THREADS = 8  # that write: a single one fills new pages of RAM at 2 GB/s
PART = 256 * MiB  # bytes that a thread writes between two waits for the disk
ALIGNMENT = 32  # of tensors in a GGUF file
Line = tuple[str, tuple[int, ...], str, int]  # name, shape, format, offset within the data


def flux(depth: int = 19, depth_single: int = 38, hidden: int = 3072) -> nn.Module:
    """FLUX.1-dev, or one of fewer blocks or another width."""
    heads = hidden // 128
    return Flux(FluxConfig(16, 16, hidden, heads, 128, 4 * hidden, depth, depth_single, 4096, 768, True, (16, 56, 56)))


def t5(layers: int = 24) -> nn.Module:
    """T5-XXL."""
    return T5Encoder(T5Config(vocabulary=32128, width=4096, inner=4096, heads=64, mlp=10240, layers=layers))


def clip() -> nn.Module:
    """CLIP-L."""
    return ClipTextModel(
        ClipConfig(vocabulary=49408, positions=77, width=768, mlp=3072, layers=12, heads=12, eos_token_id=49407)
    )


def autoencoder(width: int = 128) -> Autoencoder:
    """The FLUX autoencoder, or a narrower one."""
    return Autoencoder(AutoencoderConfig(channels=3, ch=width, ch_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=16))


def write(path: Path, make: Callable[[], nn.Module], format: str) -> int:
    """Write a file of the module that `make` returns, its matrices stored as `format`: GGUF for Q8_0, else safetensors.

    Returns its bytes.
    """
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    lines, end = list[Line](), 0
    for name, shape in shapes.items():
        stored = "F32" if format == "Q8_0" and len(shape) == 1 else format
        lines.append((name, shape, stored, end))
        end += nbytes_of(stored, shape)
        end += -end % ALIGNMENT if format == "Q8_0" else 0
    header = _gguf(lines) if format == "Q8_0" else _safetensors(lines)
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + end)
    pools = {stored: _pool(stored) for stored in {line[2] for line in lines}}

    def write_one(line: Line) -> None:
        name, shape, stored, offset = line
        with path.open("r+b", buffering=0) as stream:
            stream.seek(len(header) + offset)
            pending = 0
            for part in _parts(name, shape, stored, pools[stored]):
                pending += len(part)
                while part:
                    part = part[stream.write(part) :]
                if pending > PART:
                    pending = 0
                    _drop(stream.fileno())
            _drop(stream.fileno())

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write_one, sorted(lines, key=lambda line: -prod(line[1]))))
    return len(header) + end


def _safetensors(lines: list[Line]) -> bytes:
    header = {
        name: {"dtype": format, "shape": shape, "data_offsets": [offset, offset + nbytes_of(format, shape)]}
        for name, shape, format, offset in lines
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _gguf(lines: list[Line]) -> bytes:
    """See checkpoint/gguf_file.py."""
    numbers = {format: number for number, format in TYPES.items()}

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, len(lines), 1) + text("general.architecture") + struct.pack("<I", 8)
    out += text("flux")
    for name, shape, format, offset in lines:
        sides = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        out += text(name) + sides + struct.pack("<IQ", numbers[format], offset)
    return out + bytes(-len(out) % ALIGNMENT)


def _pool(format: str) -> memoryview:
    """POOL random numbers, small enough that products of many layers stay in range."""
    generator = torch.Generator().manual_seed(0)
    if format == "Q8_0":
        codes = torch.randint(-127, 128, (POOL // 32, 32), dtype=torch.int8, generator=generator).view(torch.uint8)
        step = torch.full((POOL // 32, 1), SPREAD / 73, dtype=torch.float16).view(torch.uint8)
        return torch.cat((step, codes), dim=1).view(-1).numpy().data
    numbers = torch.randn(POOL, generator=generator) * SPREAD
    return numbers.to(DTYPES[format]).view(torch.uint8).numpy().data


def _parts(name: str, shape: tuple[int, ...], format: str, pool: memoryview) -> Iterator[memoryview]:
    """The bytes of a tensor: ones for norms, numbers of the pool for all others."""
    count, (values, nbytes) = prod(shape), BLOCK[format]
    if len(shape) == 1 and not name.endswith("bias"):
        yield torch.ones(count).to(DTYPES[format]).view(torch.uint8).numpy().data
        return
    start = zlib.crc32(name.encode()) % POOL // values * values
    while count:
        part = min(count, POOL - start)
        yield pool[start // values * nbytes : (start + part) // values * nbytes]
        count, start = count - part, 0


def _drop(descriptor: int) -> None:
    """Remove the file from the page cache, so that the next measurement reads from the disk."""
    os.fsync(descriptor)
    drop_cached(descriptor)
