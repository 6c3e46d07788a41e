"""The autoencoder under a budget: a whole image if there is enough memory, else the largest tiles that fit.

It is loaded for each conversion and freed afterwards; if necessary, resident weights of other models are freed for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import BudgetTooSmall
from ..memory.manager import Manager
from ..memory.workload import MiB
from ..models.tiling import Elsewhere
from .dry_run import dry_run

log = logging.getLogger(__name__)

TILES = (1024, 512, 256, 128)  # pixels a side, tried in this order; they overlap by an eighth
KERNELS = {"cpu": 1.6, "cuda": 1.1}  # factor on the result of a dry run, for memory that convolutions use internally
OnTile = Callable[[int, int], None] | None


@dataclass(frozen=True)
class Conversion:
    """Images to latents or back: a method of the module, and the method of the same name with `_tiled`."""

    method: str
    axes: tuple[int, int]  # height and width of x
    scale: int  # pixels along one side of a cell of x

    def run(self, module: Any, x: Tensor) -> Tensor:
        out: Tensor = getattr(module, self.method)(x)
        return out

    def tiled(
        self, module: Any, x: Tensor, tile: int, overlap: int, on_tile: OnTile = None, *elsewhere: Elsewhere
    ) -> Tensor:
        """elsewhere: for tiles that other processes compute; of an ImageCoder only."""
        out: Tensor = getattr(module, f"{self.method}_tiled")(x, tile, overlap, on_tile, *elsewhere)
        return out


Tiled = Callable[[Conversion, Any, Tensor, int, int, OnTile], Tensor]


class PictureWeights(Protocol):
    """The interface of an autoencoder's weights."""

    config: Any

    def module_on_meta(self, dtype: torch.dtype) -> nn.Module:
        """The module without memory."""
        ...

    def loaded_bytes(self, dtype: torch.dtype) -> int: ...
    def module(self, device: torch.device, dtype: torch.dtype) -> Any: ...
    def unload(self) -> None: ...


class ManagedAutoencoder:
    """One autoencoder on one device."""

    def __init__(
        self,
        manager: Manager,
        weights: PictureWeights,
        dtype: torch.dtype,
        activations: dict[Hashable, int],
        tiled: Tiled = Conversion.tiled,
    ) -> None:
        """activations: bytes that dry runs have found, by shape; new results are added to it. tiled: converts one item
        in tiles with the loaded module.
        """
        self.manager, self.weights, self.dtype, self.activations = manager, weights, dtype, activations
        self._tiled = tiled

    @torch.no_grad()
    def convert(
        self, conversion: Conversion, batch: Tensor, tile: int | None = None, overlap: int = 64, on_tile: OnTile = None
    ) -> Tensor:
        """Converts the items of the batch one after the other; the result is on the CPU. In tiles of `tile` pixels, or
        as large as memory allows.

        Raises BudgetTooSmall if there is not enough memory even for the smallest tile.
        """
        if tile is not None:
            return self._run(conversion, batch, tile, overlap, on_tile)
        for size in self._sizes(conversion, batch):
            try:
                return self._run(conversion, batch, size, size // 8, on_tile)
            except (
                torch.OutOfMemoryError,
                BudgetTooSmall,
            ):  # the latter if the budget has become smaller in the meantime
                log.warning("A tile of %s pixels did not fit on the device; a smaller one is tried.", size or "all")
        return self._run(conversion, batch, TILES[-1], TILES[-1] // 8, on_tile)

    def _run(self, conversion: Conversion, batch: Tensor, tile: int, overlap: int, on_tile: OnTile) -> Tensor:
        with self.loaded(conversion, batch, tile) as module:
            items = [item.to(self.manager.device) for item in batch.split(1)]
            if tile:
                made = [self._tiled(conversion, module, item, tile, overlap, on_tile).cpu() for item in items]
            else:
                made = [conversion.run(module, item).cpu() for item in items]
            del module  # before its memory is given back
        return torch.cat(made)

    @contextmanager
    def loaded(self, conversion: Conversion, batch: Tensor, tile: int) -> Iterator[Any]:
        """The module, with memory for a conversion in tiles of this size. Raises BudgetTooSmall."""
        with self.manager.reserved("the autoencoder", self._needed(conversion, batch, tile)):
            try:
                yield self.weights.module(self.manager.device, self.dtype)
            finally:
                self.weights.unload()

    def _sizes(self, conversion: Conversion, batch: Tensor) -> Iterator[int]:
        """The tile sizes that fit, the largest first; 0 is the whole image."""
        self.manager.request_external(self._needed(conversion, batch, 0))
        available = self.manager.available()
        yield from (tile for tile in (0, *TILES[:-1]) if self._needed(conversion, batch, tile) <= available)

    def _needed(self, conversion: Conversion, batch: Tensor, tile: int) -> int:
        kind = self.manager.device.type
        return needed_bytes(self.weights, conversion, batch.shape[1:], tile, self.dtype, kind, self.activations)


def sizes_of(
    weights: PictureWeights,
    conversion: Conversion,
    shape: Sequence[int],
    dtype: torch.dtype,
    kind: str,
    activations: dict[Hashable, int],
) -> tuple[int, ...]:
    """Bytes that one item needs whole, and in tiles of each size, in the order in which they are tried.

    Arguments as of `needed_bytes`.
    """
    return tuple(needed_bytes(weights, conversion, shape, tile, dtype, kind, activations) for tile in (0, *TILES))


def needed_bytes(
    weights: PictureWeights,
    conversion: Conversion,
    shape: Sequence[int],
    tile: int,
    dtype: torch.dtype,
    kind: str,
    activations: dict[Hashable, int],
) -> int:
    """Bytes for the weights, for the tensors of one run, and for the image into which tiles are blended.

    shape: of one item. tile: pixels; 0 for the whole item. kind: of the device. activations: bytes that dry runs have
    found, by shape; new results are added to it.
    """
    one = [1, *shape]
    height, width = (one[axis] * conversion.scale for axis in conversion.axes)
    if tile:
        for axis in conversion.axes:
            one[axis] = min(one[axis], tile // conversion.scale)
    key = conversion, tuple(one), dtype, weights.config
    if key not in activations:
        sample, module = torch.empty(one, device="meta"), weights.module_on_meta(dtype)
        activations[key] = dry_run(module, lambda copy: conversion.run(copy, sample)).peak
    made = int(activations[key] * KERNELS.get(kind, 1.0))
    picture: int = 4 * 3 * height * width
    return weights.loaded_bytes(dtype) + made + (4 if tile else 1) * picture + 64 * MiB
