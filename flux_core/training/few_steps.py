"""Stages for fewer steps: `reflow`, `one_step` and `windows`, each a plain regression from a finished, guided flow.

reflow    rectification (Liu, Gong & Liu 2022, section 2): pairs of noise and the end of the teacher's path from it;
          the network learns the straight line between the two, so that its paths become straight
one_step  distillation on the same pairs: the whole path in one step, from the noise alone
windows   piecewise (Yan et al. 2024, PeRFlow): time is divided into 1, 2 or 4 windows, and the network learns at the
          start of each the path to its end; one Euler step for each window then follows the teacher's path

The student keeps the guidance input at one strength; `without_guidance` then puts that constant into a bias, which
gives a file in schnell's form. Uses no data set and no command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..io.saving import replace
from ..models.flux import Flux
from ..models.flux_blocks import sinusoids
from .flow import Data, rng_of
from .recipe import FlowRecipe, Phase
from .system import System, Tokens

WINDOWS = {1: 0.2, 2: 0.3, 4: 0.5}  # share of the steps of `windows` with this number of windows
STEEPNESS = 4.0  # of the U-shaped distribution of half of reflow's times (Lee et al. 2024, p(t) = e^at + e^-at)
PAIRS_AT_ONCE = 100
STRAIGHT_STEPS = 20


@dataclass(frozen=True)
class Teacher:
    """A guided flow: in one pass if the network was trained for guidance (`guided`), else in two."""

    system: System
    data: Data
    strength: float
    guided: bool
    dtype: torch.dtype

    def velocity(self, x: Tensor, t: Tensor, tokens: Tokens) -> Tensor:
        """Of states [B, C, h, w] at times [B]."""
        if self.guided:
            out: Tensor = self.system(x, t, tokens, torch.full_like(t, self.strength), self.dtype)
            return out
        empty = self.data.tokens([""] * len(x))
        one = torch.ones_like(t)
        with_prompt: Tensor = self.system(x, t, tokens, one, self.dtype)
        free: Tensor = self.system(x, t, empty, one, self.dtype)
        return free + self.strength * (with_prompt - free)

    @torch.no_grad()
    def walk(self, x: Tensor, tokens: Tokens, start: float, end: float, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Euler from `start` to `end`: each velocity and the state after its step."""
        size = (end - start) / steps
        for number in range(steps):
            velocity = self.velocity(x, x.new_full((len(x),), start + number * size), tokens)
            x = x + size * velocity
            yield velocity, x

    def end(self, x: Tensor, tokens: Tokens, start: float, end: float, steps: int) -> Tensor:
        """The end of the path."""
        *_, (_, there) = self.walk(x, tokens, start, end, steps)
        return there


@dataclass(frozen=True)
class Straightness:
    """S(Z) of Liu, Gong & Liu 2022: mean over time of |(start - end) - velocity|², with each path's own ends.

    share: divided by the mean of |start - end|², which makes models comparable; 0 for straight paths.
    """

    total: float
    share: float


def straightness(flow: Teacher, noise: Tensor, tokens: Tokens, steps: int = STRAIGHT_STEPS) -> Straightness:
    """Of paths from `noise` [B, C, h, w], by `steps` Euler steps."""
    velocities = []
    end = noise
    for velocity, end in flow.walk(noise, tokens, 1.0, 0.0, steps):  # noqa: B007 - the last end counts
        velocities.append(velocity)
    way = noise - end
    off = torch.stack([(way - velocity).square().flatten(1).sum(1) for velocity in velocities]).mean()
    return Straightness(float(off), float(off / way.square().flatten(1).sum(1).mean()))


@dataclass(frozen=True)
class Pairs:
    """Noise [N, C, h, w], the teacher's result from it [N, C, h, w], and the prompts."""

    noise: Tensor
    made: Tensor
    prompts: Sequence[str]

    @classmethod
    def of(cls, teacher: Teacher, recipe: FlowRecipe, path: Path, quiet: bool = False) -> Pairs:
        """As many pairs as the recipe sets; they are stored in the file, so that a stopped run can be resumed."""
        parts: list[dict[str, object]] = []
        if path.is_file():
            parts = torch.load(path, weights_only=True)
        count = math.ceil(recipe.pairs / PAIRS_AT_ONCE)
        shape = teacher.data.batch("shape", 0, 1).clean.shape[1:]
        device = next(teacher.system.parameters()).device
        for number in tqdm(range(len(parts), count), initial=len(parts), total=count, desc="pairs", disable=quiet):
            prompts = teacher.data.prompts("pairs", number, PAIRS_AT_ONCE)
            rng = rng_of(recipe.seed, "pairs noise", number)
            noise = torch.from_numpy(rng.standard_normal((PAIRS_AT_ONCE, *shape), np.float32)).to(device)
            made = teacher.end(noise, teacher.data.tokens(prompts), 1.0, 0.0, recipe.pair_steps)
            parts.append({"noise": noise.cpu(), "made": made.cpu(), "prompts": prompts})
            fresh = path.with_suffix(".new")
            torch.save(parts, fresh)
            replace(fresh, path)
        prompts = [prompt for part in parts for prompt in part["prompts"]]  # type: ignore[attr-defined]
        noise, made = (torch.cat([part[name] for part in parts]) for name in ("noise", "made"))  # type: ignore[misc]
        return cls(noise, made, prompts)


