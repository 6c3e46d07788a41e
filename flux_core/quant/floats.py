"""Matrices of four- and eight-bit floats in which a few neighbouring values share a scale.

    NF4     codes of a table of 16 (map), the first in the high half of a byte; absmax, one for each 64. bitsandbytes
    FP4     the same with another table
            absmax is float32, or codes of a table of 256 (nested_map) times nested_absmax, one for each 256, plus
            the encoding's offset
    NVFP4   E2M1, the first in the high half; scale e4m3, one for each 16 of a row, in tensor cores' order; scale_2,
            one number; pre [K], which multiplies the inputs                    w = e2m1 (scale_2 scale) pre
    MXFP8   e4m3; scale e8m0, one for each 32 of a row, in tensor cores' order  w = q 2^(e - 127), 0 where e is 0

Sources: bitsandbytes 0.50 (functional.py), ComfyUI (comfy/quant_ops.py), OCP Microscaling Formats 1.0.

Independent of: files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .encoding import Encoding
from .fp8 import decode_fp8
from .lookup import nibbles_into
from .sides import codes_of, needed, side_of, unswizzled
from .workspace import chunk_values, fill_rows, scratch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
NV_BLOCK, MX_BLOCK = 16, 32


def decode_bnb4(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
    """NF4 and FP4. Blocks continue from one row to the next."""
    codes, levels = codes_of(raw, encoding), needed(raw, encoding, "map")
    absmax, side = _statistics(raw, encoding), encoding.side("absmax")
    assert side is not None
    values, block = out.view(-1), side.block
    chunk = chunk_values(raw.device) // block * block
    for start in range(0, values.numel(), chunk):
        target = values[start : start + chunk]
        direct = out.dtype is torch.float32
        floats = target if direct else scratch("floats", tuple(target.shape), torch.float32, raw.device)
        nibbles_into(codes[start // 2 : (start + len(target)) // 2], levels, floats, high_first=True)
        floats.view(-1, block).mul_(absmax[start // block : (start + len(target)) // block, None])
        if not direct:
            target.copy_(floats)


def _statistics(raw: Tensor, encoding: Encoding) -> Tensor:
    """The absmax of every block, float32."""
    absmax = needed(raw, encoding, "absmax")
    nested, table = side_of(raw, encoding, "nested_absmax"), side_of(raw, encoding, "nested_map")
    if nested is None or table is None:
        return absmax.float()
    side = encoding.side("nested_absmax")
    assert side is not None
    wide = nested.repeat_interleave(side.block)[: absmax.numel()]
    return table[absmax.int()].mul_(wide).add_(encoding.offset)


def decode_nvfp4(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
    codes = codes_of(raw, encoding).view(out.shape[0], -1)
    levels = torch.tensor(E2M1, device=raw.device)
    scale = unswizzled(needed(raw, encoding, "scale"), out.shape[0], out.shape[1] // NV_BLOCK)
    scale = (scale * needed(raw, encoding, "scale_2"))[:, :, None]
    pre = side_of(raw, encoding, "pre")

    def fill(rows: slice, floats: Tensor) -> None:
        nibbles_into(codes[rows].reshape(-1), levels, floats, high_first=True)
        floats.view(len(floats), -1, NV_BLOCK).mul_(scale[rows])
        if pre is not None:
            floats.mul_(pre)

    fill_rows(out, fill)


def decode_mxfp8(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
    codes = codes_of(raw, encoding).view(out.shape)
    exponents = unswizzled(needed(raw, encoding, "scale"), out.shape[0], out.shape[1] // MX_BLOCK)
    scale = (exponents.int() << 23).view(torch.float32)[:, :, None]  # 2^(e - 127); of e = 0 it makes 0

    def fill(rows: slice, floats: Tensor) -> None:
        decode_fp8(codes[rows].reshape(-1), floats.view(-1), "F8_E4M3")
        floats.view(len(floats), -1, MX_BLOCK).mul_(scale[rows])

    fill_rows(out, fill)
