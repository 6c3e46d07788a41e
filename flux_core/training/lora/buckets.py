"""Sizes that pictures are trained at: all of about one area, in the shapes that pictures have.

A picture is scaled until it covers the bucket whose shape is nearest to its own, and the middle of it is cut out.
Knows sizes only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import InputError

STEP = 64  # pixels: sides are multiples of it, of 16 (one token) for sizes below 256
WIDEST = 2.0  # width by height, at most


@dataclass(frozen=True, order=True)
class Bucket:
    """In pixels."""

    width: int
    height: int

    @property
    def tokens(self) -> int:
        return self.width * self.height // 256


def buckets(size: int) -> list[Bucket]:
    """Those with about the area of a square of `size` pixels; the square is among them. Raises InputError."""
    step = STEP if size >= 256 else 16
    if size % step or size < 2 * 16:
        raise InputError(f"--size is a multiple of {step} from {max(32, step)} on, not {size}.")
    found = {Bucket(size, size)}
    side = step
    while side * side <= size * size * WIDEST:
        other = size * size // side // step * step
        if other and max(side, other) / min(side, other) <= WIDEST:
            found |= {Bucket(side, other), Bucket(other, side)}
        side += step
    return sorted(found)


def bucket_for(width: int, height: int, among: list[Bucket]) -> Bucket:
    """The one whose shape is nearest."""
    shape = math.log(width / height)
    return min(among, key=lambda bucket: (abs(math.log(bucket.width / bucket.height) - shape), bucket))
