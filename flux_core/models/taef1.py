"""TAEF1: a small autoencoder for FLUX.1's latents, eighteen times less work than the full one.

Its images are sharp and not exact: for previews, and as a VAE if speed matters. Keys are those of the published
files (madebyollin/taesd, MIT): `encoder.N` and `decoder.N` for the layers of taef1_encoder and taef1_decoder, counted
with the decoder's clamp, activations and enlargements. It takes latents in the transformer's scale and gives red, green
and blue in 0..1. Uses no node and no sampler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileFormatError, InputError
from .image_coder import ImageCoder
from .latents import process_in, process_out
from .products import Convolution
from .strides import row_major

CLAMP = 3.0  # latents are first limited smoothly to -3..3
LEVELS = 3  # each halves the sides of an image


@dataclass(frozen=True)
class Taef1Config:
    """The sizes, and the halves that a file has: previews need the decoder only."""

    width: int
    latent_channels: int
    encodes: bool
    decodes: bool

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> Taef1Config:
        """Read the sizes off a state dict's shapes."""
        encodes, decodes = "encoder.0.weight" in shapes, "decoder.1.weight" in shapes
        if decodes:
            width, latent_channels = shapes["decoder.1.weight"][:2]
        elif encodes:
            width, latent_channels = shapes["encoder.0.weight"][0], shapes["encoder.14.weight"][0]
        else:
            raise FileFormatError("This is not TAEF1: it has neither an encoder nor a decoder of that form.")
        return cls(width, latent_channels, encodes, decodes)


class Taef1(ImageCoder):
    """Images to latents and back, as far as the file has both halves."""

    channels = 3

    def __init__(self, config: Taef1Config) -> None:
        super().__init__()
        self.config = config
        if config.encodes:
            self.encoder = _encoder(config.width, config.latent_channels)
        if config.decodes:
            self.decoder = _decoder(config.width, config.latent_channels)
        self.eval()

    @property
    def compression(self) -> int:
        return 1 << LEVELS

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in -1..1 -> latent [B, 16, H/8, W/8] in the full autoencoder's scale.

        Raises InputError if the file has no encoder.
        """
        if not self.config.encodes:
            raise InputError("This file of TAEF1 decodes only. Put taef1_encoder.safetensors beside taef1_decoder.")
        scaled: Tensor = self.encoder(row_major(pixels) * 0.5 + 0.5)
        return process_out(scaled)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent [B, 16, h, w] in the full autoencoder's scale -> pixels [B, 3, 8h, 8w], about -1..1."""
        return self.decode_scaled(process_in(latent)) * 2 - 1

    def decode_scaled(self, latent: Tensor) -> Tensor:
        """Latent [B, 16, h, w] in the transformer's scale -> pixels [B, 3, 8h, 8w], about 0..1.

        Raises InputError if the file has no decoder.
        """
        if not self.config.decodes:
            raise InputError("This file of TAEF1 encodes only. Put taef1_decoder.safetensors beside taef1_encoder.")
        out: Tensor = self.decoder(row_major(latent))
        return out


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / CLAMP) * CLAMP


class _Block(nn.Module):
    """Three convolutions, added to the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


def _encoder(width: int, latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, width), _Block(width)]
    for _ in range(LEVELS):
        layers += [_conv(width, width, stride=2, bias=False), *(_Block(width) for _ in range(3))]
    return nn.Sequential(*layers, _conv(width, latent_channels))


def _decoder(width: int, latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _conv(latent_channels, width), nn.ReLU()]
    for _ in range(LEVELS):
        layers += [*(_Block(width) for _ in range(3)), nn.Upsample(scale_factor=2.0), _conv(width, width, bias=False)]
    return nn.Sequential(*layers, _Block(width), _conv(width, 3))


def _conv(width_in: int, width: int, stride: int = 1, bias: bool = True) -> Convolution:
    return Convolution(width_in, width, 3, padding=1, stride=stride, bias=bias)
