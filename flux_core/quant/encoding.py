"""How one matrix is encoded in bytes: the format of its codes, and where its scales and tables lie behind them.

The raw bytes of a matrix are its codes and after them its side tensors, in the order of `sides`. `formats.decode`
makes numbers of them. Knows no torch, so that headers can be read without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from .sizes import BLOCK


@dataclass(frozen=True)
class Side:
    """A small tensor that decoding needs beside the codes. `role` says what for; see the row of the format."""

    role: str
    format: str  # of its own numbers, as safetensors writes it
    shape: tuple[int, ...]
    start: int  # byte of the raw bytes at which it begins

    @property
    def nbytes(self) -> int:
        values, nbytes = BLOCK[self.format]
        return prod(self.shape) * nbytes // values


@dataclass(frozen=True)
class Encoding:
    """One row of `formats.FORMATS` with everything that this row has to know about one matrix.

    scale     multiplies every value after decoding
    sides     the tensors that follow the codes in the raw bytes
    rotation  width of the groups of columns that a Hadamard matrix was applied to, 0 for none
    offset    is added to scales that are themselves stored as codes (bitsandbytes' nested statistics)
    parts     instead of all of that: the matrix is made of these, one below the other
    swapped   the lower half of the rows is stored first
    """

    format: str
    scale: float | None = None
    sides: tuple[Side, ...] = ()
    rotation: int = 0
    offset: float = 0.0
    parts: tuple[Part, ...] = ()
    swapped: bool = False

    @property
    def as_is(self) -> bool:
        """Whether the raw bytes are numbers of `format` and nothing more has to be done to them."""
        return self == Encoding(self.format)

    def side(self, role: str) -> Side | None:
        """The side tensor of this role, if there is one."""
        return next((side for side in self.sides if side.role == role), None)

    def nbytes(self, shape: Sequence[int]) -> int:
        """Raw bytes of a matrix of this shape, codes and side tensors."""
        if self.parts:
            return sum(part.nbytes for part in self.parts)
        values, nbytes = BLOCK[self.format]
        return prod(shape) * nbytes // values + sum(side.nbytes for side in self.sides)


@dataclass(frozen=True)
class Part:
    """So many rows of a matrix, and so many of its raw bytes, which are encoded in a way of their own."""

    rows: int
    nbytes: int
    encoding: Encoding
