"""CFG++ solvers (Chung et al. 2024, arXiv 2406.08070): move to the guided estimate D along the unguided direction of U.

They need the estimate of the negative prompt even at cfg 1, hence two network calls for each evaluation.
Only the Euler pair is in rectified-flow form; the others keep the diffusion form they were published in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import Tensor

from .flow import Denoise, OnStep, Sigmas, StepNoise, ancestral_split, ignore
from .multistep import res_weights


def euler_ancestral_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise | None = None,
    on_step: OnStep = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """x' = alpha' D + s' e, with the noise e = (x - alpha U) / s; with `noise`, some of e is replaced by it.

    That split is made in s / alpha, as diffusion models make it.
    """
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D, U = denoise.with_uncond(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        alpha, alpha_next = 1 - s, 1 - s_next
        e = (x - alpha * U) / s
        if noise is None or alpha_next == 0:
            x = alpha_next * D + s_next * e
        else:
            down, up = ancestral_split(s / alpha if alpha else math.inf, s_next / alpha_next, eta)
            x = alpha_next * (D + down * e + up * s_noise * noise(s, s_next))
    return x


def euler_cfg_pp_alternative(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore) -> Tensor:
    """Euler along (x - D) / s + (U - D) / s: a step along the direction minus the part added by guidance."""
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D, U = denoise.with_uncond(x, s)
        on_step(i, D, x)
        x = x + (s_next - s) / s * (x - D + U - D)
    return x


def dpmpp_2s_levels(sigmas: Sigmas, *, eta: float = 1.0, **options: Any) -> Iterable[float]:
    for s, s_next in pairwise(sigmas):
        yield s
        if s_next != 0:
            yield math.sqrt(s * ancestral_split(s, s_next, eta)[0])


def dpmpp_2s_ancestral_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    on_step: OnStep = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S) in t = -ln s from x + D - U; the second half uses U at the middle."""
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D, U = denoise.with_uncond(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        down, up = ancestral_split(s, s_next, eta)
        s_mid = math.sqrt(s * down)
        x_mid = (s_mid / s) * (x + D - U) + (1 - s_mid / s) * D
        D_mid, U_mid = denoise.with_uncond(x_mid, s_mid)
        x = (down / s) * (x + D - U_mid) + (1 - down / s) * D_mid
        x = x + up * s_noise * noise(s, s_next)
    return x


def dpmpp_2m_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore) -> Tensor:
    """DPM-Solver++(2M) in t = -ln s: D plus the remaining noise, estimated without the prompt."""
    U_prev = None
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D, U = denoise.with_uncond(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        ratio = s_next / s
        moved = D + ratio * (x - U)
        if U_prev is not None:
            r = math.log(sigmas[i - 1] / s) / math.log(s / s_next)
            moved = moved + (1 - ratio) / (2 * r) * (D - U_prev)
        x, U_prev = moved, U
    return x


def res_multistep_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise | None = None,
    on_step: OnStep = ignore,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Tensor:
    """`res_multistep` from x + D - U with the history of U; with `eta` above 0 it needs `noise`."""
    U_prev, down_prev = None, 0.0
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D, U = denoise.with_uncond(x, s)
        on_step(i, D, x)
        down, up = ancestral_split(s, s_next, eta)
        if U_prev is None or down == 0:
            x = D + down * ((x - U) / s)
        else:
            w, w_prev = res_weights(math.log(s / down), math.log(down_prev / sigmas[i - 1]))
            x = (down / s) * (x + D - U) + w * U + w_prev * U_prev
        if noise is not None and s_next > 0:
            x = x + up * s_noise * noise(s, s_next)
        U_prev, down_prev = U, down
    return x


def gradient_estimation_cfg_pp(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore, gamma: float = 2.0
) -> Tensor:
    """Euler in CFG++ form, plus gamma - 1 times the change of the unguided direction."""
    d_prev = None
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D, U = denoise.with_uncond(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        d = (x - U) / s
        x = D + s_next * d
        if d_prev is not None:
            x = x + (gamma - 1) * (s_next - s) * (d - d_prev)
        d_prev = d
    return x
