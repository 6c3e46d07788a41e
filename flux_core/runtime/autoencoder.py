"""The autoencoder under a budget: whole if there is room, else in the largest tiles that fit.

It is loaded for that and let go after, and what stays of other models gives way meanwhile. Knows no pixels: a `Way`
says what is run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import BudgetTooSmall
from ..memory.manager import Manager
from ..memory.workload import MiB
from .dry_run import dry_run

log = logging.getLogger(__name__)

TILES = (1024, 512, 256, 128)  # pixels a side, tried in this order; they overlap by an eighth
KERNELS = {"cpu": 1.6, "cuda": 1.1}  # times what a dry run finds, for what convolutions take inside themselves
OnTile = Callable[[int, int], None] | None


@dataclass(frozen=True)
class Way:
    """Into latents or out of them: a method of the module, which has a `_tiled` twin."""

    method: str
    axes: tuple[int, int]  # height and width of x
    scale: int  # pixels along a side of a cell of x

    def run(self, module: Any, x: Tensor) -> Tensor:
        out: Tensor = getattr(module, self.method)(x)
        return out

    def tiled(self, module: Any, x: Tensor, tile: int, overlap: int, on_tile: OnTile = None) -> Tensor:
        out: Tensor = getattr(module, f"{self.method}_tiled")(x, tile, overlap, on_tile)
        return out


class PictureWeights(Protocol):
    """What is asked of the weights of an autoencoder."""

    config: Any

    def sketch(self, dtype: torch.dtype) -> nn.Module:
        """The module on the meta device."""
        ...

    def loaded_bytes(self, dtype: torch.dtype) -> int: ...
    def module(self, device: torch.device, dtype: torch.dtype) -> Any: ...
    def unload(self) -> None: ...


class ManagedAutoencoder:
    """One autoencoder on one device."""

    def __init__(
        self, manager: Manager, weights: PictureWeights, dtype: torch.dtype, activations: dict[Hashable, int]
    ) -> None:
        """activations: bytes that dry runs have found, by shape; what is found here is added to it."""
        self.manager, self.weights, self.dtype, self.activations = manager, weights, dtype, activations

    @torch.no_grad()
    def through(
        self, way: Way, batch: Tensor, tile: int | None = None, overlap: int = 64, on_tile: OnTile = None
    ) -> Tensor:
        """The batch's items one after the other, on the CPU; in tiles of `tile` pixels, or as large as there is room.

        Raises BudgetTooSmall if there is not even room for the smallest tile.
        """
        if tile is not None:
            return self._run(way, batch, tile, overlap, on_tile)
        for size in self._sizes(way, batch):
            try:
                return self._run(way, batch, size, size // 8, on_tile)
            except (torch.OutOfMemoryError, BudgetTooSmall):  # the latter if the budget has shrunk meanwhile
                log.warning("A tile of %s pixels was too much for the device; a smaller one is tried.", size or "all")
        return self._run(way, batch, TILES[-1], TILES[-1] // 8, on_tile)

    def _run(self, way: Way, batch: Tensor, tile: int, overlap: int, on_tile: OnTile) -> Tensor:
        with self.manager.reserved("the autoencoder", self._needed(way, batch, tile)):
            module = self.weights.module(self.manager.device, self.dtype)
            try:
                items = [item.to(self.manager.device) for item in batch.split(1)]
                if tile:
                    return torch.cat([way.tiled(module, item, tile, overlap, on_tile).cpu() for item in items])
                return torch.cat([way.run(module, item).cpu() for item in items])
            finally:
                del module
                self.weights.unload()

    def _sizes(self, way: Way, batch: Tensor) -> Iterator[int]:
        """What there is room for, the largest first; 0 is the whole picture."""
        self.manager.request_external(self._needed(way, batch, 0))
        available = self.manager.available()
        yield from (tile for tile in (0, *TILES[:-1]) if self._needed(way, batch, tile) <= available)

    def _needed(self, way: Way, batch: Tensor, tile: int) -> int:
        """Bytes for the weights, for what one run makes, and for the picture that tiles are put together in."""
        shape = [1, *batch.shape[1:]]
        height, width = (shape[axis] * way.scale for axis in way.axes)
        if tile:
            for axis in way.axes:
                shape[axis] = min(shape[axis], tile // way.scale)
        key = way, tuple(shape), self.dtype, self.weights.config
        if key not in self.activations:
            sketch = self.weights.sketch(self.dtype)
            self.activations[key] = dry_run(
                sketch, lambda module: way.run(module, torch.empty(shape, device="meta"))
            ).peak
        made = int(self.activations[key] * KERNELS.get(self.manager.device.type, 1.0))
        picture: int = 4 * 3 * height * width
        return self.weights.loaded_bytes(self.dtype) + made + (4 if tile else 1) * picture + 64 * MiB
