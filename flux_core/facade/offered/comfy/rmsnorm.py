"""comfy.rmsnorm: root mean square normalisation (Zhang and Sennrich 2019), as a function and as a layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .ops import cast_to_input

__all__ = ["RMSNorm", "rms_norm"]

RMSNorm = nn.RMSNorm


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """x / rms(x) over the last dimensions, times `weight`, which has their shape; over the last one without it."""
    if weight is None:
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    return F.rms_norm(x, weight.shape, cast_to_input(weight, x, copy=False), eps)
