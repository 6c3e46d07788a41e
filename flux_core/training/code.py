"""The latent code of the tiny model: a fixed linear map from 8x8 pixels to 16 numbers, fitted in closed form.

The autoencoder later learns to write and read this code (stage `codec`); because the code is fixed beforehand, the
transformer can be trained without waiting for it. Two choices determine the code:
- three of its directions are a cell's mean colour, arranged so that FLUX's latent preview shows it;
- the other thirteen are the principal components of the rest, with scales that are made more similar, because a
  flow with noise of equal strength in every channel learns faint channels late or never.

Depends on images as arrays; uses no network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.latents import CELL, CHANNELS, PREVIEW_BIAS, PREVIEW_RGB, process_in, process_out

COLOUR_GAIN = 0.75  # factor by which previews show colours paler than the image
DETAIL_SCALE = 0.8  # standard deviation of the thirteen other channels together
EVENNESS = 0.5  # 0 keeps the components' scales, 1 makes them all equal


@dataclass(frozen=True)
class Code:
    """`to_code` [192, 16] and `bias` [16] map a cell's pixels (-1..1) to the scaled latent; `to_pixels` is the
    inverse.
    """

    to_code: Tensor
    bias: Tensor
    to_pixels: Tensor

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in -1..1 -> latent [B, 16, H/8, W/8] in the scale of an autoencoder's output
        (unscaled).
        """
        return process_out((cells(pixels) @ self.to_code + self.bias).movedim(-1, 1))

    def decode(self, latent: Tensor) -> Tensor:
        """The best linear estimate of the pixels of an unscaled latent: [B, 16, h, w] -> [B, 3, 8h, 8w]."""
        flat = (process_in(latent).movedim(1, -1) - self.bias) @ self.to_pixels  # [B, h, w, 192]
        blocks: Tensor = flat.unflatten(-1, (3, CELL, CELL)).permute(0, 3, 1, 4, 2, 5)  # [B, 3, h, 8, w, 8]
        return blocks.flatten(4, 5).flatten(2, 3)


def cells(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] -> the pixels of each cell [B, H/8, W/8, 192]."""
    blocks: Tensor = pixels.unflatten(3, (-1, CELL)).unflatten(2, (-1, CELL))  # [B, 3, h, 8, w, 8]
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3)


def fit(pixels: Tensor) -> Code:
    """The code for images like these, [B, 3, H, W] in -1..1."""
    flat = cells(pixels).flatten(0, 2).double()  # [N, 192]
    mean_of = torch.eye(3, dtype=torch.float64).repeat_interleave(CELL * CELL, 0) / CELL**2  # [192, 3]
    spread = mean_of.T * CELL**2  # [3, 192]
    detail = flat - flat @ mean_of @ spread
    variance, components = torch.linalg.eigh(detail.T @ detail / len(detail))
    keep = CHANNELS - 3
    components, deviation = components.flip(1)[:, :keep], variance.flip(0)[:keep].sqrt()
    wanted = deviation ** (1 - EVENNESS)
    wanted = wanted * DETAIL_SCALE / wanted.square().mean().sqrt()

    preview = torch.tensor(PREVIEW_RGB, dtype=torch.float64)  # [16, 3]
    colour = preview @ torch.linalg.inv(preview.T @ preview) * COLOUR_GAIN  # [16, 3]
    others = torch.linalg.svd(preview, full_matrices=True).U[:, 3:]  # [16, 13], not visible in the preview
    no_mean = torch.eye(len(mean_of), dtype=torch.float64) - mean_of @ spread
    to_code = mean_of @ colour.T + no_mean @ (components * (wanted / deviation)) @ others.T
    bias = -colour @ torch.tensor(PREVIEW_BIAS, dtype=torch.float64)
    to_pixels = preview / COLOUR_GAIN @ spread + others @ (components * (deviation / wanted)).T
    return Code(to_code.float(), bias.float(), to_pixels.float())
