"""XLabs' IP-Adapter for FLUX.1 (after Ye et al. 2023): images that the transformer's double blocks also attend to.

A vision encoder's embedding of an image becomes a few tokens. Every double block attends to them with the queries of
its image stream, with keys and values of its own, and adds the result to that stream. Keys and values do not depend on
the noise level: they are computed once for an image, and a run needs no weight of the adapter.

Attribute names are the keys of the files. Independent of: vision encoders, files, devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import FileFormatError
from .clip_layers import LayerNorm
from .linear import Linear

_KEYS = "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"


@dataclass(frozen=True)
class ImageAdapterConfig:
    """embedding: width of the vision encoder's output; tokens: of one image; blocks: double blocks."""

    embedding: int
    tokens: int
    context_dim: int
    hidden: int
    blocks: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> ImageAdapterConfig:
        """Read every size off a file's shapes. Raises FileFormatError if it is no such file."""
        try:
            rows, embedding = shapes["ip_adapter_proj_model.proj.weight"]
            hidden, context_dim = shapes[_KEYS]
        except KeyError as missing:
            raise FileFormatError(f"This is not an IP-Adapter by XLabs: it has no tensor named {missing}.") from None
        blocks = {name.split(".")[1] for name in shapes if name.startswith("double_blocks.")}
        return cls(embedding, rows // context_dim, context_dim, hidden, len(blocks))


class ImageAdapter(nn.Module):
    """Embeddings of images to keys and values for every double block."""

    def __init__(self, config: ImageAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.ip_adapter_proj_model = _Tokens(config)
        self.double_blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.eval()

    def forward(self, embedding: Tensor) -> Tensor:
        """[n, embedding] -> [blocks, 2, n, tokens, hidden]: keys, then values."""
        tokens = self.ip_adapter_proj_model(embedding)
        blocks = cast("Iterable[_Block]", self.double_blocks)
        return torch.stack([torch.stack((b.processor.keys(tokens), b.processor.values(tokens))) for b in blocks])


class _Tokens(nn.Module):
    def __init__(self, config: ImageAdapterConfig) -> None:
        super().__init__()
        self.proj = Linear(config.embedding, config.tokens * config.context_dim)
        self.norm = LayerNorm(config.context_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(embedding).unflatten(-1, (-1, self.norm.weight.shape[0])))
        return out


class _Block(nn.Module):
    def __init__(self, config: ImageAdapterConfig) -> None:
        super().__init__()
        self.processor = _Projections(config)


class _Projections(nn.Module):
    def __init__(self, config: ImageAdapterConfig) -> None:
        super().__init__()
        self.ip_adapter_double_stream_k_proj = Linear(config.context_dim, config.hidden)
        self.ip_adapter_double_stream_v_proj = Linear(config.context_dim, config.hidden)

    def keys(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.ip_adapter_double_stream_k_proj(tokens)
        return out

    def values(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.ip_adapter_double_stream_v_proj(tokens)
        return out
