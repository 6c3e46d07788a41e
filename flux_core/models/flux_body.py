"""The parts that the FLUX.1 transformer and its ControlNets have in common: embedders, blocks, positions, modulation.

Attribute names are the keys of BFL checkpoints. Independent of: the use of the blocks' outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import latents
from .attention import rotations
from .flux_blocks import SINUSOIDS, DoubleStreamBlock, Embedder, SingleStreamBlock, sinusoids
from .flux_config import FluxConfig
from .linear import Linear


class FluxBody(nn.Module):
    """Embedders of latent, time, guidance, pooled vector and text, and the blocks."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        c = config
        self.img_in = Linear(c.in_channels * 4, c.hidden)
        self.time_in = Embedder(SINUSOIDS, c.hidden)
        if c.guidance:
            self.guidance_in = Embedder(SINUSOIDS, c.hidden)
        self.vector_in = Embedder(c.vec_dim, c.hidden)
        self.txt_in = Linear(c.context_dim, c.hidden)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(c.hidden, c.heads, c.mlp) for _ in range(c.depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(c.hidden, c.heads, c.mlp) for _ in range(c.depth_single))

    @property
    def sizes(self) -> FluxConfig:
        """The sizes of the embedders and blocks."""
        raise NotImplementedError

    def blocks(self) -> Iterator[DoubleStreamBlock | SingleStreamBlock]:
        """The blocks in order of use: double, then single."""
        yield from cast("Iterable[DoubleStreamBlock]", self.double_blocks)
        yield from cast("Iterable[SingleStreamBlock]", self.single_blocks)

    def vector(self, timesteps: Tensor, pooled: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The input of all modulation, [B, D], from time [B], guidance [B] and pooled text [B, vec_dim].

        The guidance is rounded to `dtype` before it is multiplied by 1000 (3.5 becomes 3504 in bf16) and the time is
        not: the reference does so, and images depend on it.
        """
        return self._vector(sinusoids(self._placed(timesteps, torch.float32)).to(dtype), pooled, guidance, dtype)

    def _vector(self, time: Tensor, pooled: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        """time: its sinusoids [B, 256]."""
        vec = self.time_in(time)
        if self.sizes.guidance and guidance is not None:
            vec = vec + self.guidance_in(sinusoids(self._placed(guidance, dtype)))
        out: Tensor = vec + self.vector_in(self._placed(pooled[:, : self.sizes.vec_dim], dtype))
        return out

    def _placed(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """On the device of the weights."""
        bias = self.time_in.in_layer.bias
        assert bias is not None
        return values.to(bias.device, dtype, non_blocking=True)

    def modulations(self, vec: Tensor) -> tuple[Tensor, ...]:
        """The adaLN rows of every block in order of use. vec [B, D].

        One tensor each: double [B, 12, D] (image, then text: shift, scale, gate for attention, the same for the MLP),
        single [B, 3, D] (shift, scale, gate).
        """
        active = F.silu(vec)
        return tuple(block.modulate(active) for block in self.blocks())

    def rope(self, x: Tensor, text: int, refs: Sequence[Tensor] = (), ref_method: str = "offset") -> Tensor:
        """Rotations of all tokens (see attention.rotations): text at the origin, then image, then references."""
        height, width = x.shape[-2:]
        sizes = [(ref.shape[-2], ref.shape[-1]) for ref in refs]
        ids = [torch.zeros(text, 3, dtype=x.dtype), latents.image_ids(height, width, dtype=x.dtype)]
        for size, (index, top, left) in zip(
            sizes, latents.place_references(height, width, sizes, ref_method), strict=True
        ):
            ids.append(latents.image_ids(*size, index=index, top=top, left=left, dtype=x.dtype))
        return rotations(torch.cat(ids).to(x.device, non_blocking=True), self.sizes.axes_dim, self.sizes.theta)
