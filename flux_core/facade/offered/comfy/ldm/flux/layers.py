"""comfy.ldm.flux.layers: FLUX.1's layers as plain networks, for packs that build ControlNets and adapters from them.

Attribute names are the keys of checkpoints. The transformer of a MODEL is not built from these classes: its weights are
streamed (models/flux_blocks.py). The formulas are those of Black Forest Labs' FLUX.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import ops as layers
from ..common_dit import rms_norm
from .math import attention, rope

__all__ = [
    "DoubleStreamBlock",
    "EmbedND",
    "LastLayer",
    "MLPEmbedder",
    "Modulation",
    "ModulationOut",
    "QKNorm",
    "RMSNorm",
    "SelfAttention",
    "SingleStreamBlock",
    "timestep_embedding",
]

EPS = 1e-6


class EmbedND(nn.Module):
    """Positions over several axes as rotations."""

    def __init__(self, dim: int, theta: int, axes_dim: list[int]) -> None:
        super().__init__()
        self.dim, self.theta, self.axes_dim = dim, theta, axes_dim

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, L, axes] -> [B, 1, L, sum(axes_dim) / 2, 2, 2]."""
        parts = [rope(ids[..., axis], dim, self.theta) for axis, dim in enumerate(self.axes_dim)]
        return torch.cat(parts, dim=-3).unsqueeze(1)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000, time_factor: float = 1000.0) -> Tensor:
    """Sinusoids of times [B] from 0 to 1 -> [B, dim] in the type of `t`, cosines first (Vaswani et al. 2017)."""
    half = dim // 2
    ramp = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = (time_factor * t)[:, None].float() * torch.exp(-math.log(max_period) * ramp)
    waves = nn.functional.pad(torch.cat((angles.cos(), angles.sin()), dim=-1), (0, dim % 2))
    return waves.to(t.dtype) if t.is_floating_point() else waves


class MLPEmbedder(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        bias: bool = True,
        dtype: Any = None,
        device: Any = None,
        operations: Any = None,
    ) -> None:
        super().__init__()
        family, where = _family(operations), {"dtype": dtype, "device": device}
        self.in_layer = family.Linear(in_dim, hidden_dim, bias=bias, **where)
        self.silu = nn.SiLU()
        self.out_layer = family.Linear(hidden_dim, hidden_dim, bias=bias, **where)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_layer(self.silu(self.in_layer(x)))
        return out


class RMSNorm(nn.Module):
    """Root mean square normalisation with a learned scale."""

    def __init__(self, dim: int, dtype: Any = None, device: Any = None, operations: Any = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(dim, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale, EPS)


class QKNorm(nn.Module):
    """Normalises queries and keys over each head."""

    def __init__(self, dim: int, dtype: Any = None, device: Any = None, operations: Any = None) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim, dtype, device)
        self.key_norm = RMSNorm(dim, dtype, device)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q).to(v), self.key_norm(k).to(v)


class SelfAttention(nn.Module):
    """The weights of one stream's attention."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        dtype: Any = None,
        device: Any = None,
        operations: Any = None,
    ) -> None:
        super().__init__()
        family, where = _family(operations), {"dtype": dtype, "device": device}
        self.num_heads = num_heads
        self.qkv = family.Linear(dim, dim * 3, bias=qkv_bias, **where)
        self.norm = QKNorm(dim // num_heads, **where)
        self.proj = family.Linear(dim, dim, **where)


@dataclass
class ModulationOut:
    """[B, 1, D] each."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class Modulation(nn.Module):
    """One linear layer from the conditioning vector to three rows, or six."""

    def __init__(self, dim: int, double: bool, dtype: Any = None, device: Any = None, operations: Any = None) -> None:
        super().__init__()
        self.is_double, self.multiplier = double, 6 if double else 3
        self.lin = _family(operations).Linear(dim, self.multiplier * dim, bias=True, dtype=dtype, device=device)

    def forward(self, vec: Tensor) -> tuple[ModulationOut, ModulationOut | None]:
        """vec [B, D] or [B, n, D]."""
        rows = self.lin(nn.functional.silu(vec if vec.ndim == 3 else vec[:, None])).chunk(self.multiplier, dim=-1)
        return ModulationOut(*rows[:3]), ModulationOut(*rows[3:]) if self.is_double else None


