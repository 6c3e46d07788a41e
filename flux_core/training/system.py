"""A small text-to-latent system as one module, and its tokenizers, for the stages of a flow.

It consists of the product's own networks and tokenizers, so the trained networks are the ones that run later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..conditioning.tokenizer import ClipTokenizer, T5Tokenizer
from ..conditioning.vocabulary import load_clip, load_t5
from ..models.clip_text import ClipConfig, ClipTextModel
from ..models.denoiser_inputs import DenoiserInputs
from ..models.flux import Flux
from ..models.flux_config import FluxConfig, axes_of
from ..models.t5 import T5Config, T5Encoder
from .recipe import Sizes
from .words import write_clip, write_t5

HEAD = 64  # channels of the encoders' heads


@dataclass(frozen=True)
class Tokens:
    """A batch of prompts for both encoders: CLIP's ids and where they end, T5's ids."""

    clip: Tensor  # [B, Lc]
    ends: Tensor  # [B]
    t5: Tensor  # [B, L]
    rows: Tensor | None = None  # [N] which of these B prompts each of N pictures has; None: its own


@dataclass(frozen=True)
class Reader:
    """Both tokenizers, written into folders and read back by the product's own loaders."""

    clip: ClipTokenizer
    t5: T5Tokenizer

    @classmethod
    def write(cls, clip: Path, t5: Path, words: Sequence[str], length: int) -> Reader:
        """Write both into their folders. length: tokens that T5 pads to."""
        write_clip(clip, words)
        write_t5(t5, words, length)
        return cls(load_clip(clip), load_t5(t5))

    def tokens(self, clip_prompts: Sequence[str], t5_prompts: Sequence[str], device: torch.device) -> Tokens:
        """Each pair of prompts once.

        CLIP's rows are cut behind the last end in the batch: attention is causal, so nothing changes.
        """
        asked = list(zip(clip_prompts, t5_prompts, strict=True))
        once = {pair: number for number, pair in enumerate(dict.fromkeys(asked))}
        clip = torch.tensor([self.clip.rows(prompt)[0].tokens for prompt, _ in once])
        t5 = torch.tensor([self.t5.row(prompt).tokens for _, prompt in once])
        ends = (clip == self.clip.end).int().argmax(dim=1)
        rows = torch.tensor([once[pair] for pair in asked], device=device) if len(once) < len(asked) else None
        return Tokens(clip[:, : int(ends.max()) + 1].to(device), ends.to(device), t5.to(device), rows)


class System(nn.Module):
    """Transformer and both text encoders."""

    def __init__(self, sizes: Sizes, reader: Reader) -> None:
        super().__init__()
        self.transformer = Flux(flux_config(sizes))
        self.clip = ClipTextModel(
            ClipConfig(
                vocabulary=reader.clip.vocabulary.get_vocab_size(), positions=reader.clip.length,
                width=sizes.clip_width, mlp=4 * sizes.clip_width, layers=sizes.clip_layers,
                heads=max(1, sizes.clip_width // HEAD), eos_token_id=reader.clip.end,
            )
        )  # fmt: skip
        self.t5 = T5Encoder(
            T5Config(
                vocabulary=reader.t5.vocabulary.get_vocab_size(), width=sizes.t5_width, inner=sizes.t5_width,
                heads=max(1, sizes.t5_width // HEAD), mlp=sizes.t5_mlp, layers=sizes.t5_layers,
            )
        )  # fmt: skip

    def init_weights(self) -> None:
        for part in (self.transformer, self.clip, self.t5):
            part.init_weights()

    def read(self, tokens: Tokens, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Prompts -> T5's hidden states [N, L, D] and CLIP's pooled vector [N, D]."""
        _, pooled = self.clip(self.clip.embed(tokens.clip, dtype), tokens.ends)
        context: Tensor = self.t5(self.t5.embed(tokens.t5, dtype))
        return (context, pooled) if tokens.rows is None else (context[tokens.rows], pooled[tokens.rows])

    def forward(self, x: Tensor, t: Tensor, tokens: Tokens, guidance: Tensor, dtype: torch.dtype) -> Tensor:
        """Velocity [B, C, h, w], float32. What depends on one vector per picture is computed in float32."""
        context, pooled = self.read(tokens, dtype)
        vector = self.transformer.vector(t, pooled.float(), guidance, torch.float32)
        rows = tuple(row.to(dtype) for row in self.transformer.modulations(vector))
        inputs = DenoiserInputs(x.to(dtype), t, context, pooled, guidance)
        velocity: Tensor = self.transformer(inputs, modulation=rows)
        return velocity.float()


def flux_config(sizes: Sizes) -> FluxConfig:
    """The transformer's sizes in the product's terms."""
    return FluxConfig(
        in_channels=sizes.channels, out_channels=sizes.channels, hidden=sizes.hidden, heads=sizes.heads,
        head_dim=sizes.head,
        mlp=4 * sizes.hidden, depth=sizes.depth, depth_single=sizes.depth_single, context_dim=sizes.t5_width,
        vec_dim=sizes.clip_width, guidance=sizes.guidance,
        axes_dim=sizes.axes if any(sizes.axes) else axes_of(sizes.head),
    )  # fmt: skip
