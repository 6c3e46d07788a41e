"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a multistep predictor-corrector whose corrector needs no extra call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .flow import Denoise, OnStep, Sigmas, ignore

ORDER = 3
LAST = 0.001  # replaces the last level 0, where t = -ln s has no value


def uni_pc(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore, bh2: bool = False) -> Tensor:
    """Algorithms 1 and 2 in t = -ln s, with B(h) = h, or B(h) = e^h - 1 if `bh2`. One call a step.

    The order grows from 1 to 3 and falls again towards the end; the last step is not corrected. Where the levels end
    in 0 the state at LAST is scaled up to an image. A schedule of one step changes nothing: ComfyUI's
    implementation needs two steps, and images of schedules split after one step depend on it.
    """
    levels = [*sigmas[:-1], sigmas[-1] or LAST]
    steps = len(levels) - 1
    if steps < 1:
        return x
    order = min(ORDER, steps - 1)
    M = [denoise(x, levels[0])]  # earlier D, newest last
    on_step(0, M[-1], x)
    if not order:
        x = x * math.sqrt((1 + levels[1] ** 2) / (1 + levels[0] ** 2))
    for j in range(1, steps + 1 if order else 1):
        step_order = j if j < order else min(order, steps + 1 - j)
        step = _Step(x, M[-step_order:], levels[j - step_order : j + 1], bh2)
        x = step.predict()
        if j < steps:
            M = [*M[-ORDER:], denoise(x, levels[j])]
            x = step.correct(M[-1])
            on_step(j, M[-1], x)
    return x if sigmas[-1] else x / (1 - LAST)


class _Step:
    """One step from level s_0 = levels[-2] to levels[-1], given D at the earlier levels."""

    def __init__(self, x: Tensor, M: Sequence[Tensor], levels: Sequence[float], bh2: bool) -> None:
        t = [-math.log(s) for s in levels]
        h = t[-1] - t[-2]
        self.M_0 = M[-1]
        # Earlier D, by their distance r in units of this step; r = 1 is the end of this step.
        r = [(past - t[-2]) / h for past in reversed(t[:-2])]
        self.differences = [(M_k - self.M_0) / r_k for M_k, r_k in zip(reversed(M[:-1]), r, strict=True)]
        self.r = [*r, 1.0]
        ratio = levels[-1] / levels[-2]
        self.base = ratio * x + (1 - ratio) * self.M_0
        self.B = math.expm1(-h) if bh2 else -h
        self.b = _exponential_moments(-h, len(self.r), self.B)

    def predict(self) -> Tensor:
        """UniP: the change of M extrapolated from earlier steps only."""
        known = len(self.differences)
        weights = [0.5] if known == 1 else self._solve(known)
        return self._moved(weights, self.differences)

    def correct(self, M_end: Tensor) -> Tensor:
        """UniC: the same step again, with D at its predicted end."""
        weights = [0.5] if len(self.r) == 1 else self._solve(len(self.r))
        return self._moved(weights, [*self.differences, M_end - self.M_0])

    def _solve(self, size: int) -> list[float]:
        r, b = (torch.tensor(values[:size], dtype=torch.float64) for values in (self.r, self.b))
        weights: list[float] = torch.linalg.solve(r[None, :] ** torch.arange(size)[:, None], b).tolist()
        return weights

    def _moved(self, weights: Sequence[float], differences: Sequence[Tensor]) -> Tensor:
        x = self.base
        for weight, difference in zip(weights, differences, strict=True):
            x = x - self.B * weight * difference
        return x


def _exponential_moments(z: float, count: int, B: float) -> list[float]:
    """m! phi_{m+1}(z) z / B for m = 1..count, with phi_{m+1}(z) = (phi_m(z) - 1/m!) / z and phi_1 = (e^z - 1) / z."""
    rest, moments = math.expm1(z) / z - 1, []
    for m in range(1, count + 1):
        moments.append(rest * math.factorial(m) / B)
        rest = rest / z - 1 / math.factorial(m + 1)
    return moments
