"""The encoder of T5 v1.1 (Raffel et al. 2020; gated GELU), as FLUX uses it: one vector per token of a prompt.

Attribute names are Hugging Face's keys. Activations are float32 unless embeddings of another dtype are passed in;
weights may be stored in any number type. Padding is attended to, as FLUX was trained. Uses no tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileFormatError
from ..limits import check_room
from .linear import Linear
from .products import before_product
from .strides import row_major

EPS = 1e-6
BUCKETS = 32
MAX_DISTANCE = 128


@dataclass(frozen=True)
class T5Config:
    """The sizes of one encoder."""

    vocabulary: int
    width: int
    inner: int  # heads * head width
    heads: int
    mlp: int
    layers: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> T5Config:
        """Read the sizes off a Hugging Face state dict's shapes."""
        first = "encoder.block.0.layer."
        try:
            vocabulary, width = shapes["shared.weight"]
            inner = shapes[f"{first}0.SelfAttention.q.weight"][0]
            heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"][1]
            mlp = shapes[f"{first}1.DenseReluDense.wi_0.weight"][0]
        except KeyError as missing:
            raise FileFormatError(
                f"This is not a T5 v1.1 encoder: it has no tensor named {missing}. "
                "Choose a file like t5xxl_fp16.safetensors."
            ) from None
        prefix = "encoder.block."
        layers = {name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)}
        return cls(vocabulary, width, inner, heads, mlp, len(layers))


class T5Encoder(nn.Module):
    """Token embeddings to hidden states."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = Embedding(config.vocabulary, config.width)
        self.encoder = Stack(config)

    def embed(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Token ids [...] -> embeddings [..., D]."""
        out: Tensor = self.shared(ids, dtype)
        return out

    def forward(
        self, tokens: Tensor, layer: int | None = None, *, run_block: Callable[..., object] | None = None
    ) -> Tensor:
        """Token ids [B, L], or embeddings [B, L, D] -> hidden states [B, L, D] after the final norm.

        `layer` stops after that block (0-based; negative counts from the end), still applying the final norm. An
        executor may own the loop: run_block(block, *args) in place of block(*args).
        Raises InputError if there are so many tokens that their attention does not fit into memory.
        """
        x = row_major(tokens) if tokens.is_floating_point() else self.embed(row_major(tokens))
        length = x.shape[1]
        check_room(f"A prompt of {length} tokens", self.config.heads * length**2 * 8, advice="Write a shorter one.")
        run: Callable[..., Any] = run_block or _call
        blocks = self.blocks()[: None if layer is None else range(self.config.layers)[layer] + 1]
        bias = blocks[0].attention.position_bias(x)  # [1, H, L, L], the same for all blocks
        for block in blocks:
            x = run(block, x, bias)
        out: Tensor = self.encoder.final_layer_norm(x)
        return out

    def blocks(self) -> list[Block]:
        """The blocks in order of use."""
        return cast("list[Block]", list(self.encoder.block))

    @torch.no_grad()
    def init_weights(self) -> None:
        """For training from scratch: variance 1 / fan-in; queries smaller by sqrt(d), as attention is not scaled."""
        for module in self.modules():
            if isinstance(module, Embedding):
                nn.init.normal_(module.weight)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, Linear):
                nn.init.normal_(module.own_weight, std=module.in_features**-0.5)
        for block in self.blocks():
            block.attention.q.own_weight.mul_((self.config.inner // self.config.heads) ** -0.5)
        nn.init.normal_(self.blocks()[0].attention.relative_attention_bias.weight, std=0.1)


class Stack(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, first=number == 0) for number in range(config.layers))
        self.final_layer_norm = RMSNorm(config.width)


class Block(nn.Module):
    """Attention, then the gated MLP, each normalised before and added after. Its matrices in order: q, k, v, o, wi_0,
    wi_1, wo."""

    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList((AttentionLayer(config, first), FeedForwardLayer(config)))

    @property
    def attention(self) -> SelfAttention:
        """The attention of the block. The first block's holds the position bias of all."""
        return cast(AttentionLayer, self.layer[0]).SelfAttention

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = self.layer[1](self.layer[0](x, bias))
        return out


class AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, first)
        self.layer_norm = RMSNorm(config.width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = x + self.SelfAttention(self.layer_norm(x), bias)
        return out


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedMlp(config)
        self.layer_norm = RMSNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.DenseReluDense(self.layer_norm(x))
        return out


class SelfAttention(nn.Module):
    """Attention without scaling; a learned bias by the distance of two tokens, held by the first block only."""

    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.q = Linear(config.width, config.inner, bias=False)
        self.k = Linear(config.width, config.inner, bias=False)
        self.v = Linear(config.width, config.inner, bias=False)
        self.o = Linear(config.inner, config.width, bias=False)
        if first:
            self.relative_attention_bias = Embedding(BUCKETS, config.heads)
        self.heads = config.heads

    def position_bias(self, x: Tensor) -> Tensor:
        """[1, H, L, L] for a sequence as long as x."""
        buckets = distance_buckets(x.shape[1], x.device)
        out: Tensor = self.relative_attention_bias(buckets, x.dtype).permute(2, 0, 1)[None].contiguous()
        return out

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, L, d]
            for project in (self.q, self.k, self.v)
        )
        before_product()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        result: Tensor = self.o(out.transpose(1, 2).flatten(2))
        return result


class GatedMlp(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = Linear(config.width, config.mlp, bias=False)
        self.wi_1 = Linear(config.width, config.mlp, bias=False)
        self.wo = Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))
        return out


class Embedding(nn.Module):
    """A table of rows, left uninitialised until it is loaded or `init_weights` runs."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids, self.weight).to(dtype)


class RMSNorm(nn.Module):
    """RMS norm in the dtype of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), EPS)


def distance_buckets(length: int, device: torch.device) -> Tensor:
    """The number of the bias for each pair of positions, [L, L]: 16 backwards, 16 forwards; one for each distance up to
    8, then logarithmic up to MAX_DISTANCE."""
    position = torch.arange(length, device=device)
    offset = position[None, :] - position[:, None]  # key - query
    half, exact = BUCKETS // 2, BUCKETS // 4
    far = offset.abs()
    steps = torch.log(far.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    coarse = (exact + steps.to(torch.long)).clamp(max=half - 1)
    return torch.where(far < exact, far, coarse) + half * (offset > 0)


def _call(block: nn.Module, *args: object) -> object:
    return block(*args)
