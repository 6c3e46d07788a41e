"""comfy.ldm.modules.diffusionmodules.util: small functions of diffusion networks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["mean_flat", "timestep_embedding", "zero_module"]


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000, repeat_only: bool = False) -> Tensor:
    """Sinusoids of times [B] -> float32 [B, dim], cosines first (Vaswani et al. 2017)."""
    if repeat_only:
        return timesteps[:, None].expand(-1, dim)
    half = dim // 2
    ramp = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) * ramp)
    waves = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return nn.functional.pad(waves, (0, dim % 2))


def zero_module(module: Any) -> Any:
    """The same module with all its parameters set to zero."""
    for parameter in module.parameters():
        parameter.detach().zero_()
    return module


def mean_flat(tensor: Tensor) -> Tensor:
    """The mean of each item of a batch."""
    return tensor.flatten(1).mean(dim=1)
