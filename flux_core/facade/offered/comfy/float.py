"""comfy.float: numbers of eight bits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stochastic_rounding"]

_EIGHT = {torch.float8_e4m3fn: (3, -6), torch.float8_e5m2: (2, -14)}  # bits of the fraction, smallest exponent


def stochastic_rounding(value: Tensor, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """`value` as numbers of `dtype`. Numbers of eight bits are rounded up or down at random, right on average."""
    if dtype not in _EIGHT:
        return value.to(dtype)
    fraction, smallest = _EIGHT[dtype]
    generator = torch.Generator(device=value.device).manual_seed(seed)
    exact = value.float()
    _, exponent = torch.frexp(exact)  # exact = m * 2^exponent with m from 1/2 to 1
    step = torch.exp2((exponent - 1).clamp(min=smallest).float() - fraction)
    drawn = torch.rand(exact.shape, generator=generator, device=value.device, dtype=torch.float32)
    limit = torch.finfo(dtype).max
    return (torch.floor(exact / step + drawn) * step).clamp(-limit, limit).to(dtype)
