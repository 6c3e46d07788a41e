"""Extracts codes and side tensors from the raw bytes of a matrix.

Independent of: the meaning of a role.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .encoding import Encoding

NUMBERS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8,
    "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.uint8,
}  # fmt: skip


def codes_of(raw: Tensor, encoding: Encoding) -> Tensor:
    """uint8 [bytes]: the bytes before the side tensors."""
    return raw[: encoding.codes_end]


def side_of(raw: Tensor, encoding: Encoding, role: str) -> Tensor | None:
    """A side tensor as float32 in its own shape, as uint8 if its numbers are codes themselves; None if there is
    none.
    """
    side = encoding.side(role)
    if side is None:
        return None
    numbers = raw[side.start : side.start + side.nbytes]
    dtype = NUMBERS[side.format]
    if numbers.storage_offset() % dtype.itemsize:
        numbers = numbers.clone()  # a small copy, at an address that is aligned for such numbers
    numbers = numbers.view(dtype).view(side.shape)
    return numbers if dtype is torch.uint8 else numbers.float()


def needed(raw: Tensor, encoding: Encoding, role: str) -> Tensor:
    """A side tensor that is required to decode the format."""
    numbers = side_of(raw, encoding, role)
    assert numbers is not None, f"{encoding.format} without {role}"
    return numbers


def unswizzled(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Block scales in the order of tensor cores -> [rows, columns].

    They are stored in tiles of 128 rows x 4 columns, and within a tile as [32, 4 x 32 rows apart, 4]: row r of a tile
    is at (r % 32, r // 32). Source: NVIDIA, cuBLAS, "1D block scaling factors layout".
    """
    tall, wide = -(-rows // 128), -(-columns // 4)
    tiles = scales.reshape(tall, wide, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(tall * 128, wide * 4)[:rows, :columns]
