"""The FLUX.1 transformer (Black Forest Labs 2024): rectified-flow velocity of a latent, given text.

Attribute names are the keys of BFL checkpoints. A caller may run the blocks itself (`run_block`) and may pass in the
modulation rows (`modulation`), if it has computed them before.

Does not know: devices, storage formats, offloading, LoRA, guiders, solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cancel import check_cancelled
from ..errors import InputError
from . import latents
from .attention import rotations
from .denoiser_inputs import ControlResiduals, DenoiserInputs
from .flux_blocks import (
    SINUSOIDS,
    DoubleStreamBlock,
    Embedder,
    FinalLayer,
    Modulation,
    Scale,
    SingleStreamBlock,
    finite,
    sinusoids,
)
from .flux_config import FluxConfig
from .linear import Linear
from .strides import row_major
from .tensor_trees import map_tensors


class Flux(nn.Module):
    """Velocity of a noisy latent. The estimate of the clean latent is x - sigma * velocity.

    Made for inference. `train()` makes it differentiable; beside runs that use the same module, it is to be called on
    a copy (`copies.deep`).
    """

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.img_in = Linear(c.in_channels * 4, c.hidden)
        self.time_in = Embedder(SINUSOIDS, c.hidden)
        if c.guidance:
            self.guidance_in = Embedder(SINUSOIDS, c.hidden)
        self.vector_in = Embedder(c.vec_dim, c.hidden)
        self.txt_in = Linear(c.context_dim, c.hidden)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(c.hidden, c.heads, c.mlp) for _ in range(c.depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(c.hidden, c.heads, c.mlp) for _ in range(c.depth_single))
        self.final_layer = FinalLayer(c.hidden, c.out_channels * 4)
        self.eval()

    def forward(
        self,
        inputs: DenoiserInputs,
        *,
        modulation: Sequence[Tensor] | None = None,
        run_block: Callable[..., object] | None = None,
    ) -> Tensor:
        """Velocity [B, out_channels, h, w] of the scaled latent, computed in the number type of `inputs.x`.

        modulation   what `modulations` returns, if it was computed before: then timesteps, pooled and guidance are not
                     used
        run_block    called as run_block(block, *args) in place of block(*args), in the order of `blocks()`
        """
        inputs = map_tensors(inputs, row_major)
        x, control = inputs.x, inputs.control or ControlResiduals()
        height, width = x.shape[-2:]
        if modulation is not None:
            rows = tuple(map(row_major, modulation))
        else:
            rows = self.modulations(self.vector(inputs.timesteps, inputs.pooled, inputs.guidance, x.dtype))
        run: Callable[..., Any] = run_block or _call
        references = [latent.to(x.dtype) for latent in inputs.references]

        img = self.img_in(self.tokens(x, references))  # [B, Li, D]
        txt = self.txt_in(inputs.context.to(x.dtype))  # [B, Lt, D]
        rope = self.rope(x, txt.shape[1], references, inputs.reference_method)
        mask = None if inputs.attention_mask is None else inputs.attention_mask.to(x.dtype)

        mods = iter(rows)
        for number, block in enumerate(self.double_blocks):
            check_cancelled()
            img, txt = run(block, img, txt, next(mods), rope, mask)
            img = _add_residual(img, control.double, number)
        text = txt.shape[1]
        both = torch.cat((txt, finite(img)), dim=1)  # [B, Lt + Li, D]
        del img, txt
        for number, block in enumerate(self.single_blocks):
            check_cancelled()
            both = run(block, both, next(mods), rope, mask)
            both = _add_residual(both, control.single, number, start=text)

        return self.velocity(both, text, next(mods), height, width)

    def velocity(self, both: Tensor, text: int, mods: Tensor, height: int, width: int) -> Tensor:
        """What the last block gives, [B, L, D] with `text` tokens of text first, as a velocity [B, C, height, width].

        mods: the rows of the final layer [B, 2, D].
        """
        count = latents.patches(height) * latents.patches(width)
        return latents.unpack(self.final_layer(both[:, text : text + count], mods), height, width)

    def blocks(self) -> Iterator[DoubleStreamBlock | SingleStreamBlock]:
        """The blocks in order of use: double, then single."""
        yield from cast("Iterable[DoubleStreamBlock]", self.double_blocks)
        yield from cast("Iterable[SingleStreamBlock]", self.single_blocks)

    def vector(self, timesteps: Tensor, pooled: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What all modulation depends on, [B, D]: time [B], guidance [B] and pooled text [B, vec_dim].

        The guidance is rounded to `dtype` before it is multiplied by 1000 (3.5 becomes 3504 in bf16) and the time is
        not: the reference does so, and images depend on it.
        """
        bias = self.time_in.in_layer.bias
        assert bias is not None

        def there(values: Tensor, dtype: torch.dtype) -> Tensor:
            return values.to(bias.device, dtype, non_blocking=True)

        vec = self.time_in(sinusoids(there(timesteps, torch.float32)).to(dtype))
        if self.config.guidance and guidance is not None:
            vec = vec + self.guidance_in(sinusoids(there(guidance, dtype)))
        out: Tensor = vec + self.vector_in(there(pooled[:, : self.config.vec_dim], dtype))
        return out

    def modulations(self, vec: Tensor) -> tuple[Tensor, ...]:
        """The adaLN rows of every block in order of use, then of the final layer. vec [B, D].

        One tensor each: double [B, 12, D] (image, then text: shift, scale, gate for attention, the same for the MLP),
        single [B, 3, D] (shift, scale, gate), final layer [B, 2, D] (shift, scale).
        """
        active = F.silu(vec)
        return (*(block.modulate(active) for block in self.blocks()), self.final_layer.modulate(active))

    def tokens(self, x: Tensor, references: Sequence[Tensor] = ()) -> Tensor:
        """Patches of the latent, then of the references: [B, Li, 4 * in_channels]."""
        packed = [latents.pack(part) for part in (x, *references)]
        widened = bool(self.img_in.branches)  # a control LoRA takes more channels than the model has
        for part in packed:
            if part.shape[-1] != self.img_in.in_features and not (widened and part.shape[-1] == packed[0].shape[-1]):
                raise InputError(
                    f"This FLUX model takes latents of {self.config.in_channels} channels and was given one of "
                    f"{part.shape[-1] // 4}. Fill models need the inpainting conditioning, Canny and Depth models the "
                    "control picture, and all of them latents of the FLUX autoencoder."
                )
        return torch.cat(packed, dim=1) if references else packed[0]

    def rope(self, x: Tensor, text: int, refs: Sequence[Tensor] = (), ref_method: str = "offset") -> Tensor:
        """Rotations of all tokens (see attention.rotations): text at the origin, then image, then references."""
        height, width = x.shape[-2:]
        sizes = [(ref.shape[-2], ref.shape[-1]) for ref in refs]
        ids = [torch.zeros(text, 3, dtype=x.dtype), latents.image_ids(height, width, dtype=x.dtype)]
        for size, (index, top, left) in zip(
            sizes, latents.place_references(height, width, sizes, ref_method), strict=True
        ):
            ids.append(latents.image_ids(*size, index=index, top=top, left=left, dtype=x.dtype))
        return rotations(torch.cat(ids).to(x.device, non_blocking=True), self.config.axes_dim, self.config.theta)

    @torch.no_grad()
    def init_weights(self) -> None:
        """For training from scratch: Xavier matrices, and adaLN-zero (Peebles & Xie 2022): each block starts as the
        identity and the velocity as zero."""
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.xavier_uniform_(module.own_weight)
                nn.init.zeros_(module.own_bias)
            elif isinstance(module, Scale):
                nn.init.ones_(module.scale)
        for embedder in (self.time_in, self.vector_in, *([self.guidance_in] if self.config.guidance else [])):
            nn.init.normal_(embedder.in_layer.own_weight, std=0.02)
            nn.init.normal_(embedder.out_layer.own_weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.lin.own_weight)
        nn.init.zeros_(cast(Linear, self.final_layer.adaLN_modulation[1]).own_weight)
        nn.init.zeros_(self.final_layer.linear.own_weight)


def _add_residual(stream: Tensor, residuals: Sequence[Tensor | None], number: int, start: int = 0) -> Tensor:
    """stream [B, L, D] with residual `number` added to the tokens from `start` on, in place."""
    residual = residuals[number] if number < len(residuals) else None
    if residual is not None:
        stream[:, start : start + residual.shape[1]] += residual
    return stream


def _call(block: nn.Module, *args: object) -> object:
    return block(*args)
