"""Matrices of small integers with scales beside them, as ComfyUI's quantised files store them (comfy/quant_ops.py).

    INT8    int8 [N, K]; scale [] or [N] or [N, 1]                           w = q s
    INT4    two's complement, [N, K / 2], even column in the low half; scale [N]   w = q s
    W4A8    codes [N, K / 2] of a table of 16 (codebook), times s_rel [N, K / group] and rounded to the integer that
            is multiplied; s_channel [N]                                     w = round(t[c] s_rel) s_channel
    W6A8    the low four bits of the codes [N, K / 2], then their high two [N, K / 4]; without a codebook
                                                                             w = round((c - 32) s_rel) s_channel
    AWQ4    codes [N, K / 2] of 0 to 15; scale and zeros [K / group, N]      w = (c - 8) scale + zeros

If an encoding has a rotation, the columns were rotated before they were quantised. The rotation is undone on whole
numbers, which is exact, and the scale is applied last: one rounding in float32.

Independent of: files, how integers are multiplied directly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .encoding import Encoding
from .lookup import look_up, nibbles_into
from .rotation import root, rotate
from .sides import codes_of, needed, side_of
from .workspace import fill_rows, scratch

Fill = Callable[[slice, Tensor], object]  # writes float32 [rows, columns]: these rows of the codes


def decode_int8(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
    codes = codes_of(raw, encoding).view(torch.int8).view(out.shape)
    _scaled(out, encoding, needed(raw, encoding, "scale"), lambda rows, floats: floats.copy_(codes[rows]))


def decode_int4(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
    codes = codes_of(raw, encoding).view(out.shape[0], -1)
    levels = _levels(codes, 8, wrapped=True)

    def unpack(rows: slice, floats: Tensor) -> None:
        nibbles_into(codes[rows].reshape(-1), levels, floats)

    _scaled(out, encoding, needed(raw, encoding, "scale"), unpack)


def decode_w4a8(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
    codes = codes_of(raw, encoding).view(out.shape[0], -1)
    levels = side_of(raw, encoding, "codebook")
    levels = _levels(codes, 8) if levels is None else levels

    def unpack(rows: slice, floats: Tensor) -> None:
        nibbles_into(codes[rows].reshape(-1), levels, floats)

    _grouped(raw, out, encoding, unpack)


def decode_w6a8(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
    codes, columns = codes_of(raw, encoding).view(out.shape[0], -1), out.shape[1]
    low = torch.arange(16, dtype=torch.float32, device=raw.device) - 32
    byte = torch.arange(256, device=raw.device)
    four = torch.stack([(byte >> shift & 3) * 16 for shift in (0, 2, 4, 6)], dim=1).float()

    def unpack(rows: slice, floats: Tensor) -> None:
        nibbles_into(codes[rows, : columns // 2].reshape(-1), low, floats)
        high = scratch("high", tuple(floats.shape), torch.float32, floats.device)
        look_up(four.view(torch.complex128).view(-1), codes[rows, columns // 2 :].reshape(-1),
                high.view(-1).view(torch.complex128))  # fmt: skip
        floats.add_(high)

    _grouped(raw, out, encoding, unpack)


def decode_awq4(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
    codes = codes_of(raw, encoding).view(out.shape[0], -1)
    levels = _levels(codes, 8)
    scale, zeros = (needed(raw, encoding, role).t().contiguous()[:, :, None] for role in ("scale", "zeros"))

    def fill(rows: slice, floats: Tensor) -> None:
        nibbles_into(codes[rows].reshape(-1), levels, floats)
        floats.view(len(floats), scale.shape[1], -1).mul_(scale[rows]).add_(zeros[rows])

    fill_rows(out, fill)


def _levels(like: Tensor, zero: int, wrapped: bool = False) -> Tensor:
    """The values of the codes 0 to 15: minus `zero`, or as two's complement."""
    codes = torch.arange(16, dtype=torch.float32, device=like.device)
    return torch.where(codes < zero, codes, codes - 16) if wrapped else codes - zero


def _scaled(out: Tensor, encoding: Encoding, scale: Tensor, unpack: Fill) -> None:
    """Decoder of integers times a number for each row, or one for all."""
    group = encoding.rotation
    by_row = (scale / root(group) if group else scale).reshape(-1, 1).expand(out.shape[0], 1)

    def fill(rows: slice, floats: Tensor) -> None:
        unpack(rows, floats)
        if group:
            rotate(floats, group)
        floats.mul_(by_row[rows])

    fill_rows(out, fill)


def _grouped(raw: Tensor, out: Tensor, encoding: Encoding, unpack: Fill) -> None:
    """Decoder of levels that are multiplied by their group's scale, rounded to integers, and multiplied by a number for
    each row.
    """
    relative = needed(raw, encoding, "s_rel")[:, :, None]

    def integers(rows: slice, floats: Tensor) -> None:
        unpack(rows, floats)
        floats.view(len(floats), relative.shape[1], -1).mul_(relative[rows])
        floats.round_().clamp_(-127, 127)

    _scaled(out, encoding, needed(raw, encoding, "s_channel"), integers)
