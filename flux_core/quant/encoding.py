"""How one matrix is encoded in bytes: the format of its codes, and where its scales and tables are.

The raw bytes of a matrix are its codes followed by its side tensors, in the order of `sides`. `formats.decode` converts
them to numbers. Uses no torch, so that headers can be read without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from .sizes import BLOCK

LEVELS = 127  # the largest code of 8-bit integers that are multiplied (int8.py)
MOST_COLUMNS = (2**31 - 1) // LEVELS**2  # the largest K of such a matrix for which every sum fits in 32 bits
MULTIPLE = 8  # its rows and columns are multiples of this, as cuBLAS requires


@dataclass(frozen=True)
class Side:
    """A small tensor that decoding needs beside the codes. `role` is its purpose; each format lists the roles it
    uses.
    """

    role: str
    format: str  # of its own numbers, in safetensors' names
    shape: tuple[int, ...]
    start: int  # byte of the raw bytes at which it begins
    block: int = (
        0  # how many neighbouring values share one of its numbers, 0 where the format or the shape determines it
    )

    @property
    def nbytes(self) -> int:
        values, nbytes = BLOCK[self.format]
        return prod(self.shape) * nbytes // values


@dataclass(frozen=True)
class Encoding:
    """One row of `formats.FORMATS`, with all facts about one matrix that the row needs.

    scale     multiplies every value after decoding
    sides     the tensors that follow the codes in the raw bytes
    rotation  width of the groups of columns to which a Hadamard matrix was applied, 0 for none
    offset    is added to scales that are themselves stored as codes (bitsandbytes' nested statistics)
    parts     used instead of all of these: the matrix consists of these parts, stacked by rows
    swapped   the lower half of the rows is stored first
    full_precision  the file requires that inputs are not quantised for the product, in whatever format the matrix is
    """

    format: str
    scale: float | None = None
    sides: tuple[Side, ...] = ()
    rotation: int = 0
    offset: float = 0.0
    parts: tuple[Part, ...] = ()
    swapped: bool = False
    full_precision: bool = False

    @property
    def as_is(self) -> bool:
        """Whether the raw bytes are numbers of `format` that need no further processing."""
        return self.scale is None and not (self.sides or self.parts or self.swapped)

    def side(self, role: str) -> Side | None:
        """The side tensor of this role, or None."""
        return next((side for side in self.sides if side.role == role), None)

    @property
    def codes_end(self) -> int | None:
        """Byte at which the codes end; None if nothing follows them."""
        return self.sides[0].start if self.sides else None

    def nbytes(self, shape: Sequence[int]) -> int:
        """Raw bytes of a matrix of this shape, codes and side tensors."""
        if self.parts:
            return sum(part.nbytes for part in self.parts)
        values, nbytes = BLOCK[self.format]
        return prod(shape) * nbytes // values + sum(side.nbytes for side in self.sides)


def rotates(group: int) -> bool:
    """Whether groups of this many columns can be rotated: the matrix exists for powers of four (rotation.py)."""
    return group >= 4 and group & (group - 1) == 0 and group.bit_length() % 2 == 1


@dataclass(frozen=True)
class Part:
    """Some rows of a matrix and their raw bytes, which have an encoding of their own."""

    rows: int
    nbytes: int
    encoding: Encoding


def multiplied_as_integers(encoding: Encoding, shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape and encoding is a matrix [N, K] that can be multiplied in integers as it is
    stored.
    """
    if len(shape) != 2:
        return False
    if encoding.parts:
        return all(multiplied_as_integers(part.encoding, (part.rows, shape[1])) for part in encoding.parts)
    fits = shape[0] % MULTIPLE == 0 and shape[1] % MULTIPLE == 0 and shape[1] <= MOST_COLUMNS
    plain = not encoding.swapped and not encoding.full_precision and encoding.scale is None
    return encoding.format == "INT8" and fits and plain
