"""The rows of a stored matrix as float32, a few at a time and as often as they are asked for.

Independent of: what becomes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from torch import Tensor

from ..checkpoint.load import read
from ..checkpoint.stored import Stored
from ..quant.fp8 import FP8
from ..quant.rows import decoded_rows
from ..quant.rows import needed_bytes as decoding_bytes


class Rows:
    """One tensor, its bytes read once. Vectors and convolutions are one row."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.shape = stored.shape if len(stored.shape) == 2 else (1, prod(stored.shape))
        self._raw = read(stored)

    def __iter__(self) -> Iterator[Tensor]:
        """float32 [some rows, columns], from the first row on; a chunk is overwritten by the next."""
        stored = self.stored
        through = stored.through if stored.encoding.as_is and stored.format not in FP8 else None
        for chunk in decoded_rows(self._raw, stored.encoding, self.shape):
            if through is not None:
                chunk.copy_(chunk.to(FP8[through]))
            yield chunk


def needed_bytes(stored: Stored) -> int:
    """Of memory, to go through a tensor's rows."""
    return decoding_bytes(stored.encoding, stored.shape)
