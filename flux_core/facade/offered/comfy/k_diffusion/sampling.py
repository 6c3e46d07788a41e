"""comfy.k_diffusion.sampling: levels and small functions with which packs build samplers. Our solvers are not here: use
comfy.samplers.sampler_object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .....sampling.schedule import exponential_between, karras_between

__all__ = [
    "append_dims",
    "append_zero",
    "default_noise_sampler",
    "get_ancestral_step",
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_polyexponential",
    "to_d",
]


def append_zero(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros([1])])


def append_dims(x: Tensor, target_dims: int) -> Tensor:
    """Add dimensions of size 1 at the end."""
    return x.reshape(x.shape + (1,) * (target_dims - x.ndim))


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """The direction away from the image, for a step in sigma."""
    return (x - denoised) / append_dims(sigma, x.ndim)


def get_sigmas_karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: Any = "cpu") -> Tensor:
    return karras_between(n, float(sigma_max), float(sigma_min), rho).to(device)


def get_sigmas_exponential(n: int, sigma_min: float, sigma_max: float, device: Any = "cpu") -> Tensor:
    return exponential_between(n, float(sigma_max), float(sigma_min)).to(device)


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: Any = "cpu"
) -> Tensor:
    """Exponential levels whose strides grow with the power `rho`."""
    ramp = torch.linspace(1, 0, n) ** rho
    low, high = torch.tensor(float(sigma_min)).log(), torch.tensor(float(sigma_max)).log()
    return append_zero((ramp * (high - low) + low).exp()).to(device)


def get_ancestral_step(sigma_from: Any, sigma_to: Any, eta: float = 1.0) -> tuple[Any, Any]:
    """(the level to step down to, the noise to add there) for variance-exploding steps."""
    if not eta:
        return sigma_to, 0.0
    up = min(sigma_to, eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5)
    return (sigma_to**2 - up**2) ** 0.5, up


def default_noise_sampler(x: Tensor, seed: int | None = None) -> Callable[[Any, Any], Tensor]:
    """noise_sampler(sigma, next sigma) -> standard normal like x."""
    generator = None if seed is None else torch.Generator(device=x.device).manual_seed(seed)
    return lambda sigma, sigma_next: torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
