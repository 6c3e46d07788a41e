"""The value of a VAE link: an autoencoder that converts images to latents and back, whole or in tiles.

Its weights are shared by all handles of the file (weights.py).

Independent of: nodes, and how bytes become parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import NotFinite
from ..models.image_coder import ImageCoder
from ..models.latents import CELL
from ..models.pixel_codec import PixelCodec
from .autoencoder import Conversion, ManagedAutoencoder
from .model_weights import AutoencoderWeights
from .runtime import Runtime
from .sound import unsound

log = logging.getLogger(__name__)

Tiles = tuple[int, int]  # length and overlap, in pixels
OnTile = Callable[[int, int], None] | None  # (tiles done, of how many)
DECODE_TILES: Tiles = (512, 128)  # after a whole image did not fit on the device
ENCODE_TILES: Tiles = (512, 64)
ENCODE = Conversion("encode_image", axes=(1, 2), scale=1)
DECODE = Conversion("decode_image", axes=(2, 3), scale=CELL)


@dataclass(frozen=True)
class TilesOf:
    """A conversion in tiles, as another process is told it. method: of the conversion; tile, overlap: in pixels."""

    paths: tuple[str, ...]  # of the autoencoder's files
    method: str
    x: Tensor
    tile: int
    overlap: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Autoencoder:
    """Images and latents as links carry them: float32 on the CPU. They are processed on the device one at a time."""

    weights: AutoencoderWeights

    @property
    def runtime(self) -> Runtime:
        return self.weights.runtime

    def encode_image(self, image: Tensor) -> Tensor:
        """Image [B, H, W, C >= 3] in 0..1 -> latent [B, 16, H//8, W//8]. In tiles if the device is too small."""
        _check_numbers("picture", image)
        return self._sound(lambda: self._whole(ENCODE, image, ENCODE_TILES))

    def decode_image(self, latent: Tensor) -> Tensor:
        """Latent [B, 16, h, w] -> image [B, 8h, 8w, 3] in 0..1. In tiles if the device is too small."""
        _check_numbers("latent", latent)
        return self._sound(lambda: self._whole(DECODE, latent, DECODE_TILES))

    def encode_image_tiled(self, image: Tensor, tile: int = 512, overlap: int = 64, on_tile: OnTile = None) -> Tensor:
        """`encode_image` in tiles; `tile` and `overlap` in pixels."""
        _check_numbers("picture", image)
        return self._sound(lambda: self._tiled(ENCODE, image, (tile, overlap), on_tile))

    def decode_image_tiled(self, latent: Tensor, tile: int = 512, overlap: int = 64, on_tile: OnTile = None) -> Tensor:
        """`decode_image` in tiles; `tile` and `overlap` in pixels of the image."""
        _check_numbers("latent", latent)
        return self._sound(lambda: self._tiled(DECODE, latent, (tile, overlap), on_tile))

    @torch.no_grad()
    def _whole(self, conversion: Conversion, batch: Tensor, tiles: Tiles) -> Tensor:
        managed = self._managed()
        if managed:
            return managed.convert(conversion, batch)
        module = self._module()
        done = []
        for one in batch.split(1):
            try:
                done.append(conversion.run(module, one.to(self.runtime.device)).cpu())
                continue
            except torch.cuda.OutOfMemoryError:
                log.warning("The device has too little memory for an image of this size at once; tiles are used.")
            torch.cuda.empty_cache()
            done.append(self._tiled_by_all(conversion, module, one.to(self.runtime.device), *tiles).cpu())
        return torch.cat(done)

    @torch.no_grad()
    def _tiled(self, conversion: Conversion, batch: Tensor, tiles: Tiles, on_tile: OnTile) -> Tensor:
        managed = self._managed()
        if managed:
            return managed.convert(conversion, batch, *tiles, on_tile)
        there = batch.to(self.runtime.device)
        return self._tiled_by_all(conversion, self._module(), there, *tiles, on_tile).cpu()

    def _tiled_by_all(
        self, conversion: Conversion, module: Any, x: Tensor, tile: int, overlap: int, on_tile: OnTile = None
    ) -> Tensor:
        """In tiles; in a team each device computes some of them, and this one blends them: the bits of one device."""
        team = self.runtime.team
        if team is None or not isinstance(module, ImageCoder):
            return conversion.tiled(module, x, tile, overlap, on_tile)
        paths = tuple(dict.fromkeys(str(stored.file.path) for stored in self.weights.tensors.values()))
        with team.converting(TilesOf(paths, conversion.method, x, tile, overlap, self._dtype)) as elsewhere:
            return conversion.tiled(module, x, tile, overlap, on_tile, elsewhere)

    @torch.no_grad()
    def own_tiles(self, given: TilesOf, own: slice) -> Generator[tuple[int, Tensor], None, None]:
        """The tiles of a conversion that a further device of a team computes, with their numbers.

        Raises BudgetTooSmall.
        """
        conversion = ENCODE if given.method == ENCODE.method else DECODE
        manager = self.runtime.manager(self.runtime.device, self.weights.nbytes)
        if manager is None:
            yield from _tiles(self.weights.module(self.runtime.device, given.dtype), given, own)
            return
        managed = ManagedAutoencoder(manager, self.weights, given.dtype, self.runtime.activations)
        with managed.loaded(conversion, given.x, given.tile) as module:
            yield from _tiles(module, given, own)

    def _sound(self, convert: Callable[[], Tensor]) -> Tensor:
        """The result if all its numbers are finite; what float16 cannot hold is converted in float32.

        Raises NotFinite.
        """
        made = convert()
        if not torch.isfinite(made).all() and self._dtype is torch.float16:
            log.warning("The autoencoder exceeds float16 for this image and computes in float32 from now on.")
            self.weights.exceeds_half = True
            made = convert()
        if torch.isfinite(made).all():
            return made
        reason = unsound(self.weights.tensors) or "Compute the autoencoder in float32 or bfloat16."
        raise NotFinite(f"The autoencoder produced numbers that are not finite (NaN or infinity). {reason}")

    def _managed(self) -> ManagedAutoencoder | None:
        runtime = self.runtime
        manager = runtime.manager(runtime.device, self.weights.nbytes)
        if manager is None:
            return None
        return ManagedAutoencoder(manager, self.weights, self._dtype, runtime.activations, self._tiled_by_all)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.weights.exceeds_half else self.runtime.autoencoder_dtype

    def _module(self) -> ImageCoder | PixelCodec:
        return self.weights.module(self.runtime.device, self._dtype)


def _tiles(module: Any, given: TilesOf, own: slice) -> Iterator[tuple[int, Tensor]]:
    computed = module.encoded_tiles if given.method == ENCODE.method else module.decoded_tiles
    yield from computed(given.x, given.tile, given.overlap, own)


def _check_numbers(noun: str, numbers: Tensor) -> None:
    if not torch.isfinite(numbers).all():
        raise NotFinite(f"The {noun} for the autoencoder contains numbers that are not finite (NaN or infinity).")
