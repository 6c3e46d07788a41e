"""FLUX.1 Redux (Black Forest Labs 2024): tokens of an image, by SigLIP, to tokens in the place of text.

Attribute names are the keys of its file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileFormatError
from .linear import Linear


@dataclass(frozen=True)
class ReduxConfig:
    """The widths of an image's tokens, of the middle, and of text tokens."""

    width: int
    middle: int
    context_dim: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> ReduxConfig:
        """Raises FileFormatError if it is no such model."""
        try:
            (middle, width), context_dim = shapes["redux_up.weight"], shapes["redux_down.weight"][0]
        except KeyError as missing:
            raise FileFormatError(
                f"This is not a Redux model: it has no tensor named {missing}. Choose flux1-redux-dev.safetensors."
            ) from None
        return cls(width, middle, context_dim)


class Redux(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, config: ReduxConfig) -> None:
        super().__init__()
        self.config = config
        self.redux_up = Linear(config.width, config.middle)
        self.redux_down = Linear(config.middle, config.context_dim)
        self.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, context_dim]."""
        out: Tensor = self.redux_down(F.silu(self.redux_up(tokens)))
        return out
