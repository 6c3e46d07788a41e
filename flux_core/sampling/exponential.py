"""Solvers in lambda = ln((1 - s) / s), most of them stochastic: DPM-Solver++ SDE, ER-SDE, SEEDS.

They solve the linear part of the equation exactly (an exponential integrator) and interpolate D. lambda is minus
infinity at s = 1, so the first level must be below 1. All end with x = D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .flow import Denoise, OnStep, Sigmas, StepNoise, ancestral_split, half_log_snr, ignore, root, sigma_at


def dpmpp_sde_levels(sigmas: Sigmas, *, r: float = 0.5, **options: Any) -> Iterable[float]:
    for s, s_next in pairwise(sigmas):
        yield s
        if s_next != 0:
            yield _fp32_between(s, s_next, r)


def dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    on_step: OnStep = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> Tensor:
    """DPM-Solver++ SDE, singlestep with its middle at the share `r` of the step (Lu et al. 2022b). Two calls a step.

    Raises InputError for r = 0, where the middle of the step would be its start.
    """
    if r == 0:
        raise InputError(
            "DPM-Solver++ SDE needs an r above 0: it is the share of the step at which D is evaluated again."
        )
    weight = 1 / (2 * r)

    def move(x: Tensor, D: Tensor, s: float, s_to: float) -> Tensor:
        """From s to s_to: to a level below it, then up with noise, in ratios of noise to image, s / (1 - s)."""
        ratio, alpha_to = s / (1 - s), 1 - s_to
        down, up = ancestral_split(ratio, s_to / alpha_to, eta)
        kept = alpha_to * down / s
        return kept * x + alpha_to * (1 - down / ratio) * D + alpha_to * up * s_noise * noise(s, s_to)

    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        s_mid = _fp32_between(s, s_next, r)
        D_mid = denoise(move(x, D, s, s_mid), s_mid)
        x = move(x, D_mid if weight == 1 else (1 - weight) * D + weight * D_mid, s, s_next)
    return x


def _fp32_between(s: float, s_next: float, share: float) -> float:
    """A level within a step, by its share in lambda, exact to the last bit of fp32: a Brownian path has different noise
    at a neighbouring level.
    """
    start, end = torch.tensor([s, s_next]).logit()
    return torch.sigmoid(start + share * (end - start)).item()


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    on_step: OnStep = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
    heun: bool = False,
) -> Tensor:
    """DPM-Solver++(2M) SDE (Lu et al. 2022b): one call a step; the change of D is weighted as in the midpoint or the
    Heun method.
    """
    D_prev, h_prev = None, 0.0
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        h = half_log_snr(s_next) - half_log_snr(s)
        base = _first_order(x, D, s, s_next, h, eta)
        if D_prev is not None:
            z = h * (1 + eta)
            weight = 1 + math.expm1(-z) / z if heun else -math.expm1(-z) / 2
            base = base + (1 - s_next) * weight * (h / h_prev) * (D - D_prev)
        x = base + _noise_size(s_next, h, eta) * s_noise * noise(s, s_next)
        D_prev, h_prev = D, h
    return x


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    on_step: OnStep = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(3M) SDE (k-diffusion, after Lu et al. 2022b): first and second differences of D."""
    D_1 = D_2 = None  # one and two steps ago
    h_1 = h_2 = 0.0
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        h = half_log_snr(s_next) - half_log_snr(s)
        base = _first_order(x, D, s, s_next, h, eta)
        z = h * (1 + eta)
        phi_2 = 1 + math.expm1(-z) / z
        if D_1 is not None:
            slope = (D - D_1) * (h / h_1)
            if D_2 is not None:
                r_0, r_1 = h_1 / h, h_2 / h
                bend = (slope - (D_1 - D_2) / r_1) / (r_0 + r_1)
                base = base - (1 - s_next) * (phi_2 / z - 0.5) * bend
                slope = slope + r_0 * bend
            base = base + (1 - s_next) * phi_2 * slope
        x = base + _noise_size(s_next, h, eta) * s_noise * noise(s, s_next)
        D_1, D_2, h_1, h_2 = D, D_1, h, h_1
    return x


def _first_order(x: Tensor, D: Tensor, s: float, s_to: float, h: float, eta: float) -> Tensor:
    """The exponential integrator with D held constant; `eta` moves weight from x to D, and noise is added for it."""
    return (s_to / s) * math.exp(-h * eta) * x - (1 - s_to) * math.expm1(-h * (1 + eta)) * D


def _noise_size(s_to: float, h: float, eta: float) -> float:
    return s_to * root(-math.expm1(-2 * h * eta))


