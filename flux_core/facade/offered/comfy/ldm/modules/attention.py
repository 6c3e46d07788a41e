"""comfy.ldm.modules.attention: attention over heads, and the layers around it from which packs build networks.

All attention functions of this module are one: ours (models/attention.py), with ComfyUI's arguments. Blocks of Stable
Diffusion's network are absent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ......models.attention import attention
from ... import ops as layers
from ..util import default, exists

__all__ = [
    "CrossAttention",
    "FeedForward",
    "GEGLU",
    "REGISTERED_ATTENTION_FUNCTIONS",
    "attention_basic",
    "attention_pytorch",
    "attention_split",
    "attention_sub_quad",
    "default",
    "exists",
    "get_attention_function",
    "optimized_attention",
    "optimized_attention_for_device",
    "optimized_attention_masked",
    "register_attention_function",
    "wrap_attn",
]

Attend = Callable[..., Tensor]


def optimized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: Any = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    transformer_options: Any = None,
    **newer: Any,
) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v, not causal: [B, L, H*d] each -> [B, L, H*d].

    skip_reshape: q, k, v are [B, H, L, d]. skip_output_reshape: so is the result. mask: added, or True where a key is
    seen; [L, L], [B, L, L] or [B, H, L, L]. transformer_options["optimized_attention_override"]: a function
    that is called instead, with this one and its arguments.
    """
    replacement = (transformer_options or {}).get("optimized_attention_override")
    if replacement is not None:
        options = {key: value for key, value in transformer_options.items() if key != "optimized_attention_override"}
        given = {"mask": mask, "attn_precision": attn_precision, "skip_reshape": skip_reshape}
        more = {"skip_output_reshape": skip_output_reshape, "transformer_options": options, **newer}
        replaced: Tensor = replacement(optimized_attention, q, k, v, heads, **given, **more)
        return replaced
    if skip_reshape:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    else:
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in (q, k, v))
    if mask is not None and mask.ndim == 2:
        mask = mask[None]
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    out = attention(q, k, v, mask)
    return out.unflatten(-1, (heads, -1)).transpose(1, 2) if skip_output_reshape else out


optimized_attention_masked = attention_pytorch = attention_basic = attention_split = attention_sub_quad = (
    optimized_attention
)
REGISTERED_ATTENTION_FUNCTIONS: dict[str, Attend] = {"pytorch": optimized_attention}


def optimized_attention_for_device(device: Any, mask: bool = False, small_input: bool = False) -> Attend:
    """The attention function for a device: one for all of them."""
    return optimized_attention


def register_attention_function(name: str, func: Attend) -> None:
    """Make a function known to other packs by a name."""
    REGISTERED_ATTENTION_FUNCTIONS.setdefault(name, func)


def get_attention_function(name: str, default: Any = ...) -> Any:
    """The function of a name, "optimized" for the usual one. Raises KeyError without a default."""
    if name == "optimized":
        return optimized_attention
    if default is ...:
        return REGISTERED_ATTENTION_FUNCTIONS[name]
    return REGISTERED_ATTENTION_FUNCTIONS.get(name, default)


def wrap_attn(func: Attend) -> Attend:
    """A pack's attention function, which obeys "optimized_attention_override" too."""

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        options = kwargs.get("transformer_options") or {}
        replacement = options.get("optimized_attention_override")
        if replacement is None:
            return func(*args, **kwargs)
        kwargs["transformer_options"] = {
            key: value for key, value in options.items() if key != "optimized_attention_override"
        }
        replaced: Tensor = replacement(func, *args, **kwargs)
        return replaced

    return attend


class GEGLU(nn.Module):
    """A linear layer whose one half is scaled by the GELU of the other (Shazeer 2020)."""

    def __init__(self, dim_in: int, dim_out: int, dtype: Any = None, device: Any = None, operations: Any = layers):
        super().__init__()
        self.proj = _family(operations).Linear(dim_in, dim_out * 2, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        scaled: Tensor = value * F.gelu(gate)
        return scaled


class FeedForward(nn.Module):
    """Linear, GELU (with `glu`: GEGLU), linear; its keys in files are net.0.proj or net.0.0, and net.2."""

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        mult: int = 4,
        glu: bool = False,
        dropout: float = 0.0,
        dtype: Any = None,
        device: Any = None,
        operations: Any = layers,
    ) -> None:
        super().__init__()
        wide, where, family = int(dim * mult), {"dtype": dtype, "device": device}, _family(operations)
        first: nn.Module
        if glu:
            first = GEGLU(dim, wide, operations=family, **where)
        else:
            first = nn.Sequential(family.Linear(dim, wide, **where), nn.GELU())
        self.net = nn.Sequential(first, nn.Dropout(dropout), family.Linear(wide, dim_out or dim, **where))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class CrossAttention(nn.Module):
    """Attention of one sequence to another; its keys in files are to_q, to_k, to_v and to_out.0."""

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
        attn_precision: Any = None,
        dtype: Any = None,
        device: Any = None,
        operations: Any = layers,
    ) -> None:
        super().__init__()
        inner, family, where = heads * dim_head, _family(operations), {"dtype": dtype, "device": device}
        seen = query_dim if context_dim is None else context_dim
        self.heads, self.dim_head, self.attn_precision = heads, dim_head, attn_precision
        self.to_q = family.Linear(query_dim, inner, bias=False, **where)
        self.to_k = family.Linear(seen, inner, bias=False, **where)
        self.to_v = family.Linear(seen, inner, bias=False, **where)
        self.to_out = nn.Sequential(family.Linear(inner, query_dim, **where), nn.Dropout(dropout))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        transformer_options: Any = None,
    ) -> Tensor:
        """x [B, L, D]; context and value [B, M, C], by default x and context. Returns [B, L, D]."""
        context = default(context, x)
        keys, values = self.to_k(context), self.to_v(default(value, context))
        more = {"attn_precision": self.attn_precision, "transformer_options": transformer_options}
        out: Tensor = self.to_out(optimized_attention(self.to_q(x), keys, values, self.heads, mask, **more))
        return out


def _family(operations: Any) -> Any:
    """The layers to build from, by default those of `comfy.ops.disable_weight_init`."""
    return layers.disable_weight_init if operations is layers or operations is None else operations
