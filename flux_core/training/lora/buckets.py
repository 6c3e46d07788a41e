"""The image sizes for training: all of about the same area, in the usual shapes of images.

An image is scaled until it covers the bucket with the nearest shape, and cropped to its centre. Depends on sizes only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import InputError

STEP = 64  # pixels: sides are multiples of this, or of 16 (one token) for sizes below 256
WIDEST = 2.0  # width divided by height, at most


@dataclass(frozen=True, order=True)
class Bucket:
    """A size in pixels."""

    width: int
    height: int

    @property
    def tokens(self) -> int:
        return self.width * self.height // 256


def buckets(size: int) -> list[Bucket]:
    """The buckets with about the area of a square of `size` pixels, including the square. Raises InputError."""
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
    """The bucket with the nearest shape."""
    shape = math.log(width / height)
    return min(among, key=lambda bucket: (abs(math.log(bucket.width / bucket.height) - shape), bucket))