class DoubleStreamBlock(nn.Module):
    """Image and text as two streams with weights of their own, joined in attention."""

    img_mod: Modulation
    img_norm1: nn.Module
    img_attn: SelfAttention
    img_norm2: nn.Module
    img_mlp: nn.Sequential
    txt_mod: Modulation
    txt_norm1: nn.Module
    txt_attn: SelfAttention
    txt_norm2: nn.Module
    txt_mlp: nn.Sequential

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool = False,
        flipped_img_txt: bool = False,
        dtype: Any = None,
        device: Any = None,
        operations: Any = None,
    ) -> None:
        super().__init__()
        family, where = _family(operations), {"dtype": dtype, "device": device}
        more, wide = {**where, "operations": family}, int(hidden_size * mlp_ratio)
        self.num_heads, self.hidden_size, self.flipped_img_txt = num_heads, hidden_size, flipped_img_txt
        for stream in ("img", "txt"):
            plain = [family.LayerNorm(hidden_size, elementwise_affine=False, eps=EPS, **where) for _ in range(2)]
            mlp = [
                family.Linear(hidden_size, wide, **where),
                nn.GELU("tanh"),
                family.Linear(wide, hidden_size, **where),
            ]
            self.add_module(f"{stream}_mod", Modulation(hidden_size, True, **more))
            self.add_module(f"{stream}_norm1", plain[0])
            self.add_module(f"{stream}_attn", SelfAttention(hidden_size, num_heads, qkv_bias, **more))
            self.add_module(f"{stream}_norm2", plain[1])
            self.add_module(f"{stream}_mlp", nn.Sequential(*mlp))

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        pe: Tensor,
        attn_mask: Tensor | None = None,
        transformer_options: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """img [B, Li, D], txt [B, Lt, D], vec [B, D], pe for the text before the image -> both, one block later."""
        img_first, img_second = self.img_mod(vec)
        txt_first, txt_second = self.txt_mod(vec)
        of_img = _heads(self.img_attn, _modulated(self.img_norm1(img), img_first))
        of_txt = _heads(self.txt_attn, _modulated(self.txt_norm1(txt), txt_first))
        order = (of_img, of_txt) if self.flipped_img_txt else (of_txt, of_img)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(*order, strict=True))
        out = attention(q, k, v, pe, attn_mask, transformer_options)
        sizes = [part[0].shape[2] for part in order]
        first, second = out.split(sizes, dim=1)
        img_out, txt_out = (first, second) if self.flipped_img_txt else (second, first)
        img = img + img_first.gate * self.img_attn.proj(img_out)
        img = img + img_second.gate * self.img_mlp(_modulated(self.img_norm2(img), img_second))
        txt = txt + txt_first.gate * self.txt_attn.proj(txt_out)
        txt = txt + txt_second.gate * self.txt_mlp(_modulated(self.txt_norm2(txt), txt_second))
        return img, torch.nan_to_num(txt) if txt.dtype == torch.float16 else txt


class SingleStreamBlock(nn.Module):
    """One stream of text and image; attention and MLP side by side (Dehghani et al. 2023)."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qk_scale: float | None = None,
        dtype: Any = None,
        device: Any = None,
        operations: Any = None,
    ) -> None:
        super().__init__()
        family, where = _family(operations), {"dtype": dtype, "device": device}
        self.hidden_dim = self.hidden_size = hidden_size
        self.num_heads, self.mlp_hidden_dim = num_heads, int(hidden_size * mlp_ratio)
        self.linear1 = family.Linear(hidden_size, hidden_size * 3 + self.mlp_hidden_dim, **where)
        self.linear2 = family.Linear(hidden_size + self.mlp_hidden_dim, hidden_size, **where)
        self.norm = QKNorm(hidden_size // num_heads, **where)
        self.pre_norm = family.LayerNorm(hidden_size, elementwise_affine=False, eps=EPS, **where)
        self.mlp_act = nn.GELU("tanh")
        self.modulation = Modulation(hidden_size, False, **where, operations=family)

    def forward(
        self, x: Tensor, vec: Tensor, pe: Tensor, attn_mask: Tensor | None = None, transformer_options: Any = None
    ) -> Tensor:
        """x [B, L, D], vec [B, D] -> x, one block later."""
        mod, _ = self.modulation(vec)
        both = self.linear1(_modulated(self.pre_norm(x), mod))
        qkv, wide = both.split([3 * self.hidden_size, self.mlp_hidden_dim], dim=-1)
        out = attention(*_parted(qkv, self.num_heads, self.norm), pe, attn_mask, transformer_options)
        x = x + mod.gate * self.linear2(torch.cat((out, self.mlp_act(wide)), dim=-1))
        return torch.nan_to_num(x) if x.dtype == torch.float16 else x


class LastLayer(nn.Module):
    """Normalise, modulate, project to patches."""

    def __init__(
        self,
        hidden_size: int,
        patch_size: int,
        out_channels: int,
        dtype: Any = None,
        device: Any = None,
        operations: Any = None,
    ) -> None:
        super().__init__()
        family, where = _family(operations), {"dtype": dtype, "device": device}
        self.norm_final = family.LayerNorm(hidden_size, elementwise_affine=False, eps=EPS, **where)
        self.linear = family.Linear(hidden_size, patch_size * patch_size * out_channels, bias=True, **where)
        rows = family.Linear(hidden_size, 2 * hidden_size, bias=True, **where)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), rows)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        """x [B, L, D], vec [B, D] -> [B, L, patch * patch * channels]."""
        shift, scale = self.adaLN_modulation(vec if vec.ndim == 3 else vec[:, None]).chunk(2, dim=-1)
        out: Tensor = self.linear(torch.addcmul(shift, 1 + scale, self.norm_final(x)))
        return out


def _modulated(x: Tensor, mod: ModulationOut) -> Tensor:
    return torch.addcmul(mod.shift, 1 + mod.scale, x)


def _heads(weights: SelfAttention, x: Tensor) -> tuple[Tensor, ...]:
    return _parted(weights.qkv(x), weights.num_heads, weights.norm)


def _parted(qkv: Tensor, heads: int, norm: QKNorm) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, 3D] -> q, k, v, each [B, H, L, d]; q and k normalised."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).movedim(2, 0).transpose(2, 3)
    return *norm(q, k, v), v


def _family(operations: Any) -> Any:
    """The layers to build from, by default those of `comfy.ops.disable_weight_init`."""
    return layers.disable_weight_init if operations is None else operations
