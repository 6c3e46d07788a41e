"""Attention over heads, and the rotary positions of FLUX (Su et al. 2021, over three axes).

Knows tensors only: no model, no weights, no devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v, not causal.

    q, k, v [B, L, H, d] -> [B, L, H*d]. `mask` is additive, [B, L, L] or broadcastable to [B, H, L, L].
    """
    if mask is not None and mask.ndim == 3:
        mask = mask[:, None]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def rotations(ids: Tensor, axes_dim: Sequence[int], theta: float) -> Tensor:
    """Unit complex numbers e^(i position / theta^(2j/d)) for every axis, one after the other.

    ids [L, axes] -> complex64 [L, sum(axes_dim) / 2]. The angles are float64: position times frequency in float32 would
    be off by 1e-4 for far positions.
    """
    angles = []
    for axis, dim in enumerate(axes_dim):
        exponents = torch.linspace(0, (dim - 2) / dim, dim // 2, dtype=torch.float64, device=ids.device)
        angles.append(ids[:, axis, None].double() / theta**exponents)
    angle = torch.cat(angles, dim=-1)  # [L, d/2]
    return torch.complex(angle.cos().float(), angle.sin().float())


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn each adjacent pair of channels by its position's angle, in float32. x [B, L, H, d], rope [L, d/2]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope[:, None]).flatten(-2)
