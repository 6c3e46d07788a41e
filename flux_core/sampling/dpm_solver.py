"""DPM-Solver, singlestep (Lu et al. 2022, arXiv 2206.00927): fixed steps in few calls, or steps as long as they may be.

Both count in t = -ln s, choose their own levels, and stop at the last level above 0: a little noise stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .flow import Denoise, OnStep, Sigmas, ignore

Direction = Callable[[Tensor, float], Tensor]  # (x, t) -> d


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore) -> Tensor:
    """As many calls as the schedule has steps, spent in steps of order 3, the rest in order 2 or 1 (appendix D.3)."""
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


def _orders(calls: int) -> list[int]:
    threes, rest = divmod(calls, 3)
    return [3] * threes + [rest] if rest else [3] * (threes - 1) + [2, 1]


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    on_step: OnStep = ignore,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    accept: float = 0.81,
) -> Tensor:
    """DPM-Solver-23: order 3, with steps chosen so that order 2 agrees within `atol` + `rtol` (appendix C).

    Of the schedule it takes the ends only; the number of calls follows from the picture, three for each attempt.
    """
    if len(sigmas) < 2:
        return x
    t, end = _ends(sigmas)
    direction = _direction(denoise)
    h, attempt, before = h_init, 0, x
    while t < end - 1e-5:
        step = min(h, end - t)
        d = direction(x, t)
        ahead = _look_ahead(direction, x, d, t, step, 1 / 3)
        low = _second(x, d, ahead, t, step, 1 / 3)
        high = _third(direction, x, d, ahead, t, step)
        on_step(attempt, x - math.exp(-t) * d, x)
        tolerance = torch.clamp(rtol * torch.maximum(low.abs(), before.abs()), min=atol)
        error = ((low - high) / tolerance).square().mean().sqrt().item()
        # The step would grow by this factor if errors were exactly of third order; atan keeps it from jumping.
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / 3) - 1)
        if factor >= accept:
            before, x, t = low, high, t + step
        h, attempt = h * factor, attempt + 1
    return x


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
