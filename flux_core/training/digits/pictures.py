"""Digits as batches for the stages of a flow: pixels in -1..1, gathered into latent cells, with prompts such as "3" and
"six"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..captions import NUMBER_WORDS
from ..drawing import COLOURS, DIGITS
from ..flow import Batch, rng_of
from ..system import Reader, Tokens
from .data import SIDE, Digits
from .recipe import DigitRecipe

WORDS = (*DIGITS, *NUMBER_WORDS)  # all possible prompts


@dataclass(frozen=True)
class DigitPictures:
    """Endless batches; a step's batch depends on the recipe's seed and the step alone."""

    recipe: DigitRecipe
    reader: Reader
    digits: Digits
    device: torch.device

    def batch(self, stage: str, step: int, size: int) -> Batch:
        """The `step`th batch of a stage."""
        recipe, rng = self.recipe, rng_of(self.recipe.seed, stage, step)
        chosen = self.digits[rng.integers(len(self.digits), size=size)]
        clean = cells(pixels(chosen.images, recipe.side, recipe.channels, rng), recipe.cell).to(self.device)
        prompts = [_named(int(label), recipe.words, rng) for label in chosen.labels]
        prompts = [
            "" if chance < recipe.empty else prompt for prompt, chance in zip(prompts, rng.random(size), strict=True)
        ]
        noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape), np.float32)).to(self.device)
        bell = rng.normal(recipe.time_mean, recipe.time_spread, size).astype(np.float32)
        times = torch.from_numpy(bell).to(self.device).sigmoid()
        return Batch(clean, noise, times, self.tokens(prompts))

    def prompts(self, stage: str, step: int, size: int) -> list[str]:
        """Prompts of random digits, as digits and words."""
        rng = rng_of(self.recipe.seed, stage, step)
        return [_named(int(rng.integers(10)), self.recipe.words, rng) for _ in range(size)]

    def tokens(self, prompts: Sequence[str]) -> Tokens:
        """Both encoders get the same text."""
        return self.reader.tokens(prompts, prompts, self.device)


def _named(digit: int, words: float, rng: np.random.Generator) -> str:
    return NUMBER_WORDS[digit] if rng.random() < words else DIGITS[digit]


def digit_of(prompt: str) -> int:
    """The digit that a prompt names."""
    return WORDS.index(prompt) % 10


def pixels(images: npt.NDArray[np.uint8], side: int, channels: int, rng: np.random.Generator) -> Tensor:
    """Images [B, 28, 28] -> [B, channels, side, side] in -1..1, black around; with 3 channels each in a colour of its
    own, drawn from `rng`."""
    before = (side - SIDE) // 2
    grey = np.pad(images, ((0, 0), *(2 * ((before, side - SIDE - before),)))).astype(np.float32)[:, None] / 255
    if channels == 3:
        table = np.array(list(COLOURS.values()), np.float32) / 255
        grey = grey * table[rng.integers(len(table), size=len(images))][:, :, None, None]
    return torch.from_numpy(grey * 2 - 1)


def cells(picture: Tensor, cell: int) -> Tensor:
    """Pixels [B, C, H, W] -> latent [B, C cell cell, H / cell, W / cell]."""
    return F.pixel_unshuffle(picture, cell)


def uncelled(latent: Tensor, cell: int) -> Tensor:
    """Undo `cells`."""
    return F.pixel_shuffle(latent, cell)
