"""Stages `flow` and `guidance`: a transformer learns velocities, then the result of guidance.

flow       rectified flow (Liu et al. 2022; Esser et al. 2024): x_t = (1 - t) x0 + t eps, and the network predicts
           eps - x0. The guidance input is fixed at 1: no guidance.
guidance   distillation (Meng et al. 2023): for a guidance w the target is u + w (c - u), where c and u are the
           velocities of the finished first stage with and without the prompt. Then one evaluation replaces two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..models.latents import process_in
from .captions import caption
from .code import Code
from .drawing import draw, loose_scene, random_scene
from .recipe import FlowRecipe, Phase, Recipe
from .system import Reader, System, Tokens


@dataclass(frozen=True)
class Batch:
    """Clean latents [B, C, h, w] (scaled), noise, times [B], and the prompts."""

    clean: Tensor
    noise: Tensor
    times: Tensor
    tokens: Tokens

    @property
    def noisy(self) -> Tensor:
        t = self.times[:, None, None, None]
        return (1 - t) * self.clean + t * self.noise


class Data(Protocol):
    """The data of a flow: endless batches that depend only on the recipe's seed and the step."""

    @property
    def recipe(self) -> FlowRecipe: ...
    def batch(self, stage: str, step: int, size: int) -> Batch:
        """The `step`th batch of a stage."""
        ...

    def prompts(self, stage: str, step: int, size: int) -> list[str]:
        """Prompts of the kind that images have; none is empty."""
        ...

    def tokens(self, prompts: Sequence[str]) -> Tokens:
        """Prompts for both encoders."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Endless batches; a step's batch depends only on the recipe's seed and the step, so a run can be continued."""

    recipe: Recipe
    reader: Reader
    code: Code
    device: torch.device

    def batch(self, stage: str, step: int, size: int) -> Batch:
        """The `step`th batch of a stage."""
        recipe, rng = self.recipe, rng_of(self.recipe.seed, stage, step)
        make = loose_scene if stage == "flow" and step < recipe.loose_steps else random_scene
        scenes = [make(rng) for _ in range(size)]
        clip = [caption(scene, rng) for scene in scenes]
        t5 = [
            caption(scene, rng) if rng.random() < recipe.two_captions else text
            for scene, text in zip(scenes, clip, strict=True)
        ]
        both, one = recipe.empty, recipe.one_empty
        for number, chance in enumerate(rng.random(size)):
            if chance < both + one:
                clip[number] = ""
            if chance < both or both + one <= chance < both + 2 * one:
                t5[number] = ""
        pixels = torch.from_numpy(draw(scenes)).movedim(-1, 1) * 2 - 1
        clean = process_in(self.code.encode(pixels)).to(self.device)
        noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape), np.float32)).to(self.device)
        bell = rng.normal(recipe.time_mean, recipe.time_spread, size).astype(np.float32)
        times = torch.from_numpy(bell).to(self.device).sigmoid()
        return Batch(clean, noise, times, self.reader.tokens(clip, t5, self.device))

    def prompts(self, stage: str, step: int, size: int) -> list[str]:
        """Captions of scenes."""
        rng = rng_of(self.recipe.seed, stage, step)
        return [caption(random_scene(rng), rng) for _ in range(size)]

    def tokens(self, prompts: Sequence[str]) -> Tokens:
        """Both encoders get the same text."""
        return self.reader.tokens(prompts, prompts, self.device)


class FlowStage:
    """Flow matching from random weights."""

    name = "flow"

    def __init__(self, pictures: Data, system: System, dtype: torch.dtype) -> None:
        self.pictures, self.module, self.dtype = pictures, system, dtype
        self.phase: Phase = pictures.recipe.flow

    def loss(self, step: int) -> Tensor:
        """Mean squared error of the velocity."""
        batch = self.pictures.batch(self.name, step, self.phase.batch)
        velocity: Tensor = self.module(batch.noisy, batch.times, batch.tokens, torch.ones_like(batch.times), self.dtype)
        return (velocity - (batch.noise - batch.clean)).square().mean()


class GuidanceStage:
    """A copy of the finished flow learns the result of guidance."""

    name = "guidance"

    def __init__(self, pictures: Data, student: System, teacher: System, dtype: torch.dtype) -> None:
        self.pictures, self.module, self.teacher, self.dtype = pictures, student, teacher, dtype
        self.phase: Phase = pictures.recipe.guidance

    def loss(self, step: int) -> Tensor:
        """Mean squared difference to the teacher's guided velocity, for a guidance drawn evenly from the range."""
        batch = self.pictures.batch(self.name, step, self.phase.batch)
        low, high = self.pictures.recipe.guidance_range
        rng = rng_of(self.pictures.recipe.seed, "strength", step)
        strength = torch.from_numpy(rng.uniform(low, high, self.phase.batch).astype(np.float32)).to(batch.times)
        return (self._student(batch, strength) - self._guided(batch, strength)).square().mean()

    def _student(self, batch: Batch, strength: Tensor) -> Tensor:
        velocity: Tensor = self.module(batch.noisy, batch.times, batch.tokens, strength, self.dtype)
        return velocity

    @torch.no_grad()
    def _guided(self, batch: Batch, strength: Tensor) -> Tensor:
        size = len(batch.times)
        empty = self.pictures.tokens([""] * size)
        one = torch.ones_like(batch.times)
        guided: Tensor = self.teacher(batch.noisy, batch.times, batch.tokens, one, self.dtype)
        free: Tensor = self.teacher(batch.noisy, batch.times, empty, one, self.dtype)
        return free + strength[:, None, None, None] * (guided - free)


def rng_of(seed: int, stage: str, step: int) -> np.random.Generator:
    """The random generator of one step of one stage."""
    return np.random.default_rng([seed, *stage.encode(), step])


@torch.no_grad()
def sample(
    system: System, reader: Reader, prompts: Sequence[str], *, guidance: float, cfg: float = 1.0, steps: int = 12,
    side: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32, shift: float = 1.6,
) -> Tensor:  # fmt: skip
    """Euler from noise to scaled latents [B, C, side, side]: a quick look during training, not the product's path."""
    device, channels = next(system.parameters()).device, system.transformer.config.in_channels
    noise = torch.randn((len(prompts), channels, side, side), generator=torch.Generator().manual_seed(seed))
    x, count = noise.to(device), len(prompts)
    texts = reader.tokens(prompts, prompts, device)
    empty = reader.tokens([""] * count, [""] * count, device)
    line = torch.linspace(1, 0, steps + 1)
    times = (shift * line / (1 + (shift - 1) * line)).tolist()
    strength = torch.full((count,), guidance, device=device)
    for now, then in zip(times, times[1:], strict=False):
        t = torch.full((count,), now, device=device)
        v = system(x, t, texts, strength, dtype)
        if cfg != 1.0:
            free = system(x, t, empty, strength, dtype)
            v = free + cfg * (v - free)
        x = x + (then - now) * v
    return x
