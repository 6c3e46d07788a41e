"""The tiny text-to-latent system as one module, and the words it reads: what the stages `flow` and `guidance` train.

It is put together from the product's own networks and tokenizers, so what is trained is what later runs.
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
from ..models.latents import CHANNELS
from ..models.t5 import T5Config, T5Encoder
from .captions import vocabulary
from .recipe import Sizes
from .words import write_clip, write_t5

HEAD = 64


@dataclass(frozen=True)
class Tokens:
    """A batch of prompts for both encoders: CLIP's ids and where they end, T5's ids."""

    clip: Tensor  # [B, Lc]
    ends: Tensor  # [B]
    t5: Tensor  # [B, L]


@dataclass(frozen=True)
class Reader:
    """Both tokenizers, written into a folder and read back by the product's own loaders."""

    clip: ClipTokenizer
    t5: T5Tokenizer

    @classmethod
    def write(cls, folder: Path, sizes: Sizes) -> Reader:
        """Write `clip_l/` and `t5xxl/` below `folder`."""
        write_clip(folder / "clip_l", vocabulary())
        write_t5(folder / "t5xxl", vocabulary(), sizes.t5_length)
        return cls(load_clip(folder / "clip_l"), load_t5(folder / "t5xxl"))

    def tokens(self, clip_prompts: Sequence[str], t5_prompts: Sequence[str], device: torch.device) -> Tokens:
        """CLIP's rows are cut behind the last end in the batch: attention is causal, so nothing changes."""
        clip = torch.tensor([self.clip.rows(prompt)[0].tokens for prompt in clip_prompts])
        t5 = torch.tensor([self.t5.row(prompt).tokens for prompt in t5_prompts])
        ends = (clip == self.clip.end).int().argmax(dim=1)
        return Tokens(clip[:, : int(ends.max()) + 1].to(device), ends.to(device), t5.to(device))


class System(nn.Module):
    """Transformer and both text encoders."""

    def __init__(self, sizes: Sizes, reader: Reader) -> None:
        super().__init__()
        self.transformer = Flux(flux_config(sizes))
        self.clip = ClipTextModel(
            ClipConfig(
                vocabulary=reader.clip.vocabulary.get_vocab_size(), positions=reader.clip.length,
                width=sizes.clip_width, mlp=4 * sizes.clip_width, layers=sizes.clip_layers,
                heads=sizes.clip_width // HEAD, eos_token_id=reader.clip.end,
            )
        )  # fmt: skip
        self.t5 = T5Encoder(
            T5Config(
                vocabulary=reader.t5.vocabulary.get_vocab_size(), width=sizes.t5_width, inner=sizes.t5_width,
                heads=sizes.t5_width // HEAD, mlp=sizes.t5_mlp, layers=sizes.t5_layers,
            )
        )  # fmt: skip

    def init_weights(self) -> None:
        for part in (self.transformer, self.clip, self.t5):
            part.init_weights()

    def read(self, tokens: Tokens, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Prompts -> T5's hidden states [B, L, D] and CLIP's pooled vector [B, D]."""
        _, pooled = self.clip(self.clip.embed(tokens.clip, dtype), tokens.ends)
        return self.t5(self.t5.embed(tokens.t5, dtype)), pooled

    def forward(self, x: Tensor, t: Tensor, tokens: Tokens, guidance: Tensor, dtype: torch.dtype) -> Tensor:
        """Velocity [B, 16, h, w], float32. What depends on one vector per picture is computed in float32."""
        context, pooled = self.read(tokens, dtype)
        vector = self.transformer.vector(t, pooled.float(), guidance, torch.float32)
        rows = tuple(row.to(dtype) for row in self.transformer.modulations(vector))
        inputs = DenoiserInputs(x.to(dtype), t, context, pooled, guidance)
        velocity: Tensor = self.transformer(inputs, modulation=rows)
        return velocity.float()


def flux_config(sizes: Sizes) -> FluxConfig:
    """The transformer's sizes in the product's terms."""
    return FluxConfig(
        in_channels=CHANNELS, out_channels=CHANNELS, hidden=sizes.hidden, heads=sizes.heads, head_dim=HEAD,
        mlp=4 * sizes.hidden, depth=sizes.depth, depth_single=sizes.depth_single, context_dim=sizes.t5_width,
        vec_dim=sizes.clip_width, guidance=True, axes_dim=axes_of(HEAD),
    )  # fmt: skip
