"""Decodes the rows of a stored matrix to float32, a chunk at a time, so that the whole matrix is rarely in memory.

Independent of: where bytes come from, what the numbers are used for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from .encoding import Encoding
from .formats import decode, decode_into
from .workspace import chunk_values

WORK = 96 << 20  # bytes that encoding a chunk takes at most


def decoded_rows(raw: Tensor, encoding: Encoding, shape: Sequence[int]) -> Iterator[Tensor]:
    """float32 [some rows, columns], from the first row on; each chunk overwrites the one before. raw: uint8 [bytes]."""
    rows, columns = shape
    count = max(1, chunk_values(raw.device) // max(columns, 1))
    chunk = torch.empty(min(count, rows), columns, device=raw.device)
    whole = None if by_row(encoding) else decode(raw, encoding, shape, torch.float32)
    row = encoding.nbytes((1, columns)) if whole is None else 0
    for start in range(0, rows, count):
        part = chunk[: min(count, rows - start)]
        if whole is None:
            decode_into(raw[start * row : (start + len(part)) * row], part, encoding)
        else:
            part.copy_(whole[start : start + len(part)])
        yield part


def needed_bytes(encoding: Encoding, shape: Sequence[int]) -> int:
    """Memory in bytes needed to go through the rows: the stored bytes, and all numbers where rows cannot be decoded
    separately.
    """
    return encoding.nbytes(shape) + (0 if by_row(encoding) else 4 * prod(shape)) + WORK


def by_row(encoding: Encoding) -> bool:
    """Whether each row has its own bytes, which can be decoded separately."""
    return replace(encoding, scale=None).as_is
