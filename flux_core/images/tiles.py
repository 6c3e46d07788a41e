"""An image cut into overlapping tiles and put together again, by the rules of comfyui-tooling-nodes.

Images are [B, H, W, C], masks [B, H, W]. Tiles are numbered down first: `index` is row + column x rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Layout:
    """How an image of `size` (height, width) is cut: tiles of `tile` pixels, `padding` shared with each side."""

    size: tuple[int, int]
    tile: tuple[int, int]
    count: tuple[int, int]
    padding: int
    blending: int

    def place(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last row, first and last column of a tile. Raises InputError."""
        row, column = self._cell(index)
        return self._span(row, 0), self._span(column, 1)

    def _cell(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self.count[0] * self.count[1]:
            raise InputError(f"There is no tile {index}; there are {self.count[0] * self.count[1]}.")
        return index % self.count[0], index // self.count[0]

    def _span(self, cell: int, axis: int) -> tuple[int, int]:
        start = cell * (self.tile[axis] - 2 * self.padding)
        return start, min(start + self.tile[axis], self.size[axis])

    def cut(self, planes: Tensor, index: int) -> Tensor:
        """A tile of an image or a mask."""
        (top, bottom), (left, right) = self.place(index)
        return planes[:, top:bottom, left:right]

    def mask(self, index: int, blend: bool) -> Tensor:
        """[1, h, w]: 1 in the part that a tile does not share with its neighbours, with soft edges if `blend`."""
        cell, spans = self._cell(index), self.place(index)
        margin = self.padding if blend else self.padding - self.blending
        sides = []
        for axis, (start, end) in enumerate(spans):
            line = torch.zeros(end - start)
            first = margin if cell[axis] else 0
            last = end - start - (margin if cell[axis] < self.count[axis] - 1 else 0)
            line[first:last] = 1.0
            sides.append(line)
        made = (sides[0][:, None] * sides[1])[None]
        if blend and self.blending > 0:
            before, after = (self.blending - 1) // 2, self.blending // 2
            padded = F.pad(made[:, None], (before, after, before, after), mode="reflect")
            made = F.avg_pool2d(padded, self.blending, stride=1)[:, 0]
        return made

    def merge(self, image: Tensor, index: int, tile: Tensor) -> Tensor:
        """The image with a tile at its place."""
        (top, bottom), (left, right) = self.place(index)
        weight = self.mask(index, blend=True)[..., None].to(image)
        made = image.clone()
        made[:, top:bottom, left:right] = (1 - weight) * image[:, top:bottom, left:right] + weight * tile
        return made


def layout(height: int, width: int, smallest: int, padding: int, blending: int, multiple: int) -> Layout:
    """The most tiles of at least `smallest` pixels, multiples of `multiple`. Raises InputError for impossible sizes."""
    if height % multiple or width % multiple or smallest % multiple:
        raise InputError(f"The image ({width}x{height}) and its tiles ({smallest}) should be multiples of {multiple}.")
    if blending > padding or smallest <= 2 * padding:
        raise InputError(f"Tiles of {smallest} pixels cannot share {padding} with each side and blend {blending}.")
    count = tuple(max(1, side // (smallest - 2 * padding)) for side in (height, width))
    tile = []
    for side, number in zip((height, width), count, strict=True):
        overlapping = side + (number - 1) * 2 * padding
        tile.append(math.ceil(math.ceil(overlapping / number) / multiple) * multiple)
    return Layout((height, width), (tile[0], tile[1]), (count[0], count[1]), padding, blending)
