"""Noise levels that do not come from a model's table: formulas of other kinds of models, published lists, manual input.

As in schedule.py, 1-D fp32 tensors on the CPU, one longer than the number of steps. Models of other kinds have levels
far above 1, the highest level of FLUX.1; such schedules start there nevertheless, as ComfyUI's do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import InputError

# Published lists of levels, interpolated in log sigma for other numbers of steps.
ALIGN_YOUR_STEPS: dict[str, tuple[float, ...]] = {  # Sabour et al. 2024, "Align Your Steps", quick start
    "SD1": (
        *(14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092),
        *(0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    ),
    "SDXL": (
        *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141),
        *(0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    ),
    "SVD": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
OPTIMAL_STEPS: dict[str, tuple[float, ...]] = {  # Pei et al. 2025, "Optimal Stepsize for Diffusion Sampling"
    "FLUX": (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001),
    "Wan": (
        *(1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973, 0.968, 0.96, 0.946, 0.927),
        *(0.902, 0.864, 0.776, 0.539, 0.208, 0.001),
    ),
    "Chroma": (
        *(0.992, 0.99, 0.988, 0.985, 0.982, 0.978, 0.973, 0.968, 0.961, 0.953, 0.943, 0.931, 0.917, 0.9, 0.881),
        *(0.858, 0.832, 0.802, 0.769, 0.731, 0.69, 0.646, 0.599, 0.55, 0.501, 0.451, 0.402, 0.355, 0.311, 0.27),
        *(0.232, 0.199, 0.169, 0.143, 0.12, 0.101, 0.084, 0.07, 0.058, 0.048, 0.001),
    ),
}

SPACINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda u: u,
    "cosine": lambda u: torch.sin(u * math.pi / 2),
    "sine": lambda u: 1 - torch.cos(u * math.pi / 2),
}


def published(levels: Sequence[float], steps: int, denoise: float = 1.0) -> Tensor:
    """The last `steps` times `denoise` steps of a list stretched to `steps`; its last level becomes 0."""
    if denoise <= 0:
        return torch.empty(0)
    if len(levels) != steps + 1:
        places = torch.linspace(0, len(levels) - 1, steps + 1, dtype=torch.float64)
        logs = torch.tensor(levels, dtype=torch.float64).log()
        below = places.floor().long().clamp(max=len(levels) - 2)
        levels = (logs[below] + (places - below) * (logs[below + 1] - logs[below])).exp().tolist()
    kept = levels[-(round(steps * min(denoise, 1.0)) + 1) :]
    return torch.tensor([*kept[:-1], 0.0])


def polyexponential(steps: int, sigma_max: float, sigma_min: float, rho: float = 1.0) -> Tensor:
    """A power `rho` in log sigma, then 0 (k-diffusion). Raises InputError unless both ends are above 0."""
    if min(sigma_max, sigma_min) <= 0:
        raise InputError(f"A polyexponential schedule cannot reach 0: sigma_max {sigma_max}, sigma_min {sigma_min}.")
    ramp = torch.linspace(1, 0, steps) ** rho
    low = math.log(sigma_min)
    return _then_zero((ramp * (math.log(sigma_max) - low) + low).exp())


def variance_preserving(steps: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3) -> Tensor:
    """sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) for times from 1 to `eps_s`, then 0 (Song et al. 2021)."""
    t = torch.linspace(1, eps_s, steps)
    return _then_zero(torch.special.expm1(beta_d * t**2 / 2 + beta_min * t).sqrt())


def laplace(steps: int, sigma_max: float, sigma_min: float, mu: float = 0.0, beta: float = 0.5) -> Tensor:
    """Quantiles of a Laplace distribution of log sigma (Hang et al. 2024, arXiv 2407.03297). `steps` levels, no 0."""
    u = torch.linspace(0, 1, steps)
    logs = mu - beta * torch.sign(0.5 - u) * torch.log(1 - 2 * torch.abs(0.5 - u) + 1e-5)
    return logs.exp().clamp(min=sigma_min, max=sigma_max)


def extended(sigmas: Tensor, steps: int, start: float, end: float, spacing: str) -> Tensor:
    """Each step that begins between the levels `start` (below 0: no limit) and `end` cut into `steps` steps."""
    start = math.inf if start < 0 else start
    within = SPACINGS[spacing](torch.linspace(0, 1, steps + 1)[1:-1])
    levels: list[Tensor] = []
    for here, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        levels.append(here[None])
        if end <= here <= start:
            levels.append(within * (after - here) + here)
    return torch.cat([*levels, sigmas[-1:]]).float()


def written(text: str) -> Tensor:
    """The numbers in a text, in their order, with any characters between them."""
    return torch.tensor([float(number) for number in re.findall(r"[-+]?\d*\.?\d+", text)])


def _then_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
