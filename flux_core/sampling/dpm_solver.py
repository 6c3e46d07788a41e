"""DPM-Solver, singlestep (Lu et al. 2022, arXiv 2206.00927): fixed steps in few calls, or adaptive step lengths.

Both use t = -ln s, choose their own levels, and stop at the last level above 0: a little noise remains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .flow import Denoise, OnStep, Sigmas, StepNoise, ancestral_split, ignore, root

Direction = Callable[[Tensor, float], Tensor]  # (x, t) -> d
STAGES = {1: (0.0,), 2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}  # by order: the shares of a step with an evaluation


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore) -> Tensor:
    """As many calls as the schedule has steps: steps of order 3, the remaining calls in order 2 or 1 (appendix D.3)."""
    if len(sigmas) < 2:
        return x
    start, end = _ends(sigmas)
    orders = _orders(len(sigmas) - 1)
    h = (end - start) / len(orders)
    direction = _direction(denoise)
    for i, order in enumerate(orders):
        t = start + i * h
        d = direction(x, t)
        on_step(i, x - math.exp(-t) * d, x)
        if order == 1:
            x = _first(x, d, t, h)
        elif order == 2:
            x = _second(x, d, _look_ahead(direction, x, d, t, h, 1 / 2), t, h, 1 / 2)
        else:
            x = _third(direction, x, d, _look_ahead(direction, x, d, t, h, 1 / 3), t, h)
    return x


def dpm_fast_levels(sigmas: Sigmas, **options: Any) -> Iterable[float]:
    start, end = _ends(sigmas)
    orders = _orders(len(sigmas) - 1)
    h = (end - start) / len(orders)
    for i, order in enumerate(orders):
        yield from (math.exp(-(start + i * h + share * h)) for share in STAGES[order])


def _orders(calls: int) -> list[int]:
    threes, rest = divmod(calls, 3)
    return [3] * threes + [rest] if rest else [3] * (threes - 1) + [2, 1]


def dpm_adaptive_levels(
    sigmas: Sigmas, *, h_init: float = 0.05, order: int = 3, eta: float = 0.0, **options: Any
) -> Iterable[float]:
    """Levels of the first attempt: the others depend on the image."""
    t, end = _ends(sigmas)
    if not _goes_on(t, end):
        return ()
    t_down, _ = _down_and_up(t, min(end, t + h_init), end, eta)
    return (math.exp(-(t + share * (t_down - t))) for share in STAGES[order])


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise | None = None,
    on_step: OnStep = ignore,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-12 or -23: steps so long that the next lower order agrees within `atol` + `rtol` (appendix C).

    It uses only the two ends of the schedule; the number of calls depends on the image, with `order` calls per attempt.
    A step whose length would shrink below `accept_safety` of itself is repeated with the shorter length. With `noise`,
    `eta` makes it ancestral. Raises InputError if the first step has no length.
    """
    if len(sigmas) < 2:
        return x
    if h_init <= 0:
        raise InputError("dpm_adaptive needs an h_init above 0: it is the length of its first step.")
    t, end = _ends(sigmas)
    direction = _direction(denoise)
    control = _StepControl(h_init, pcoeff, icoeff, dcoeff, 1.5 if eta else order, accept_safety)
    attempt, before = 0, x
    while _goes_on(t, end):
        t_next = min(end, t + control.h)
        t_down, up = _down_and_up(t, t_next, end, eta if noise else 0.0)
        d = direction(x, t)
        low, high = _attempt(direction, x, d, t, t_down - t, order)
        on_step(attempt, x - math.exp(-t) * d, x)
        tolerance = torch.clamp(rtol * torch.maximum(low.abs(), before.abs()), min=atol)
        error = ((low - high) / tolerance).square().mean().sqrt().item()
        if control.accepts(error):
            before, x = low, high
            if noise is not None:
                x = x + up * s_noise * noise(math.exp(-t), math.exp(-t_next))
            t = t_next
        attempt += 1
    return x


def _goes_on(t: float, end: float) -> bool:
    return t < end - 1e-5


def _attempt(direction: Direction, x: Tensor, d: Tensor, t: float, h: float, order: int) -> tuple[Tensor, Tensor]:
    """The same step with order - 1 and with `order`, which share their calls."""
    if order == 2:
        return _first(x, d, t, h), _second(x, d, _look_ahead(direction, x, d, t, h, 1 / 2), t, h, 1 / 2)
    ahead = _look_ahead(direction, x, d, t, h, 1 / 3)
    return _second(x, d, ahead, t, h, 1 / 3), _third(direction, x, d, ahead, t, h)


def _down_and_up(t: float, t_next: float, end: float, eta: float) -> tuple[float, float]:
    """The target level of an ancestral step, and the size of the noise that returns it to t_next."""
    if not eta:
        return t_next, 0.0
    down, _ = ancestral_split(math.exp(-t), math.exp(-t_next), eta)
    t_down = min(end, -math.log(down)) if down > 0 else end
    return t_down, root(math.exp(-2 * t_next) - math.exp(-2 * t_down))


class _StepControl:
    """A PID controller of step lengths: by errors now, one and two accepted steps ago (Söderlind 2003)."""

    def __init__(self, h: float, p: float, i: float, d: float, order: float, accept_safety: float) -> None:
        self.h, self.accept_safety = h, accept_safety
        self.exponents = (p + i + d) / order, -(p + 2 * d) / order, d / order
        self.inverse_errors: list[float] = []  # newest first

    def accepts(self, error: float) -> bool:
        """Record an attempt's error and return whether it was small enough. `h` becomes the next length to try."""
        inverse = 1 / (error + 1e-8)
        self.inverse_errors = [inverse, *(self.inverse_errors[1:] or [inverse, inverse])]
        factor = math.prod(e**power for e, power in zip(self.inverse_errors, self.exponents, strict=True))
        factor = 1 + math.atan(factor - 1)  # atan limits the change
        accepted = factor >= self.accept_safety
        if accepted:
            self.inverse_errors = [inverse, inverse, self.inverse_errors[1]]
        self.h *= factor
        return accepted


def _ends(sigmas: Sigmas) -> tuple[float, float]:
    return -math.log(sigmas[0]), -math.log(sigmas[-1] or sigmas[-2])


def _direction(denoise: Denoise) -> Direction:
    def direction(x: Tensor, t: float) -> Tensor:
        s = math.exp(-t)
        return (x - denoise(x, s)) / s

    return direction


def _first(x: Tensor, d: Tensor, t: float, h: float) -> Tensor:
    return x - math.exp(-(t + h)) * math.expm1(h) * d


def _look_ahead(direction: Direction, x: Tensor, d: Tensor, t: float, h: float, r: float) -> Tensor:
    """The direction at the share r of the step."""
    return direction(_first(x, d, t, r * h), t + r * h)


def _second(x: Tensor, d: Tensor, ahead: Tensor, t: float, h: float, r: float) -> Tensor:
    return _first(x, d + (ahead - d) / (2 * r), t, h)


def _third(direction: Direction, x: Tensor, d: Tensor, ahead: Tensor, t: float, h: float) -> Tensor:
    """`ahead` is the direction at 1/3; one more is taken at 2/3."""

    def bent(change: Tensor, step: float) -> Tensor:
        return _first(x, d, t, step) - math.exp(-(t + step)) * (math.expm1(step) / step - 1) * change

    r = 2 / 3
    further = direction(bent(2 * (ahead - d), r * h), t + r * h)
    return bent((further - d) / r, h)
