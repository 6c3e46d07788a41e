"""Multistep solvers: one call a step, and the directions or estimates of earlier steps.

Polynomials through past directions d in s (`lms`, `ipndm`, `deis`), or through past estimates D in t = -ln s
(`dpmpp_2m`, `res_multistep`). All start with Euler and end with x = D.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .flow import Denoise, OnStep, Sigmas, StepNoise, ancestral_split, ignore


def lms(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore, order: int = 4) -> Tensor:
    """Linear multistep: integrates the polynomial through the last `order` directions (Adams & Bashforth)."""
    history: deque[Tensor] = deque(maxlen=order)  # d_0 (now), d_1, d_2...
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        history.appendleft((x - D) / s)
        nodes = [sigmas[i - j] for j in range(len(history))]
        x = x + _weighted(lagrange_integrals(nodes, s, s_next), history)
    return x


def lagrange_integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The integral from start to end of each Lagrange polynomial over `nodes`, by a Gauss rule that is exact for
    them.
    """
    middle, half = (start + end) / 2, (end - start) / 2
    points, weights = np.polynomial.legendre.leggauss((len(nodes) + 1) // 2)
    looks = [(middle + half * float(at), half * float(weight)) for at, weight in zip(points, weights, strict=True)]
    return [sum(weight * _lagrange(nodes, j, u) for u, weight in looks) for j in range(len(nodes))]


def _lagrange(nodes: Sequence[float], j: int, u: Any) -> Any:
    """The Lagrange polynomial of node j at u (a number or a tensor of them)."""
    product = 1.0
    for k, node in enumerate(nodes):
        if k != j:
            product = product * (u - node) / (nodes[j] - node)
    return product


def _weighted(weights: Sequence[float], history: Sequence[Tensor]) -> Tensor:
    return sum((w * d for w, d in zip(weights, history, strict=True)), start=torch.zeros_like(history[0]))


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ipndm(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore, order: int = 4) -> Tensor:
    """Adams-Bashforth that assumes steps of equal length (Zhang & Chen 2023, the iPNDM of "DEIS")."""
    history: deque[Tensor] = deque(maxlen=order)
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        history.appendleft((x - D) / s)
        x = x + (s_next - s) * _weighted(ADAMS_BASHFORTH[len(history) - 1], history)
    return x


def ipndm_v(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore, order: int = 4) -> Tensor:
    """`ipndm` for steps of any length, with the coefficients of Zhou et al. 2023 ("AMED", diff-solvers)."""
    history: deque[Tensor] = deque(maxlen=order)
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        history.appendleft((x - D) / s)
        steps = [sigmas[i + 1 - k] - sigmas[i - k] for k in range(len(history))]
        x = x + (s_next - s) * _weighted(_variable_adams_bashforth(*steps), history)
    return x


def _variable_adams_bashforth(h: float, h1: float = 0.0, h2: float = 0.0, h3: float = 0.0) -> list[float]:
    """Weights for this step of length h after steps of h1, h2, h3; as many weights as there are lengths above 0.

    Built order by order: each order adds a difference times a factor. The factors follow the published code, which
    differs slightly from the interpolating polynomial.
    """
    if h1 == 0:
        return [1.0]
    first = h / (2 * h1)
    if h2 == 0:
        return [1 + first, -first]
    second = (1 - h**2 / (3 * h1 * (h1 + h2))) / 2
    r = h1 / h2
    if h3 == 0:
        return [1 + first + second, -first - (1 + r) * second, r * second]
    third = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
    third *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    q = h1 * (h1 + h2) / (h2 * (h2 + h3))
    return [
        1 + first + second + third,
        -first - (1 + r) * second - (1 + r + q) * third,
        r * second + (r + q * (1 + h2 / h3)) * third,
        -r * q * third,
    ]


def deis(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore, order: int = 3) -> Tensor:
    """Diffusion Exponential Integrator Sampler, tAB-DEIS (Zhang & Chen 2023, algorithm 1)."""
    times = [_vp_time(s) for s in sigmas]
    history: deque[Tensor] = deque(maxlen=order)
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        history.appendleft((x - D) / s)
        nodes = [times[i - j] for j in range(len(history))]
        weights = [s_next - s] if i == 0 else _deis_weights(nodes, times[i + 1])
        x = x + _weighted(weights, history)
    return x


# DEIS counts in the time t of a variance-preserving process with noise levels 0.002 to 80 and t from 0.001 to 1:
# ln(1 + s^2) = BETA_D t^2 / 2 + BETA_MIN t.
_LOW, _HIGH, _EPSILON = math.log1p(0.002**2), math.log1p(80**2), 1e-3
BETA_D = 2 * (_LOW / _EPSILON - _HIGH) / (_EPSILON - 1)
BETA_MIN = _HIGH - BETA_D / 2
QUADRATURE_POINTS = 10_000


def _vp_time(s: float) -> float:
    return (math.sqrt(BETA_MIN**2 + 2 * BETA_D * math.log1p(s**2)) - BETA_MIN) / BETA_D


def _deis_weights(nodes: Sequence[float], end: float) -> list[float]:
    """Integrals over time of ds/dt times the Lagrange polynomials over `nodes`, as a plain sum over many points."""
    t = torch.linspace(nodes[0], end, QUADRATURE_POINTS, dtype=torch.float64)
    alpha = torch.exp(-BETA_D * t**2 / 2 - BETA_MIN * t)
    speed = (BETA_D * t + BETA_MIN) / (2 * torch.sqrt(alpha * (1 - alpha)))
    width = (end - nodes[0]) / QUADRATURE_POINTS
    return [width * (speed * _lagrange(nodes, j, t)).sum().item() for j in range(len(nodes))]


def gradient_estimation(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore, gamma: float = 2.0
) -> Tensor:
    """Euler along gamma d - (gamma - 1) d_prev (Permenter & Yuan 2024, arXiv 2306.04848)."""
    d_prev = None
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        d = (x - D) / s
        guess = d if d_prev is None else gamma * d - (gamma - 1) * d_prev
        x, d_prev = x + (s_next - s) * guess, d
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore) -> Tensor:
    """DPM-Solver++(2M) in t = -ln s (Lu et al. 2022b, algorithm 2): D extrapolated to the middle of the step."""
    D_prev = None
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        D_mid = D
        if D_prev is not None:
            r = math.log(sigmas[i - 1] / s) / math.log(s / s_next)  # length of the last step, in units of this one
            D_mid = D + (D - D_prev) / (2 * r)
        ratio = s_next / s
        x, D_prev = ratio * x + (1 - ratio) * D_mid, D
    return x


def res_multistep(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise | None = None,
    on_step: OnStep = ignore,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Refined exponential solver, second order, multistep (Zhang et al. 2023, arXiv 2308.02157).

    With `eta` above 0 it needs `noise`, steps below s' and adds noise as for diffusion models; on a flow model that is
    an approximation.
    """
    D_prev, down_prev = None, 0.0
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        down, up = ancestral_split(s, s_next, eta)
        if D_prev is None or down == 0:
            x = x + (down - s) * ((x - D) / s)
        else:
            w, w_prev = res_weights(math.log(s / down), math.log(down_prev / sigmas[i - 1]))
            x = (down / s) * x + w * D + w_prev * D_prev
        if noise is not None and s_next > 0:
            x = x + up * s_noise * noise(s, s_next)
        D_prev, down_prev = D, down
    return x


def res_weights(h: float, back: float) -> tuple[float, float]:
    """Weights of D and of the earlier D at distance `back` (negative) in t, for a step of length h in t."""
    phi_1 = -math.expm1(-h) / h
    phi_2 = (1 - phi_1) / h
    c_2 = back / h
    return h * (phi_1 - phi_2 / c_2), h * phi_2 / c_2
