"""The "autoencoder" of a FLUX in pixel space: the pixels of a patch become the channels of a latent cell, and back.

Its file holds one tensor, `pixels.weight` [z, C, s, s]: a convolution whose stride is its size, with orthonormal rows,
so that the transposed convolution is its inverse. It removes FLUX's latent scale: the transformer's inputs are pixels
in -1..1.
A cell is shown as 8 x 8 pixels as everywhere, so each of its s x s pixels is shown 8 / s pixels wide.
Has the methods of `autoencoder.Autoencoder`; uses no sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileFormatError
from .latents import CELL, process_in, process_out

KEY = "pixels.weight"
OnTile = Callable[[int, int], None] | None


@dataclass(frozen=True)
class PixelCodecConfig:
    """channels: of an image, 1 or 3. patch: pixels of the data along one side of a cell."""

    channels: int
    patch: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> PixelCodecConfig:
        """Read the sizes off the shape of the tensor. Raises FileFormatError for one that has another."""
        cells, channels, height, width = shapes[KEY]
        if channels not in (1, 3) or height != width or CELL % height or cells != channels * height * width:
            raise FileFormatError(
                f"{KEY} has the shape {list(shapes[KEY])}; it should be [C s s, C, s, s] with 1 or 3 channels and "
                "patches of 1, 2, 4 or 8 pixels. Export the model again."
            )
        return cls(channels, height)

    @property
    def z_channels(self) -> int:
        """Channels of a latent."""
        return self.channels * self.patch**2


class PixelCodec(nn.Module):
    """Images to latents and back, cell by cell."""

    def __init__(self, config: PixelCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.pixels = nn.Conv2d(config.channels, config.z_channels, config.patch, stride=config.patch, bias=False)
        self.eval()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Each channel of a cell is one pixel of one colour, in the order of `torch.nn.functional.pixel_unshuffle`."""
        self.pixels.weight.copy_(torch.eye(self.config.z_channels).view_as(self.pixels.weight))

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, C, H, W] in -1..1, in the data's own size -> unscaled latent [B, z, H/s, W/s]."""
        return process_out(F.conv2d(pixels.float(), self.pixels.weight.float(), stride=self.config.patch))

    def decode(self, latent: Tensor) -> Tensor:
        """Unscaled latent [B, z, h, w] -> pixels [B, C, s h, s w] in -1..1, in the data's own size."""
        weight = self.pixels.weight.float()
        return F.conv_transpose2d(process_in(latent.float()), weight, stride=self.config.patch)

    def encode_image(self, image: Tensor) -> Tensor:
        """Image [B, H, W, C >= 3] in 0..1, cropped to whole cells of 8 x 8 -> float32 latent [B, z, H//8, W//8]."""
        height, width = (length // CELL * CELL for length in image.shape[1:3])
        pixels = image[:, :height, :width, :3].movedim(-1, 1)
        if self.config.channels == 1:
            pixels = pixels.mean(dim=1, keepdim=True)
        return self.encode(F.avg_pool2d(pixels.float(), CELL // self.config.patch) * 2 - 1)

    def decode_image(self, latent: Tensor) -> Tensor:
        """Latent [B, z, h, w] -> float32 image [B, 8h, 8w, 3] in 0..1."""
        image = ((self.decode(latent) + 1) / 2).clamp(0, 1)
        shown = F.interpolate(image, scale_factor=CELL // self.config.patch, mode="nearest")
        return shown.expand(-1, 3, -1, -1).movedim(1, -1)

    def encode_image_tiled(self, image: Tensor, tile: int = 512, overlap: int = 64, on_tile: OnTile = None) -> Tensor:
        """`encode_image`: each cell is computed alone, so tiles would give the same result."""
        return self.encode_image(image)

    def decode_image_tiled(self, latent: Tensor, tile: int = 512, overlap: int = 64, on_tile: OnTile = None) -> Tensor:
        """`decode_image`, likewise."""
        return self.decode_image(latent)
