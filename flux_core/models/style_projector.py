"""The style projector of USO (Wu et al. 2025): hidden states of SigLIP at three depths to tokens before those of text.

The tokens have the width of the transformer and are put before the text's, behind its text embedder
(`DenoiserInputs.style`). Attribute names are the keys of the file, below `feature_embedder.`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileFormatError
from .clip_layers import LayerNorm
from .linear import Linear
from .strides import row_major

DEPTHS = ("high", "mid", "low")  # in order of their tokens; the layers are `clip_vision.DEPTHS`


@dataclass(frozen=True)
class StyleConfig:
    """seen and width: number and width of the vision encoder's tokens; made and hidden: those of one depth's output."""

    seen: int
    width: int
    made: int
    hidden: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> StyleConfig:
        """Raises FileFormatError if it is no such model."""
        try:
            (made, seen), (hidden, width) = (
                shapes[f"high_{part}.weight"] for part in ("embedding_linear.0", "projection")
            )
        except KeyError as missing:
            raise FileFormatError(
                f"This is not a projector of USO: it has no tensor named {missing}. Choose "
                "uso-flux1-projector-v1.safetensors."
            ) from None
        return cls(seen, width, made, hidden)


class StyleProjector(nn.Module):
    """For each depth: a linear layer over the tokens, SiLU, layer norm, and a linear layer over the width."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.config = config
        for depth in DEPTHS:
            setattr(self, f"{depth}_embedding_linear", nn.Sequential(Linear(config.seen, config.made)))
            setattr(self, f"{depth}_layer_norm", LayerNorm(config.width))
            setattr(self, f"{depth}_projection", Linear(config.width, config.hidden))
        self.eval()

    def forward(self, states: Tensor) -> Tensor:
        """Hidden states [B, 3, seen, width], high first -> tokens [B, 3 * made, hidden]."""
        made = []
        for depth, seen in zip(DEPTHS, states.unbind(1), strict=True):
            fewer = F.silu(getattr(self, f"{depth}_embedding_linear")(row_major(seen.mT)))  # [B, width, made]
            normal = getattr(self, f"{depth}_layer_norm")(row_major(fewer.mT))
            made.append(getattr(self, f"{depth}_projection")(normal))
        return torch.cat(made, dim=1)
