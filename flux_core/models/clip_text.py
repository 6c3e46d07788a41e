"""The text half of CLIP (Radford et al. 2021), as FLUX uses it: one pooled vector for a prompt.

Attribute names are Hugging Face's keys under `text_model.`. Activations are float32 unless embeddings of another
dtype are passed in; weights may be stored in any number type. Uses no tokenizer and no prompt weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileFormatError
from .clip_layers import Embedding, Encoder, LayerNorm
from .linear import Linear
from .strides import row_major

END_OF_TEXT = 49407


@dataclass(frozen=True)
class ClipConfig:
    """The sizes of one text encoder."""

    vocabulary: int
    positions: int
    width: int
    mlp: int
    layers: int
    heads: int
    eos_token_id: int = END_OF_TEXT

    @property
    def activation(self) -> str:
        """CLIP's own approximation of GELU."""
        return "quick"

    @classmethod
    def from_shapes(
        cls, shapes: Mapping[str, Sequence[int]], eos_token_id: int = END_OF_TEXT, heads: int | None = None
    ) -> ClipConfig:
        """Read the sizes off a Hugging Face state dict. Heads are 64 wide, 16 in small models, if not given."""
        try:
            vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
            positions = shapes["text_model.embeddings.position_embedding.weight"][0]
            mlp = shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0]
        except KeyError as missing:
            raise FileFormatError(
                f"This is not a CLIP text encoder: it has no tensor named {missing}. "
                "Choose a file like clip_l.safetensors."
            ) from None
        prefix = "text_model.encoder.layers."
        layers = {name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)}
        heads = heads or width // (64 if width % 64 == 0 else 16)
        return cls(vocabulary, positions, width, mlp, len(layers), heads, eos_token_id)


class ClipTextModel(nn.Module):
    """Token embeddings to hidden states and one pooled vector, without the projection into CLIP's shared space."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)

    def embed(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Token ids [...] -> embeddings [..., D], without positions."""
        return F.embedding(ids, self.text_model.embeddings.token_embedding.weight).to(dtype)

    def forward(self, tokens: Tensor, ends: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Token ids [B, L], or embeddings [B, L, D] -> (last hidden state [B, L, D], pooled [B, D]).

        Pooled is the hidden state at the first end-of-text token: found in the ids, or at `ends` [B] when embeddings
        are passed in.
        """
        tokens = row_major(tokens)
        if not tokens.is_floating_point():
            ends = (tokens == self.config.eos_token_id).int().argmax(dim=-1) if ends is None else ends
            tokens = self.embed(tokens)
        elif ends is None:
            raise ValueError("embeddings do not tell where the text ends: pass `ends`")
        hidden = self.text_model(tokens)
        return hidden, hidden[torch.arange(hidden.shape[0], device=hidden.device), ends.to(hidden.device)]

    @torch.no_grad()
    def init_weights(self) -> None:
        """For training from scratch: small normal matrices, norms at one."""
        for module in self.modules():
            if isinstance(module, LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Linear | Embedding):
                nn.init.normal_(module.own_weight if isinstance(module, Linear) else module.weight, std=0.02)
                if isinstance(module, Linear):
                    nn.init.zeros_(module.own_bias)


class TextTransformer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x = x + self.embeddings.position_embedding.weight[:length].to(x.dtype)
        causal = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        for layer in self.encoder.layers:
            x = layer(x, causal)
        out: Tensor = self.final_layer_norm(x)
        return out


class Embeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = Embedding(config.vocabulary, config.width)
        self.position_embedding = Embedding(config.positions, config.width)
