"""Weights that are converted to 8-bit integers when they are read: quantised once for each read.

So weights that stay on the device or in RAM are quantised once, and only those that come from the disk at every step
are quantised at every step. Wraps the source of the file's bytes; the stream sees weights of int8's size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checkpoint.integers import as_integers, quantised
from ..checkpoint.load import rounding
from ..checkpoint.stored import Stored
from ..quant.rows import needed_bytes
from .device import Wait
from .source import FileSource
from .streamed_weight import rounds


class QuantisingSource:
    """`weights` in the form in which the stream receives them; those that differ from the file are quantised from
    it.
    """

    slack = FileSource.slack

    def __init__(self, stored: Sequence[Stored], round_to: torch.dtype | None = None) -> None:
        """round_to: the type to which every value is rounded first, as if it were stored in it."""
        self.stored, self.weights = tuple(stored), tuple(map(as_integers, stored))
        self._file, self._round_to = FileSource(stored), round_to
        self._lock = threading.Lock()
        self._last: tuple[int, Tensor] | None = None  # a weight that is being read in pieces

    @property
    def bytes_read(self) -> int:
        """Bytes read from disk."""
        return self._file.bytes_read

    @property
    def working_bytes(self) -> int:
        """Bytes of RAM needed to quantise the largest weight."""
        made = zip(self.stored, self.weights, strict=True)
        return max(
            (needed_bytes(one.encoding, one.shape) + 2 * other.nbytes for one, other in made if one is not other),
            default=0,
        )

    def lead(self, weight: int) -> int:
        return 0 if self._changes(weight) else self._file.lead(weight)

    def read(self, weight: int, start: int, nbytes: int, window: memoryview) -> Wait:
        if not self._changes(weight):
            return self._file.read(weight, start, nbytes, window)

        def bring() -> None:
            with self._lock:
                if self._last is None or self._last[0] != weight:
                    self._last = weight, self._made(weight)
                raw = self._last[1]
                window[:nbytes] = raw.numpy().data[start : start + nbytes]
                if start + nbytes == len(raw):
                    self._last = None

        return bring

    def read_exact(self, weight: int, into: memoryview) -> Wait:
        if not self._changes(weight):
            return self._file.read_exact(weight, into)
        return self.read(weight, 0, len(into), into)

    def _changes(self, weight: int) -> bool:
        return self.stored[weight] is not self.weights[weight]

    def _made(self, weight: int) -> Tensor:
        """The raw bytes of a weight as integers."""
        stored = self.stored[weight]
        with torch.inference_mode(False), torch.no_grad():
            raw = torch.empty(stored.nbytes, dtype=torch.uint8)
            self._file.read_exact(weight, raw.numpy().data)()
            through = rounding(stored, self._round_to)
            return quantised(stored, raw, through if rounds(stored, through) else None)
