"""Stage `codec`: the autoencoder learns the fixed latent code (see code.py).

The encoder imitates the code. The decoder also uses neighbouring cells, so it inverts the code better than any linear
map, also for slightly wrong latents such as generated ones.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.autoencoder import Autoencoder, AutoencoderConfig
from ..models.latents import CELL, CHANNELS, SCALE
from .code import Code
from .drawing import SIDE, collage, draw, loose_scene
from .flow import rng_of
from .recipe import Phase, Recipe, Sizes

CROP = 64  # pixels; for convolutions a quarter of an image is as useful as the whole one
WHOLE_PICTURES = 0.28  # the last part of the training uses whole images, because group norms average over all cells
LATENT_NOISE = 0.15  # largest standard deviation of the noise that the decoder must ignore, in scaled latents
EDGES = 0.5  # weight of differences between neighbouring pixels


class CodecStage:
    """Encoder and decoder, trained side by side."""

    name = "codec"

    def __init__(self, recipe: Recipe, code: Code, module: Autoencoder, device: torch.device) -> None:
        self.recipe, self.code, self.module, self.device = recipe, code, module, device
        self.phase: Phase = recipe.codec

    def loss(self, step: int) -> Tensor:
        """Error of the encoder's latent, plus error of the decoder's pixels from the true latent."""
        rng = rng_of(self.recipe.seed, self.name, step)
        pixels = self._pixels(rng, whole=step >= self.phase.steps * (1 - WHOLE_PICTURES))
        latent = self.code.encode(pixels)
        strength = rng.uniform(0, LATENT_NOISE, (len(pixels), 1, 1, 1)) / SCALE
        noise = torch.from_numpy((rng.standard_normal(tuple(latent.shape)) * strength).astype(np.float32))
        pixels, latent, noise = (part.to(self.device) for part in (pixels, latent, noise))

        mean, log_variance = self.module.moments(pixels)
        error = (mean - latent) * SCALE
        doubt = (
            error.detach().square() / log_variance.exp() + log_variance
        ).mean()  # the usual deviation from the mean
        decoded = self.module.decode(latent + noise)
        return error.square().mean() + 0.001 * doubt + _difference(decoded, pixels)

    def _pixels(self, rng: np.random.Generator, whole: bool) -> Tensor:
        """Half scenes, half collages: [B, 3, side, side] in -1..1."""
        half = self.phase.batch // 2
        scenes = draw([loose_scene(rng) for _ in range(self.phase.batch - half)])
        pictures = np.concatenate([scenes, *(collage(rng)[None] for _ in range(half))])
        pixels = torch.from_numpy(pictures).movedim(-1, 1) * 2 - 1
        if whole:
            return pixels[rng.permutation(len(pixels))[: max(1, len(pixels) // 4)]]
        top, left = (int(place) * CELL for place in rng.integers((SIDE - CROP) // CELL + 1, size=2))
        return pixels[..., top : top + CROP, left : left + CROP]


def _difference(seen: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of pixels, and of steps between neighbouring pixels, which keeps edges sharp."""
    edges = sum(F.l1_loss(seen.diff(dim=axis), wanted.diff(dim=axis)) for axis in (2, 3))
    return F.l1_loss(seen, wanted) + EDGES * edges


def codec_config(sizes: Sizes) -> AutoencoderConfig:
    """The autoencoder's sizes in the product's terms."""
    return AutoencoderConfig(3, sizes.codec_channels, sizes.codec_factors, sizes.codec_blocks, CHANNELS)
