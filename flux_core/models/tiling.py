"""Process an image in overlapping tiles and blend them, so that memory depends on the tile, not on the image.

Uses neither images nor models: a function maps [1, C, h, w] to [1, C', h * scale, w * scale].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Size = tuple[int, int]
Elsewhere = Callable[[int], Tensor | None]  # number of a tile -> its result, None if it is to be computed here


def three_tilings(
    x: Tensor,
    function: Callable[[Tensor], Tensor],
    tile: int,
    overlap: int,
    scale: float,
    on_tile: Callable[[int, int], None] | None = None,
    elsewhere: Elsewhere | None = None,
) -> Tensor:
    """The mean of three tilings, with square, tall and wide tiles, whose seams lie in different places.

    `tile` and `overlap` are in cells of x. on_tile(done, total) is called after each tile. elsewhere: results of tiles
    that another process computes; the others are computed here.
    """
    sizes = _three_sizes(tile)
    total = x.shape[0] * sum(tiles(x, size, overlap) for size in sizes)
    done = itertools.count(1)

    def counted(part: Tensor) -> Tensor:
        number = next(done)
        made = None if elsewhere is None else elsewhere(number - 1)
        out = function(part) if made is None else made.to(part.device)
        if on_tile is not None:
            on_tile(number, total)
        return out

    first, *others = (tiled(x, counted, size, overlap, scale) for size in sizes)
    return sum(others, first) / 3


def parts_of_three_tilings(x: Tensor, tile: int, overlap: int) -> Iterator[Tensor]:
    """The tiles of x before they are computed, in the order of `three_tilings`."""
    for size in _three_sizes(tile):
        for item in x.split(1):
            if item.shape[-2] <= size[0] and item.shape[-1] <= size[1]:
                yield item
                continue
            for top, left in _corners(item, size, overlap):
                yield item[..., top : top + size[0], left : left + size[1]]


def _three_sizes(tile: int) -> list[Size]:
    return [(tile, tile), (tile * 2, tile // 2), (tile // 2, tile * 2)]


def tiles(x: Tensor, tile: Size, overlap: int) -> int:
    """The number of tiles of one item of x [B, C, h, w]."""
    return len(list(_corners(x, tile, overlap)))


def tiled(x: Tensor, function: Callable[[Tensor], Tensor], tile: Size, overlap: int, scale: float) -> Tensor:
    """One tiling of x [B, C, h, w] with tiles of `tile` = (height, width), blended linearly over `overlap` cells."""
    return torch.cat([_tiled_item(item, function, tile, overlap, scale) for item in x.split(1)])


def _tiled_item(x: Tensor, function: Callable[[Tensor], Tensor], tile: Size, overlap: int, scale: float) -> Tensor:
    height, width = x.shape[-2:]
    if height <= tile[0] and width <= tile[1]:
        return function(x)
    feather = round(overlap * scale)
    total = weights = torch.zeros(1, 1, round(height * scale), round(width * scale))
    for number, (top, left) in enumerate(_corners(x, tile, overlap)):
        part = function(x[..., top : top + tile[0], left : left + tile[1]])
        rows, columns = part.shape[-2:]
        if number == 0:  # channels, type and device are known only after the first tile
            total = part.new_zeros(1, part.shape[1], *weights.shape[-2:])
            weights = weights.to(part)
        ramp = (_ramp(rows, feather)[:, None] * _ramp(columns, feather)).to(part)
        y, x_ = round(top * scale), round(left * scale)
        total[..., y : y + rows, x_ : x_ + columns] += part * ramp
        weights[..., y : y + rows, x_ : x_ + columns] += ramp
    return total / weights


def _corners(x: Tensor, tile: Size, overlap: int) -> Iterator[Size]:
    """Top left corners of the tiles; the last tile of a row or column may be shorter."""
    axes = []
    for size, length in zip(x.shape[-2:], tile, strict=True):
        starts = range(0, size - overlap, length - overlap) if size > length else (0,)
        axes.append([max(0, min(start, size - overlap)) for start in starts])
    return itertools.product(axes[0], axes[1])


def _ramp(length: int, feather: int) -> Tensor:
    """Weights along one side of a tile: rising over `feather` cells at both ends."""
    weights = torch.ones(length)
    if feather < length:
        rise = torch.arange(1, feather + 1) / feather if feather else torch.ones(0)
        weights[:feather] *= rise
        weights[length - feather :] *= rise.flip(0)
    return weights
