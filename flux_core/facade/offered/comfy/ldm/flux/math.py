"""comfy.ldm.flux.math: rotary positions of FLUX.1 (Su et al. 2021) and attention with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..modules.attention import optimized_attention

__all__ = ["apply_rope", "apply_rope1", "attention", "rope"]


def rope(pos: Tensor, dim: int, theta: int) -> Tensor:
    """Positions [..., L] -> float32 rotation matrices [..., L, dim / 2, 2, 2] by the angles pos / theta^(2j/dim)."""
    exponents = torch.linspace(0, (dim - 2) / dim, dim // 2, dtype=torch.float64, device=pos.device)
    angle = pos[..., None].double() / theta**exponents
    cos, sin = angle.cos(), angle.sin()
    matrices: Tensor = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))
    return matrices.float()


def apply_rope1(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """x [B, H, L, d] with each adjacent pair of channels multiplied by its matrix, [B, 1, L, d / 2, 2, 2]."""
    pairs = x.to(freqs_cis.dtype).unflatten(-1, (-1, 1, 2))
    turned: Tensor = (freqs_cis * pairs).sum(-1).flatten(-2)
    return turned.type_as(x)


def apply_rope(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    return apply_rope1(xq, freqs_cis), apply_rope1(xk, freqs_cis)


def attention(
    q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None, mask: Tensor | None = None, transformer_options: Any = None
) -> Tensor:
    """q, k, v [B, H, L, d], rotated by `pe` -> [B, L, H*d]."""
    if pe is not None:
        q, k = apply_rope(q, k, pe)
    more = {"skip_reshape": True, "transformer_options": transformer_options}
    return optimized_attention(q, k, v, q.shape[1], mask, **more)
