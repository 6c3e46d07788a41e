"""Attention over heads, and the rotary positions of FLUX (Su et al. 2021, over three axes).

Uses tensors only: no model, no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..processor.c_functions import rotate as rotate_by_c
from .products import before_product


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v, not causal.

    q, k, v [B, L, H, d] -> [B, L, H*d]. `mask` is additive, [B, L, L] or broadcastable to [B, H, L, L].
    """
    if mask is not None and mask.ndim == 3:
        mask = mask[:, None]
    before_product()
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def rotations(ids: Tensor, axes_dim: Sequence[int], theta: float) -> Tensor:
    """The rotation matrices that `rotate` applies: angles position / theta^(2j/d), one axis after the other.

    ids [L, axes] -> float32 [L, 2, d], d = sum(axes_dim). A pair (a, b) becomes (a cos - b sin, a sin + b cos): row 0
    has cos, -sin for each pair, row 1 sin, cos. The angles are float64: position times frequency in float32 would be
    off by 1e-4 for far positions.
    """
    angles = []
    for axis, dim in enumerate(axes_dim):
        exponents = torch.linspace(0, (dim - 2) / dim, dim // 2, dtype=torch.float64, device=ids.device)
        angles.append(ids[:, axis, None].double() / theta**exponents)
    angle = torch.cat(angles, dim=-1)  # [L, d/2]
    cos, sin = angle.cos().float(), angle.sin().float()
    matrices: Tensor = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2)).transpose(1, 2).flatten(2)
    return matrices


def rotate(x: Tensor, rope: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotate each adjacent pair of channels by its position's angle: x [B, L, H, d] float32, rope from `rotations`.

    out: a tensor of x's shape and any float type to write the result into. Without it the result has a gradient.
    """
    if torch.compiler.is_compiling():  # torch.compile fuses the plain formula, and does not support a strided `out=`
        turned = torch.addcmul(*_products(x, rope)).flatten(-2)
        return turned if out is None else out.copy_(turned)
    if out is None:
        rotated: Tensor = _Rotation.apply(x, rope)  # type: ignore[no-untyped-call]  # torch's own, like all of autograd
        return rotated
    return (_turn_on_cpu if x.device.type == "cpu" else _turn)(x, rope, out)


def backwards(rope: Tensor) -> Tensor:
    """Rotations by the negative angles: the transposed matrices."""
    back: Tensor = rope.unflatten(-1, (-1, 2)).transpose(1, 3).flatten(2)
    return back


class _Rotation(torch.autograd.Function):
    """The backward pass rotates by the negative angle, so only the angles are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rope: Tensor) -> Tensor:
        ctx.save_for_backward(rope)
        return rotate(x, rope, out=torch.empty_like(x, memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rope,) = ctx.saved_tensors
        return rotate(grad, backwards(rope)), None


def _turn(x: Tensor, rope: Tensor, out: Tensor) -> Tensor:
    """For accelerators: two products of whole tensors, which move the fewest bytes."""
    torch.addcmul(*_products(x, rope), out=out.unflatten(-1, (-1, 2)))
    return out


def _products(x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(p, a, c), such that the rotated pairs are p + a c, [B, L, H, d/2, 2]."""
    a, b = x.unflatten(-1, (-1, 2)).split(1, dim=-1)  # [B, L, H, d/2, 1]
    of_a, of_b = rope[:, None].unflatten(-1, (-1, 2)).transpose(2, 3).unbind(-1)  # [L, 1, d/2, 2]
    return b * of_b, a, of_a


def _turn_on_cpu(x: Tensor, rope: Tensor, out: Tensor) -> Tensor:
    """For CPUs: products over contiguous numbers, for their vector instructions. Products are rounded, then added."""
    if all(rotate_by_c(*pair) for pair in zip(x, repeat(rope), out, strict=False)):
        return out
    both = torch.empty_like(x)
    turned = out if out.dtype == x.dtype else torch.empty_like(x)
    for number, row in enumerate(rope[:, None].unbind(2)):  # [L, 1, d]
        torch.mul(x, row, out=both)
        torch.add(both[..., ::2], both[..., 1::2], out=turned[..., number::2])
    return out if out is turned else out.copy_(turned)
