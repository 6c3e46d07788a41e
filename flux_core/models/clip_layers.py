"""The transformer layers that CLIP's text encoder, CLIP's vision encoder and SigLIP have in common.

Attribute names are Hugging Face's keys. Activations have the number type of the input; weights may be stored in any.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import gelu
from .attention import attention
from .linear import Linear

EPS = 1e-5


class LayerConfig(Protocol):
    """The sizes of the layers. activation: "quick" (x sigmoid(1.702 x)), "tanh" or "exact": which GELU."""

    @property
    def width(self) -> int: ...
    @property
    def mlp(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def activation(self) -> str: ...


class Encoder(nn.Module):
    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.width)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = LayerNorm(config.width)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, L, D]; mask [L, L] is added to the attention's logits."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class SelfAttention(nn.Module):
    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.out_proj = Linear(config.width, config.width)
        self.heads = config.heads

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1))  # [B, L, H, d]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.out_proj(attention(q, k, v, mask))
        return out


class Mlp(nn.Module):
    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.mlp)
        self.fc2 = Linear(config.mlp, config.width)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.activation == "quick":
            x = x * torch.sigmoid(1.702 * x)
        else:
            x = gelu(x) if self.activation == "tanh" else F.gelu(x)
        out: Tensor = self.fc2(x)
        return out


class Embedding(nn.Module):
    """A table, left uninitialised until it is loaded or initialised."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))


class LayerNorm(nn.Module):
    """Layer norm in the dtype of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype), EPS)
