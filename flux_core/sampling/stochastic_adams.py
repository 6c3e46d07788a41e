"""SA-Solver (Xue et al. 2023, arXiv 2309.05019): a stochastic Adams method, predictor and corrector.

Uses lambda = ln((1 - s) / s), so the first level must be below 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .flow import Denoise, OnStep, Sigmas, StepNoise, half_log_snr, ignore, root
from .schedule import Sampling

STOCHASTIC = 0.2, 0.8  # tau is above 0 between these shares of the way to the image, 0 outside


def sa_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    sampling: Sampling,
    noise: StepNoise,
    on_step: OnStep = ignore,
    s_noise: float = 1.0,
    pece: bool = False,
    eta: float = 1.0,
    between: tuple[float, float] | None = None,
    predictor_order: int = 3,
    corrector_order: int = 4,
    simple_order_2: bool = False,
) -> Tensor:
    """Predict x', evaluate D' there, correct x' with D', continue. One call a step (algorithm 1).

    `pece` also evaluates at the corrected state: two calls a step. If the levels do not end in 0, the result is
    the corrected state at the last level but one, as in the reference. tau is `eta` at levels `between` two noise
    levels (high, low), 0 elsewhere. A corrector of order 0 leaves the prediction as it is. `simple_order_2` takes the
    shorter weights of appendix D wherever two points are used.
    """
    high, low = between or tuple(sampling.percent_to_sigma(share) for share in STOCHASTIC)
    lambdas = [half_log_snr(s) for s in sigmas]
    steps = len(sigmas) - 1
    seen: list[Tensor] = []  # D at the last levels, newest last
    guess, tau, added = x, 0.0, torch.zeros_like(x)
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(guess, s)
        on_step(i, D, guess)
        seen = [*seen, D][-max(predictor_order, corrector_order) :]
        predictor, corrector = min(predictor_order, len(seen)), min(corrector_order, len(seen))
        if sigmas[-1] == 0:  # fewer points towards the end, for stability
            predictor, corrector = min(predictor, steps - 1 - i), min(corrector, steps - i)
        if i == 0 or corrector == 0 or (s_next == 0 and not pece):
            x = guess
        else:
            nodes = lambdas[i + 1 - corrector : i + 1]
            x = _adams(x, seen[-corrector:], nodes, sigmas[i - 1], s, tau, simple_order_2) + added
            if pece:
                seen[-1] = D = denoise(x, s)
        if s_next == 0:
            return D
        tau = max(eta, 0.0) if high >= s_next >= low else 0.0
        nodes = lambdas[i + 1 - predictor : i + 1]
        guess = _adams(x, seen[-predictor:], nodes, s, s_next, tau, simple_order_2)
        if tau:
            size = s_next * root(-math.expm1(-2 * tau**2 * (lambdas[i + 1] - lambdas[i])))
            added = size * s_noise * noise(s, s_next)
            guess = guess + added
        else:
            added = torch.zeros_like(x)
    return x


def _adams(
    x: Tensor, seen: Sequence[Tensor], nodes: Sequence[float], s: float, s_to: float, tau: float, simple: bool
) -> Tensor:
    """The deterministic part of a step from s to s_to, with the polynomial through `seen` at the lambdas `nodes`."""
    start, end = half_log_snr(s), half_log_snr(s_to)
    if simple and len(nodes) == 2:
        weights = _simple_weights(nodes, start, end, 1 + tau**2)
    else:
        weights = _adams_weights([node - end for node in nodes], start - end, 1 + tau**2)
    x = (s_to / s) * math.exp(-(tau**2) * (end - start)) * x
    for weight, D in zip(weights, seen, strict=True):
        x = x + (1 - s_to) * weight * D
    return x


def _simple_weights(nodes: Sequence[float], start: float, end: float, rate: float) -> list[float]:
    """Two weights that agree with the exact ones to second order (appendix D). A corrector has a node at the end."""
    h = end - start
    total = -math.expm1(-rate * h)
    if nodes[-1] == end:
        return [total - rate * h / 2, rate * h / 2]
    older = rate * h**2 / 2 / (nodes[0] - start)
    return [older, total - older]


def _adams_weights(nodes: Sequence[float], start: float, rate: float) -> list[float]:
    """Integrals over u from `start` to 0 of rate e^(rate u) times the Lagrange polynomials over `nodes` (equation 15).

    The integrals of the powers u^m follow from one another by parts; matching them at the nodes gives the weights.
    """
    powers = torch.arange(len(nodes))
    moments: list[float] = []
    for m in range(len(nodes)):
        edge = (1.0 if m == 0 else 0.0) - start**m * math.exp(rate * start)
        moments.append(edge - m / rate * moments[-1] if m else edge)
    vandermonde = torch.tensor(nodes, dtype=torch.float64)[None, :] ** powers[:, None]
    weights: list[float] = torch.linalg.solve(vandermonde, torch.tensor(moments, dtype=torch.float64)).tolist()
    return weights
