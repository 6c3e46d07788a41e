"""Guiders: with which conditionings a model is evaluated, and how the results are combined into one denoised image D.

`Denoiser` evaluates the network once for each active condition, weighs overlapping areas, and turns velocity into D.
Uses no solver, no noise and no latent scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..conditioning.entries import Conditioning
from ..errors import InputError
from ..models.denoiser_inputs import DenoiserInputs
from .conditions import Condition
from .inpaint import MaskFunction
from .schedule import Sampling
from .step_cache import CachedEvaluations, StepCache

# Velocity [B, 16, h, w] of one evaluation, in any float type.
Network = Callable[[DenoiserInputs], Tensor]


def velocities(network: Network, inputs: Sequence[DenoiserInputs]) -> list[Tensor]:
    """Of evaluations that do not depend on each other: at the same time if the network has a method `together`."""
    together: Callable[[Sequence[DenoiserInputs]], list[Tensor]] | None = getattr(network, "together", None)
    return [network(one) for one in inputs] if together is None else together(inputs)


@dataclass(frozen=True)
class Run:
    """The evaluations of the network that a sampling run will need, declared before it starts."""

    shape: tuple[int, ...]  # of the latent, [B, 16, h, w]
    timesteps: tuple[float, ...]  # each once; a missing one only costs time
    conditions: tuple[Condition, ...]


class Model(Protocol):
    """The interface of a model handle for sampling. `open` makes the network usable for one run and releases it
    afterwards.
    """

    @property
    def sampling(self) -> Sampling: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def latent_channels(self) -> int:
        """Of the latent that is sampled: 16, or others for models in pixel space."""
        ...

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def mask_function(self) -> MaskFunction | None: ...
    @property
    def guidance(self) -> Guidance | None:
        """The model's own guidance, in place of a guider's; None for almost all models."""
        ...

    @property
    def step_cache(self) -> StepCache | None: ...
    def emit(self, event: dict[str, Any]) -> None:
        """Emit an event to the listeners of this program."""
        ...

    def open(self, run: Run) -> AbstractContextManager[Network]: ...
    def unsound(self) -> str | None:
        """Called after a run has failed: a sentence about a tensor of the model that is not finite, or None."""
        ...


class Guidance(Protocol):
    """Guidance that belongs to a model: node packs put functions on a MODEL that combine predictions in another way."""

    def combine(
        self, evaluate: Evaluate, conditionings: Sequence[Conditioning], cfg: float, want_uncond: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(D, U) as `Guider.combine`, for a prompt and, if there are two, a negative prompt."""
        ...


# A guider evaluates some of its conditionings, given by number, and combines the images D that come back.
Evaluate = Callable[[Sequence[int]], list[Tensor]]


class Guider(Protocol):
    """The value of a GUIDER link. `combine` returns (D, U); U only if `want_uncond`."""

    @property
    def model(self) -> Model: ...
    @property
    def conditionings(self) -> tuple[Conditioning, ...]: ...
    def combine(self, evaluate: Evaluate, want_uncond: bool) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class BasicGuider:
    """One conditioning, without guidance except the one distilled into the model. U is zero."""

    model: Model
    conditioning: Conditioning

    @property
    def conditionings(self) -> tuple[Conditioning, ...]:
        return (self.conditioning,)

    def combine(self, evaluate: Evaluate, want_uncond: bool) -> tuple[Tensor, Tensor | None]:
        if self.model.guidance is not None:
            return self.model.guidance.combine(evaluate, self.conditionings, 1.0, want_uncond)
        (D,) = evaluate([0])
        return D, torch.zeros_like(D) if want_uncond else None


@dataclass(frozen=True)
class CFGGuider:
    """Classifier-free guidance, D = U + cfg (C - U) (Ho & Salimans 2022). At cfg 1 the negative prompt is not
    evaluated.
    """

    model: Model
    positive: Conditioning
    negative: Conditioning
    cfg: float = 1.0

    @property
    def conditionings(self) -> tuple[Conditioning, ...]:
        return self.positive, self.negative

    def combine(self, evaluate: Evaluate, want_uncond: bool) -> tuple[Tensor, Tensor | None]:
        if self.model.guidance is not None:
            return self.model.guidance.combine(evaluate, self.conditionings, self.cfg, want_uncond)
        if math.isclose(self.cfg, 1.0) and not want_uncond:
            return evaluate([0])[0], None
        C, U = evaluate([0, 1])
        return U + self.cfg * (C - U), U


@dataclass(frozen=True)
class DualCFGGuider:
    """Two prompts with separate guidance: `cond1` against `cond2`, and both against `negative` (Brooks et al. 2023, eq.
    3).

    regular  D = U + b (C2 - U) + a (C1 - C2)       nested  D = U + b (C2 + a (C1 - C2) - U)
    """

    model: Model
    cond1: Conditioning
    cond2: Conditioning
    negative: Conditioning
    cfg_conds: float  # a
    cfg_cond2_negative: float  # b
    style: str = "regular"

    @property
    def conditionings(self) -> tuple[Conditioning, ...]:
        return self.cond1, self.cond2, self.negative

    def combine(self, evaluate: Evaluate, want_uncond: bool) -> tuple[Tensor, Tensor | None]:
        if self.model.guidance is not None:
            raise InputError(
                "A node of another pack has put a guidance function on the model, which is for one prompt and one "
                "negative prompt. Use CFGGuider, or remove that node."
            )
        a, b = self.cfg_conds, self.cfg_cond2_negative
        if self.style == "nested":
            C1, C2, U = evaluate([0, 1, 2])
            return U + b * (C2 + a * (C1 - C2) - U), C2
        if math.isclose(b, 1.0) and not want_uncond:
            if math.isclose(a, 1.0):
                return evaluate([0])[0], None
            C1, C2 = evaluate([0, 1])
            return C2 + a * (C1 - C2), None
        C1, C2, U = evaluate([0, 1, 2])
        return U + b * (C2 - U) + a * (C1 - C2), U


