"""The common part of all autoencoders here: conversion of whole images and of tiles to latents and back.

A subclass converts pixels in -1..1 to latents and back; this file prepares images for it, and joins tiles.
Images and latents are passed in and returned as float32. Uses no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from torch import Tensor, nn

from .tiling import Elsewhere, parts_of_three_tilings, three_tilings

OnTile = Callable[[int, int], None] | None  # (tiles done, of how many)


class ImageCoder(nn.Module):
    """`channels`: of the images it converts; further ones (alpha) are left out."""

    channels: int

    @property
    def compression(self) -> int:
        """Pixels along one side of a latent cell."""
        raise NotImplementedError

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, C, H, W] in -1..1 -> latent [B, 16, H/8, W/8]."""
        raise NotImplementedError

    def decode(self, latent: Tensor) -> Tensor:
        """Latent [B, 16, h, w] -> pixels [B, C, 8h, 8w], about -1..1."""
        raise NotImplementedError

    def encode_image(self, image: Tensor) -> Tensor:
        """Image [B, H, W, C >= 3] in 0..1, cropped to whole cells -> float32 latent [B, 16, H//8, W//8]."""
        return self._encode(self._pixels(image))

    def decode_image(self, latent: Tensor) -> Tensor:
        """Latent [B, 16, h, w] -> float32 image [B, 8h, 8w, 3] in 0..1."""
        return _image(self._decode(latent))

    def encode_image_tiled(
        self,
        image: Tensor,
        tile: int = 512,
        overlap: int = 64,
        on_tile: OnTile = None,
        elsewhere: Elsewhere | None = None,
    ) -> Tensor:
        """`encode_image` in tiles: the average of three tilings. `tile` and `overlap` in pixels."""
        pixels, (tile, overlap) = self._pixels(image), _encoded_in(tile, overlap)
        return three_tilings(pixels, self._encode, tile, overlap, 1 / self.compression, on_tile, elsewhere)

    def decode_image_tiled(
        self,
        latent: Tensor,
        tile: int = 512,
        overlap: int = 64,
        on_tile: OnTile = None,
        elsewhere: Elsewhere | None = None,
    ) -> Tensor:
        """`decode_image` in tiles: the average of three tilings. `tile` and `overlap` in pixels of the image."""
        cells = self.compression
        tile, overlap = _decoded_in(tile, overlap, cells)
        return _image(three_tilings(latent, self._decode, tile, overlap, cells, on_tile, elsewhere))

    def encoded_tiles(self, image: Tensor, tile: int, overlap: int, own: slice) -> Iterator[tuple[int, Tensor]]:
        """Some of the tiles of `encode_image_tiled`, each with its number, not blended. own: which."""
        parts = enumerate(parts_of_three_tilings(self._pixels(image), *_encoded_in(tile, overlap)))
        return ((number, self._encode(part)) for number, part in islice(parts, own.start, None, own.step))

    def decoded_tiles(self, latent: Tensor, tile: int, overlap: int, own: slice) -> Iterator[tuple[int, Tensor]]:
        """Some of the tiles of `decode_image_tiled`, each with its number, not blended. own: which."""
        parts = enumerate(parts_of_three_tilings(latent, *_decoded_in(tile, overlap, self.compression)))
        return ((number, self._decode(part)) for number, part in islice(parts, own.start, None, own.step))

    def _pixels(self, image: Tensor) -> Tensor:
        """[B, H, W, C] in 0..1 -> [B, 3, H', W'] in -1..1, cropped about the centre to whole cells."""
        for axis in (1, 2):
            whole = image.shape[axis] // self.compression * self.compression
            image = image.narrow(axis, image.shape[axis] % self.compression // 2, whole)
        return image[..., : self.channels].movedim(-1, 1) * 2 - 1

    def _encode(self, pixels: Tensor) -> Tensor:
        return self.encode(pixels.to(next(self.parameters()))).float()

    def _decode(self, latent: Tensor) -> Tensor:
        return self.decode(latent.to(next(self.parameters()))).float()


def _encoded_in(tile: int, overlap: int) -> tuple[int, int]:
    """Length and overlap of tiles, in pixels."""
    return tile, overlap if overlap < tile // 2 else tile // 4  # the narrowest tiles have half the length


def _decoded_in(tile: int, overlap: int, cells: int) -> tuple[int, int]:
    """Length and overlap of tiles, in cells."""
    overlap = overlap if overlap * 4 <= tile else tile // 4  # as ComfyUI does here, and only here
    return tile // cells, overlap // cells


def _image(pixels: Tensor) -> Tensor:
    return ((pixels + 1) / 2).clamp(0, 1).movedim(1, -1)
