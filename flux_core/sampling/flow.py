"""The symbols that all solvers share.

    x   the state [B, 16, h, w] at noise level s:  x = s * noise + (1 - s) * image
    D   the estimate of the clean image at x: denoise(x, s).  U is the same without the prompt
    d   the direction of the flow, (x - D) / s: from image to noise, the network's velocity
    s', s_next   the target level of a step; the last one is usually 0
    a   alpha = 1 - s, the share of image at s
    l   lambda = ln(alpha / s), half the log signal-to-noise ratio
    h   the length of a step in lambda or in t = -ln s, depending on the solver

A solver calls `denoise` and returns the state at the last level. It uses no network, no latent format and no seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

OnStep = Callable[[int, Tensor, Tensor], None]  # (step, D, x), once a step, before x moves
StepNoise = Callable[[float, float], Tensor]  # (s, s_next) -> a standard normal draw shaped like x
Sigmas = Sequence[float]  # falling noise levels, one more than there are steps


class Levels(Protocol):
    """The noise levels at which a solver evaluates `denoise`, declared before it starts, so that rows of a table can be
    computed for all of them at once. A missing level costs time later; an unnecessary one costs its row.
    """

    def __call__(self, sigmas: Sigmas, **options: Any) -> Iterable[float]: ...


def each_step(sigmas: Sigmas, **options: Any) -> Iterable[float]:
    """The levels of a solver that evaluates at the beginning of each step."""
    return sigmas[:-1]


class Denoise(Protocol):
    """The model's estimate of the clean image at a noisy state."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """D, shaped like x."""

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """(D, U): U is the estimate for the negative prompt alone (zeros if there is none)."""


def ignore(step: int, denoised: Tensor, x: Tensor) -> None:
    """An OnStep that does nothing."""


def half_log_snr(s: float) -> float:
    """lambda(s) = ln((1 - s) / s); +-infinity at the ends."""
    if s <= 0 or s >= 1:
        return math.inf if s <= 0 else -math.inf
    return math.log((1 - s) / s)


def sigma_at(half_log_snr: float) -> float:
    """The level with this lambda: 1 / (1 + e^lambda)."""
    return 1 / (1 + math.exp(half_log_snr))


def root(square: float) -> float:
    """Square root of max(value, 0): the argument is non-negative except for rounding errors."""
    return math.sqrt(max(square, 0.0))


def ancestral_split(s: float, s_next: float, eta: float) -> tuple[float, float]:
    """(down, up) with down^2 + up^2 = s_next^2: go down to `down`, then add noise of size `up` (Karras form).

    Computed in fp32, as in ComfyUI: a long step loses most digits of `down` in the difference, and keeping them would
    give another image. From s = infinity, and for rising levels, the result is noise alone.
    """
    if eta == 0:
        return s_next, 0.0
    a, b = torch.tensor([s, s_next])
    up = torch.fmin(b, eta * (b**2 * (a**2 - b**2) / a**2).sqrt())
    return (b**2 - up**2).clamp(min=0).sqrt().item(), up.item()


def flow_ancestral_split(s: float, s_next: float, eta: float) -> tuple[float, float, float]:
    """(down, scale, up): go down to `down`, then scale * x + up * noise is a flow state at s_next again.

    The image's share 1 - down is scaled to 1 - s_next, and noise is added until its share (scale * down) is s_next
    again.
    """
    down = s_next * (1 + (s_next / s - 1) * eta)
    scale = (1 - s_next) / (1 - down) if down != 1 else 1.0
    return down, scale, root(s_next**2 - (scale * down) ** 2)