@dataclass(frozen=True)
class Denoiser:
    """The Denoise of a guider: its conditions, evaluated by a network and combined."""

    guider: Guider
    network: Network
    conditions: Sequence[Sequence[Condition]]  # one list for each of the guider's conditionings
    dtype: torch.dtype
    cache: CachedEvaluations | None = None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        def combined() -> Tensor:
            return self.guider.combine(Evaluation(self, x, sigma), want_uncond=False)[0]

        if self.cache is None or self.cache.setting.keeps != "denoised":
            return combined()
        self.cache.begin(torch.tensor(sigma).item())
        return self.cache.evaluate("all", x, combined)

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        D, U = self.guider.combine(Evaluation(self, x, sigma), want_uncond=True)
        assert U is not None
        return D, U

    def evaluate(self, which: Sequence[int], x: Tensor, sigma: float) -> list[Tensor]:
        """D for each of the conditionings: the weighted mean of the D of its active conditions."""
        sigma = torch.tensor(sigma).item()  # fp32, like the network's input
        timestep = self.guider.model.sampling.timestep(sigma)
        found: list[Tensor] = []
        if self.cache is not None and self.cache.setting.keeps != "denoised":
            self.cache.begin(sigma)
        active = {
            (number, key): c for number in which for key, c in enumerate(self.conditions[number]) if c.active(sigma)
        }
        asked = _Asked(self.network, {key: c.inputs(x, timestep, self.dtype, sigma) for key, c in active.items()})
        for number in which:
            mine = {key: c for key, c in active.items() if key[0] == number}
            found.append(_blend([(c, self._denoised(key, c, x, sigma, asked)) for key, c in mine.items()], x))
        return found

    def _denoised(self, key: Hashable, condition: Condition, x: Tensor, sigma: float, asked: _Asked) -> Tensor:
        """D of one condition in fp32, of its area if it has one. key: identifies the condition in this run."""
        inputs = asked.inputs[key]
        if self.cache is None or self.cache.setting.keeps == "denoised":
            velocity = asked.velocity(key).float()
        else:
            velocity = self.cache.evaluate(key, inputs.x[:, : x.shape[1]], lambda: asked.velocity(key)).float()
        if velocity.shape[-2:] != inputs.x.shape[-2:]:
            raise InputError(f"The network returned {tuple(velocity.shape)} for a latent {tuple(inputs.x.shape)}.")
        return (x if condition.area is None else condition.area.of(x)) - sigma * velocity


class _Asked:
    """The velocities of all conditions at one level. If the first is computed, so are the others (step_cache.py)."""

    def __init__(self, network: Network, inputs: dict[Hashable, DenoiserInputs]) -> None:
        self.network, self.inputs = network, inputs
        self._made: dict[Hashable, Tensor] = {}

    def velocity(self, key: Hashable) -> Tensor:
        if hasattr(self.network, "together") and key == next(iter(self.inputs)):
            self._made = dict(zip(self.inputs, velocities(self.network, list(self.inputs.values())), strict=True))
        made = self._made.pop(key, None)
        return self.network(self.inputs[key]) if made is None else made


@dataclass(frozen=True)
class Evaluation:
    """One evaluation that a guider combines: call it with the numbers of conditionings."""

    denoiser: Denoiser
    x: Tensor
    sigma: float

    def __call__(self, which: Sequence[int]) -> list[Tensor]:
        return self.denoiser.evaluate(which, self.x, self.sigma)

    def at(self, x: Tensor, sigma: float) -> Evaluation:
        """The same for another latent or another level."""
        return Evaluation(self.denoiser, x, sigma)


def cached_evaluations(model: Model) -> CachedEvaluations | None:
    """The step cache of one run with this model; None if it has none."""
    setting = model.step_cache
    if setting is None:
        return None
    start, end = (model.sampling.percent_to_sigma(share) for share in (setting.start_percent, setting.end_percent))
    return CachedEvaluations(setting, torch.tensor(start).item(), torch.tensor(end).item())


def _blend(parts: Sequence[tuple[Condition, Tensor]], x: Tensor) -> Tensor:
    """sum w D / sum w, shaped like x, over conditions and their D."""
    if len(parts) == 1 and parts[0][0].everywhere:
        return parts[0][1]
    total = torch.zeros_like(x)
    weights = torch.full_like(x[:, :1], 1e-37)  # no condition is active: 0 / 1e-37
    for condition, D in parts:
        area, weight = condition.area, condition.weight
        (total if area is None else area.of(total)).add_(D * weight)
        (weights if area is None else area.of(weights)).add_(weight)
    return total / weights
