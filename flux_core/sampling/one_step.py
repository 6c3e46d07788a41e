"""Single-step solvers: Euler, Heun and midpoint, and their ancestral variants.

Ancestral solvers step below the next level and add fresh noise; on a rectified flow this also rescales the
image's share (`flow_ancestral_split`). They end with x = D.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import Tensor

from .flow import Denoise, OnStep, Sigmas, StepNoise, flow_ancestral_split, half_log_snr, ignore, root, sigma_at


def euler(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore) -> Tensor:
    """x' = x + (s' - s) d, one call a step (Karras et al. 2022, algorithm 2 without its correction)."""
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        x = x + (s_next - s) * ((x - D) / s)
    return x


def heun_levels(sigmas: Sigmas, **options: Any) -> Iterable[float]:
    return (s for s in sigmas if s != 0)


def heun(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore) -> Tensor:
    """Euler, corrected by the direction at its end (Karras et al. 2022, algorithm 2). Two calls a step."""
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        d = (x - D) / s
        x_end = x + (s_next - s) * d
        if s_next == 0:
            return x_end
        d_end = (x_end - denoise(x_end, s_next)) / s_next
        x = x + (s_next - s) * (d + d_end) / 2
    return x


def heunpp2(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore) -> Tensor:
    """Heun++: averages the directions at the next two levels, weighted by the levels.

    Three calls a step, then two, then one.
    """
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        d, h = (x - D) / s, s_next - s
        if s_next == sigmas[-1]:
            x = x + h * d
            continue
        x_2, after = x + h * d, sigmas[i + 2]
        d_2 = (x_2 - denoise(x_2, s_next)) / s_next
        if after == sigmas[-1]:
            w_2 = s_next / (2 * sigmas[0])
            x = x + h * ((1 - w_2) * d + w_2 * d_2)
            continue
        x_3 = x_2 + (after - s_next) * d_2
        d_3 = (x_3 - denoise(x_3, after)) / after
        w_2, w_3 = s_next / (3 * sigmas[0]), after / (3 * sigmas[0])
        x = x + h * ((1 - w_2 - w_3) * d + w_2 * d_2 + w_3 * d_3)
    return x


def dpm_2_levels(sigmas: Sigmas, **options: Any) -> Iterable[float]:
    for s, s_next in pairwise(sigmas):
        yield from (s, *_middle(s, s_next))


def dpm_2(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, on_step: OnStep = ignore) -> Tensor:
    """The direction at the geometric middle of the step (DPM-Solver-2, Lu et al. 2022). Two calls a step."""
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        x = _midpoint(denoise, x, (x - D) / s, s, s_next)
    return x


def _midpoint(denoise: Denoise, x: Tensor, d: Tensor, s: float, s_next: float) -> Tensor:
    for s_mid in _middle(s, s_next):
        x_mid = x + (s_mid - s) * d
        d = (x_mid - denoise(x_mid, s_mid)) / s_mid
    return x + (s_next - s) * d


def _middle(s: float, s_next: float) -> tuple[float, ...]:
    """The geometric middle of a step; None if the step ends at 0."""
    return (math.sqrt(s * s_next),) if s_next != 0 else ()


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    on_step: OnStep = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler to below s', then fresh noise (k-diffusion, in its rectified-flow form)."""
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        down, scale, up = flow_ancestral_split(s, s_next, eta)
        x = scale * _toward(x, D, down / s) + up * s_noise * noise(s, s_next)
    return x


def dpm_2_ancestral_levels(sigmas: Sigmas, *, eta: float = 1.0, **options: Any) -> Iterable[float]:
    for s, s_next in pairwise(sigmas):
        yield from (s, *_middle(s, flow_ancestral_split(s, s_next, eta)[0]))


def dpm_2_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    on_step: OnStep = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """`dpm_2` to below s', then fresh noise (k-diffusion, in its rectified-flow form)."""
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        down, scale, up = flow_ancestral_split(s, s_next, eta)
        x = _midpoint(denoise, x, (x - D) / s, s, down)
        if s_next > 0:
            x = scale * x + up * s_noise * noise(s, s_next)
    return x


def dpmpp_2s_levels(sigmas: Sigmas, *, eta: float = 1.0, **options: Any) -> Iterable[float]:
    for s, s_next in pairwise(sigmas):
        yield s
        if s_next != 0:
            yield _half_way(s, flow_ancestral_split(s, s_next, eta)[0])


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    on_step: OnStep = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022b): uses D at the middle of the step in lambda."""
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        down, scale, up = flow_ancestral_split(s, s_next, eta)
        s_mid = _half_way(s, down)
        D_mid = denoise(_toward(x, D, s_mid / s), s_mid)
        x = scale * _toward(x, D_mid, down / s) + up * s_noise * noise(s, s_next)
    return x


def _half_way(s: float, down: float) -> float:
    """The middle in lambda. If s is 1 there is none, because lambda(1) is minus infinity; then a level just below 1 is
    used.
    """
    return 0.9999 if s == 1 else sigma_at((half_log_snr(s) + half_log_snr(down)) / 2)


def _toward(x: Tensor, D: Tensor, ratio: float) -> Tensor:
    """The point between x and D at which the share `ratio` of the noise remains."""
    return ratio * x + (1 - ratio) * D


def lcm(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, noise: StepNoise, on_step: OnStep = ignore) -> Tensor:
    """To D, then fresh noise up to s' (Luo et al. 2023, Latent Consistency Models)."""
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        if s_next == 0:
            return D
        x = s_next * noise(s, s_next) + (1 - s_next) * D
    return x


def ddpm(denoise: Denoise, x: Tensor, sigmas: Sigmas, *, noise: StepNoise, on_step: OnStep = ignore) -> Tensor:
    """Ho et al. 2020, algorithm 2, on y = x / sqrt(1 + s^2).

    It is derived for diffusion models; on a flow model it runs without that justification.
    """
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, s)
        on_step(i, D, x)
        a_bar, a_bar_next = 1 / (1 + s**2), 1 / (1 + s_next**2)
        a = a_bar / a_bar_next
        y = (x * root(a_bar) - (1 - a) / root(1 - a_bar) * ((x - D) / s)) / root(a)
        if s_next > 0:
            y = y + root((1 - a) * (1 - a_bar_next) / (1 - a_bar)) * noise(s, s_next)
        x = y / root(a_bar_next)
    return x
