"""The noise that stochastic solvers add at each step: independent draws, or increments of one Brownian path.

Both use the seed of the image. Plain draws on the CPU therefore begin with the image's own initial noise and differ
from draws on a GPU, which has another generator; published workflows depend on both.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ..errors import SluiceError
from .flow import Sigmas, StepNoise


def plain(x: Tensor, seed: int, sigmas: Sigmas) -> StepNoise:
    """Independent draws shaped like x, on x's device."""
    generator = torch.Generator(x.device).manual_seed(seed)

    def draw(s: float, s_next: float) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)

    return draw


def brownian(x: Tensor, seed: int, sigmas: Sigmas) -> StepNoise:
    """Increments of one Brownian path W over the levels of `sigmas`: (W(s') - W(s)) / sqrt|s' - s|.

    The same path whatever the number of steps, so images change little with it (Li et al. 2020, "Scalable gradients
    for stochastic differential equations"). The path is drawn on the CPU, the same on every machine.
    """
    return _path(x, seed, sigmas, torch.device("cpu"))


def brownian_on_device(x: Tensor, seed: int, sigmas: Sigmas) -> StepNoise:
    """`brownian`, drawn on x's device: faster on a GPU, with a different path."""
    return _path(x, seed, sigmas, x.device)


def _path(x: Tensor, seed: int, sigmas: Sigmas, device: torch.device) -> StepNoise:
    try:
        import torchsde
    except ModuleNotFoundError as missing:
        raise SluiceError("Stochastic DPM++ samplers need the package torchsde: pip install torchsde") from missing
    # The bits of the path depend on the exact ends and points, so all of them are fp32.
    low, high = torch.tensor([min(s for s in sigmas if s > 0), max(sigmas)], device=device)
    tree = torchsde.BrownianTree(low, torch.zeros_like(x, device=device), high, entropy=seed)

    def draw(s: float, s_next: float) -> Tensor:
        a, b = torch.tensor([min(s, s_next), max(s, s_next)], device=device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tree rounds its ends and warns of points beyond them
            increment: Tensor = tree(a, b) / math.sqrt(b - a)
        return (increment if s < s_next else -increment).to(x.device, x.dtype)

    return draw
