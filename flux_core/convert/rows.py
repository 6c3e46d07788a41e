"""The rows of a stored matrix as float32, a few at a time and as often as they are asked for.

Does not know: what becomes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ..checkpoint.load import read
from ..checkpoint.stored import Stored
from ..quant.encoding import Encoding
from ..quant.formats import decode, decode_into
from ..quant.fp8 import FP8

CHUNK = 1 << 20  # values at a time: what a processor's caches hold
WORK = 96 << 20  # bytes that encoding a chunk takes at most


class Rows:
    """One tensor, its bytes read once. Vectors and convolutions are one row."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.shape = stored.shape if len(stored.shape) == 2 else (1, prod(stored.shape))
        self._raw = read(stored)
        self._whole: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        """float32 [some rows, columns], from the first row on; a chunk is overwritten by the next."""
        rows, columns = self.shape
        count = max(1, CHUNK // max(columns, 1))
        chunk = torch.empty(min(count, rows), columns)
        for start in range(0, rows, count):
            part = chunk[: min(count, rows - start)]
            self._decode(start, part)
            yield part

    def _decode(self, start: int, out: Tensor) -> None:
        encoding = self.stored.encoding
        if _by_row(encoding):
            row = encoding.nbytes((1, self.shape[1]))
            decode_into(self._raw[start * row : (start + len(out)) * row], out, encoding)
        else:
            if self._whole is None:
                self._whole = decode(self._raw, encoding, self.shape, torch.float32)
            out.copy_(self._whole[start : start + len(out)])
        through = self.stored.through
        if through is not None and encoding.as_is and encoding.format not in FP8:
            out.copy_(out.to(FP8[through]))


def needed_bytes(stored: Stored) -> int:
    """Of memory, to go through a tensor's rows: its bytes, and its numbers where rows have no bytes of their own."""
    numbers = 0 if _by_row(stored.encoding) else 4 * stored.numel
    return stored.nbytes + numbers + WORK


def _by_row(encoding: Encoding) -> bool:
    """Whether each row is so many bytes that can be decoded alone."""
    return replace(encoding, scale=None).as_is
