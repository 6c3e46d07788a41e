"""The two eight-bit floats: codes to values by table, values to codes by table.

PyTorch converts fp8 on a CPU one code at a time (0.3 G weights/s per core). Here two neighbouring codes are one 16-bit
index into 65,536 pairs of values: a quarter megabyte for two-byte values, which fits in a core's second-level cache,
and one load and one store for two weights. The tables are made by PyTorch's own conversion, so every code, including
NaN and subnormals, gives the same bits as `tensor.to`. Where a C compiler is installed, a compiled function does the
same for large matrices two to three times as fast (processor/c_functions.py). On an accelerator the plain conversion
is the fast one.

    e4m3fn   s eeee mmm    bias 7, no infinity, 0x7f and 0xff are NaN     (Micikevicius et al. 2022)
    e5m2     s eeeee mm    bias 15, infinities and NaN as IEEE 754: the upper byte of a float16

Independent of: files, scales, matrices.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..processor.c_functions import decoder
from .lookup import look_up
from .workspace import chunk_values, scratch

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
LARGE = 1 << 20  # codes of a matrix for which the compiled decoder is used, and made at the first one
_PAIR = {2: torch.int32, 4: torch.int64}  # size of a value -> integer as wide as two of them


def decode_fp8(raw: Tensor, out: Tensor, format: str) -> None:
    """Codes `raw` [n] uint8 -> values `out` [n], contiguous, float32, float16 or bfloat16. Exact."""
    compiled = decoder(out.dtype) if raw.device.type == "cpu" and format == "F8_E4M3" and raw.numel() >= LARGE else None
    if compiled is not None:
        compiled(raw, out)
        return
    paired = raw.numel() & ~1
    if raw.device.type != "cpu" or out.element_size() not in _PAIR or raw.storage_offset() & 1 or paired == 0:
        out.copy_(raw.view(FP8[format]))
        return
    table = _pairs(format, out.dtype)
    look_up(table, raw[:paired].view(torch.uint16), out[:paired].view(table.dtype))
    if paired < raw.numel():
        out[paired:].copy_(raw[paired:].view(FP8[format]))


def half_to_bfloat(halves: Tensor, out: Tensor) -> None:
    """float16 [n] -> bfloat16 [n], which may be the same memory. Converts through float32, which is three times as fast
    on a CPU.
    """
    chunk = chunk_values(halves.device)
    for start in range(0, halves.numel(), chunk):
        part = halves[start : start + chunk]
        floats = scratch("floats", tuple(part.shape), torch.float32, halves.device)
        out[start : start + chunk].copy_(floats.copy_(part))


def encode_fp8(values: Tensor, format: str) -> Tensor:
    """Values of any shape -> codes [n] uint8, rounded to nearest, as `values.to(float8)` does."""
    flat = values.detach().reshape(-1)
    if flat.device.type != "cpu" or flat.element_size() != 2:
        return flat.to(FP8[format]).view(torch.uint8)
    out = torch.empty(flat.numel(), dtype=torch.uint8)
    table = _codes(format, flat.dtype)
    bits = flat.view(torch.uint16)
    chunk = chunk_values(flat.device)
    for start in range(0, flat.numel(), chunk):
        part = bits[start : start + chunk]
        index = scratch("index", tuple(part.shape), torch.int32, part.device).copy_(part)
        torch.index_select(table, 0, index, out=out[start : start + chunk])
    return out


@cache
def _pairs(format: str, dtype: torch.dtype) -> Tensor:
    """All 65,536 pairs of codes -> the pair of values, as one integer each. The first code is the lower byte."""
    with torch.inference_mode(False):
        codes = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.uint8)
        pairs = codes.view(FP8[format]).to(dtype)
        return pairs.view(_PAIR[pairs.element_size()])


@cache
def _codes(format: str, dtype: torch.dtype) -> Tensor:
    """The codes of all 65,536 values of a two-byte type."""
    with torch.inference_mode(False):
        values = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
        return values.to(FP8[format]).view(torch.uint8)