class ReflowStage:
    """The straight line of each pair, at any time of it; `one_step`: at its start alone."""

    def __init__(
        self, data: Data, student: System, pairs: Pairs, dtype: torch.dtype, strength: float, one_step: bool = False
    ) -> None:
        """strength: of the guidance of the pairs, a constant input of the student."""
        self.data, self.module, self.pairs, self.dtype, self.strength = data, student, pairs, dtype, strength
        self.name = "one_step" if one_step else "reflow"
        self.phase: Phase = data.recipe.one_step if one_step else data.recipe.reflow

    def loss(self, step: int) -> Tensor:
        """Mean squared error of the velocity along the line."""
        rng, size = rng_of(self.data.recipe.seed, self.name, step), self.phase.batch
        chosen = rng.integers(len(self.pairs.noise), size=size)
        tokens = self.data.tokens([self.pairs.prompts[number] for number in chosen])
        device = next(self.module.parameters()).device
        index = torch.from_numpy(chosen)
        noise, made = self.pairs.noise[index].to(device), self.pairs.made[index].to(device)
        times = torch.ones(size) if self.name == "one_step" else torch.from_numpy(_times(rng, size))
        t = times.to(device)
        along = t[:, None, None, None]
        guidance = torch.full_like(t, self.strength)
        velocity: Tensor = self.module((1 - along) * made + along * noise, t, tokens, guidance, self.dtype)
        return (velocity - (noise - made)).square().mean()


def _times(rng: np.random.Generator, size: int) -> np.ndarray:
    """Half even, half towards both ends."""
    even = rng.random(size)
    bent = np.log1p(rng.random(size) * np.expm1(STEEPNESS)) / STEEPNESS
    bent = np.where(rng.random(size) < 0.5, bent, 1 - bent)
    return np.where(rng.random(size) < 0.5, even, bent).astype(np.float32)


class WindowsStage:
    """The path from the start of a window to its end, by small steps of the teacher."""

    name = "windows"

    def __init__(self, data: Data, student: System, teacher: Teacher, dtype: torch.dtype) -> None:
        self.data, self.module, self.teacher, self.dtype = data, student, teacher, dtype
        self.phase: Phase = data.recipe.windows

    def loss(self, step: int) -> Tensor:
        """Mean squared difference to the mean velocity of the teacher within the window."""
        recipe = self.data.recipe
        rng = rng_of(recipe.seed, "which window", step)
        count = int(rng.choice(list(WINDOWS), p=list(WINDOWS.values())))
        start = 1 - int(rng.integers(count)) / count
        end = start - 1 / count
        batch = self.data.batch(self.name, step, self.phase.batch)
        x = (1 - start) * batch.clean + start * batch.noise
        there = self.teacher.end(x, batch.tokens, start, end, max(3, recipe.pair_steps // count))
        t = torch.full_like(batch.times, start)
        velocity: Tensor = self.module(x, t, batch.tokens, torch.full_like(t, self.teacher.strength), self.dtype)
        return (velocity - (x - there) * count).square().mean()


@torch.no_grad()
def without_guidance(flux: Flux, strength: float) -> dict[str, Tensor]:
    """The weights of a transformer with the constant guidance `strength`, in schnell's form: without a guidance input.

    The input's part of the modulation vector is then a constant, which is added to the bias of `vector_in`.
    """
    weights = dict(flux.state_dict())
    added = flux.guidance_in(sinusoids(weights["vector_in.out_layer.bias"].new_tensor([strength], dtype=torch.float32)))
    weights["vector_in.out_layer.bias"] = weights["vector_in.out_layer.bias"] + added[0]
    return {name: value for name, value in weights.items() if not name.startswith("guidance_in.")}