def er_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    on_step: OnStep = ignore,
    s_noise: float = 1.0,
    max_stage: int = 3,
    eta: float | None = None,
) -> Tensor:
    """Extended reverse-time SDE solver, third order (Cui et al. 2023, arXiv 2309.06169, VP ER-SDE-Solver-3).

    Counts in r = s / (1 - s), with the noise scale g(r) = r (exp(r^0.3) + 10). With `eta` the scale is r^(1 + eta)
    instead: the reverse-time SDE, and at 0 its ODE. `max_stage` limits the order.
    """

    def scale(r: Tensor) -> Tensor:
        return r * (torch.exp(r**0.3) + 10) if eta is None else r ** (1 + eta)

    def scale_at(r: float) -> float:
        return scale(torch.tensor(r, dtype=torch.float64)).item()

    levels = [s / (1 - s) for s in sigmas]
    D_prev = slope_prev = None
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        r, r_next, alpha = levels[i], levels[i + 1], 1 - s_next
        kept = scale_at(r_next) / scale_at(r)
        moved = alpha / (1 - s) * kept * x + alpha * (1 - kept) * D
        if D_prev is not None and max_stage >= 2:
            area, moment = _er_integrals(scale, r, r_next)
            dt, g = r_next - r, scale_at(r_next)
            slope = (D - D_prev) / (r - levels[i - 1])
            moved = moved + alpha * (dt + area * g) * slope
            if slope_prev is not None and max_stage >= 3:
                bend = (slope - slope_prev) / ((r - levels[i - 2]) / 2)
                moved = moved + alpha * (dt**2 / 2 + moment * g) * bend
            slope_prev = slope
        x = moved + alpha * root(r_next**2 - (r * kept) ** 2) * s_noise * noise(s, s_next)
        D_prev = D
    return x


def _er_integrals(scale: Callable[[Tensor], Tensor], r: float, r_next: float, points: int = 200) -> tuple[float, float]:
    """Integrals from r_next to r of 1/g(u) and of (u - r)/g(u), as left sums."""
    width = (r - r_next) / points
    u = r_next + width * torch.arange(points, dtype=torch.float64)
    inverse = 1 / scale(u)
    return (inverse.sum() * width).item(), (((u - r) * inverse).sum() * width).item()


class _Increments:
    """Correlated noise within one SEEDS step: earlier draws decay in lambda while new noise is added."""

    def __init__(self, noise: StepNoise, eta: float) -> None:
        self.noise, self.eta = noise, eta

    def start(self, s: float, s_to: float, h: float) -> Tensor:
        self.now = root(-math.expm1(-2 * h * self.eta)) * self.noise(s, s_to)
        return self.now

    def go_on(self, s: float, s_to: float, h: float) -> Tensor:
        """From s to s_to, a distance h in lambda."""
        fresh = root(-math.expm1(-2 * h * self.eta)) * self.noise(s, s_to)
        self.now = math.exp(-h * self.eta) * self.now + fresh
        return self.now


def seeds_2_levels(sigmas: Sigmas, **options: Any) -> Iterable[float]:
    return _with_stages(sigmas, 1 / 2)


def seeds_3_levels(sigmas: Sigmas, **options: Any) -> Iterable[float]:
    return _with_stages(sigmas, 1 / 3, 2 / 3)


def _with_stages(sigmas: Sigmas, *shares: float) -> Iterable[float]:
    """The start of each step, and levels at these shares of it in lambda."""
    for s, s_next in pairwise(sigmas):
        yield s
        if s_next != 0:
            lam = half_log_snr(s)
            h = half_log_snr(s_next) - lam
            yield from (sigma_at(lam + share * h) for share in shares)


def seeds_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    on_step: OnStep = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """SEEDS-2: exponential Runge-Kutta for the SDE, middle at 1/2 (Gonzalez et al. 2023, arXiv 2305.14267)."""
    path = _Increments(noise, eta)
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        lam, lam_next = half_log_snr(s), half_log_snr(s_next)
        h = lam_next - lam
        s_1 = sigma_at((lam + lam_next) / 2)
        x_1 = _first_order(x, D, s, s_1, h / 2, eta) + s_1 * s_noise * path.start(s, s_1, h / 2)
        D_1 = denoise(x_1, s_1)
        x = _first_order(x, D_1, s, s_next, h, eta) + s_next * s_noise * path.go_on(s_1, s_next, h / 2)
    return x


def seeds_3(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    on_step: OnStep = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """SEEDS-3: three stages, at 0, 1/3 and 2/3 of the step (Gonzalez et al. 2023, algorithm 4). Three calls a step."""

    def phi_2(z: float) -> float:
        return (math.expm1(z) - z) / z

    path = _Increments(noise, eta)
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        lam = half_log_snr(s)
        h = half_log_snr(s_next) - lam
        s_1, s_2, z = sigma_at(lam + h / 3), sigma_at(lam + 2 * h / 3), h * (1 + eta)
        x_1 = _first_order(x, D, s, s_1, h / 3, eta) + s_1 * s_noise * path.start(s, s_1, h / 3)
        D_1 = denoise(x_1, s_1)
        x_2 = _first_order(x, D, s, s_2, 2 * h / 3, eta) - (1 - s_2) * 2 * phi_2(-2 * z / 3) * (D_1 - D)
        x_2 = x_2 + s_2 * s_noise * path.go_on(s_1, s_2, h / 3)
        D_2 = denoise(x_2, s_2)
        x = _first_order(x, D, s, s_next, h, eta) - (1 - s_next) * 1.5 * phi_2(-z) * (D_2 - D)
        x = x + s_next * s_noise * path.go_on(s_2, s_next, h / 3)
    return x
