"""The FLUX.1 transformer (Black Forest Labs 2024): rectified-flow velocity of a latent, given text.

Attribute names are the keys of BFL checkpoints. A caller may run the blocks itself (`run_block`) and may pass in the
modulation rows (`modulation`), if it has computed them before.

Independent of: devices, storage formats, offloading, LoRA, guiders, solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from . import latents
from .attention import attention
from .copies import shallow
from .denoiser_inputs import ControlResiduals, DenoiserInputs
from .flux_blocks import FinalLayer, Modulation, Scale, finite
from .flux_body import FluxBody
from .flux_config import FluxConfig
from .linear import Linear
from .strides import row_major
from .tensor_trees import map_tensors
from .token_share import Sharing, TokenShare


class Flux(FluxBody):
    """Velocity of a noisy latent. The estimate of the clean latent is x - sigma * velocity.

    A run with ControlNets has them in its copy of the model, by name, in `controlnets`. In a run on several devices
    `sharing` divides the tokens; all devices get the same inputs and return the same velocity. `attend` replaces
    `attention` where one device has all tokens.

    Made for inference. `train()` makes it differentiable; if other runs use the same module, call it on a copy
    (`copies.deep`).
    """

    def __init__(self, config: FluxConfig) -> None:
        super().__init__(config)
        self.config = c = config
        self.final_layer = FinalLayer(c.hidden, c.out_channels * 4)
        self.controlnets = nn.ModuleDict()
        self.sharing: Sharing | None = None
        self.attend: Callable[..., Tensor] | None = None
        self.eval()

    @property
    def sizes(self) -> FluxConfig:
        return self.config

    def forward(
        self,
        inputs: DenoiserInputs,
        *,
        modulation: Sequence[Tensor] | None = None,
        control_rows: Mapping[str, Sequence[Tensor]] | None = None,
        run_block: Callable[..., object] | None = None,
    ) -> Tensor:
        """Velocity [B, out_channels, h, w] of the scaled latent, computed in the number type of `inputs.x`.

        modulation   the result of `modulations`, if it was computed before: then timesteps, pooled and guidance are not
                     used
        control_rows the result of `modulations` of each ControlNet, by its name
        run_block    called as run_block(block, *args) in place of block(*args), in the order of `blocks()`
        """
        inputs = map_tensors(inputs, row_major)
        x = inputs.x
        height, width = x.shape[-2:]
        if modulation is not None:
            rows = tuple(map(row_major, modulation))
        else:
            rows = self.modulations(self.vector(inputs.timesteps, inputs.pooled, inputs.guidance, x.dtype))
        run: Callable[..., Any] = run_block or _call
        control = self._residuals(inputs, control_rows or {}, run_block)
        references = [latent.to(x.dtype) for latent in inputs.references]

        tokens, context = self.tokens(x, references), inputs.context.to(x.dtype)
        mask = None if inputs.attention_mask is None else inputs.attention_mask.to(x.dtype)
        styled = None
        if inputs.style is not None:
            styled = torch.cat((inputs.style.to(x.dtype).expand(x.shape[0], -1, -1), self.txt_in(context)), dim=1)
            style = inputs.style.shape[1]
            mask = None if mask is None else F.pad(mask, (style, 0, style if mask.shape[-2] > 1 else 0, 0))
        text = context.shape[1] if styled is None else styled.shape[1]
        rope = self.rope(x, text, references, inputs.reference_method)
        share = None if self.sharing is None else self.sharing(text, tokens.shape[1])
        if share is not None:
            tokens, rope = share.image(tokens), share.positions(rope)
            context, styled = (share.text(context), None) if styled is None else (context, share.text(styled))
        chosen = self.attend if share is None else share.attention
        attend = () if chosen is None else (chosen,)
        img = self.img_in(tokens)  # [B, Li, D]
        txt = self.txt_in(context) if styled is None else styled  # [B, Lt, D]

        mods = iter(rows)
        for number, block in enumerate(self.double_blocks):
            looks = tuple(tensors[number].to(x.dtype) for tensors in inputs.seen if number < len(tensors))
            also = (*(attend or (attention,)), *looks) if looks else attend
            img, txt = run(block, img, txt, next(mods), rope, mask, *also)
            img = _add_residuals(img, [(part.double, part.own) for part in control], number, share)
        text = txt.shape[1]
        both = torch.cat((txt, finite(img)), dim=1)  # [B, Lt + Li, D]
        del img, txt
        for number, block in enumerate(self.single_blocks):
            both = run(block, both, next(mods), rope, mask, *attend)
            both = _add_residuals(both, [(part.single, part.own) for part in control], number, share, text)

        if share is not None:
            image = share.whole_image(self.final_layer(both[:, text:], next(mods)))
            return latents.unpack(image[:, : latents.patches(height) * latents.patches(width)], height, width)
        return self.velocity(both, text, next(mods), height, width)

    def velocity(self, both: Tensor, text: int, mods: Tensor, height: int, width: int) -> Tensor:
        """The output of the last block, [B, L, D] with `text` text tokens first, as a velocity [B, C, height, width].

        mods: the rows of the final layer [B, 2, D].
        """
        count = latents.patches(height) * latents.patches(width)
        return latents.unpack(self.final_layer(both[:, text : text + count], mods), height, width)

    def modulations(self, vec: Tensor) -> tuple[Tensor, ...]:
        """The adaLN rows of every block in order of use, then of the final layer: [B, 2, D] (shift, scale)."""
        return (*super().modulations(vec), self.final_layer.modulate(F.silu(vec)))

    def _residuals(
        self,
        inputs: DenoiserInputs,
        rows: Mapping[str, Sequence[Tensor]],
        run_block: Callable[..., object] | None,
    ) -> list[ControlResiduals]:
        """Those that were given, then those of each ControlNet. They are added up block by block: a ControlNet gives
        the same tensor for several blocks, a sum for each block would take many times the memory."""
        made = [] if inputs.control is None else [inputs.control]
        for control in inputs.controls:
            net = self.controlnets[control.net]
            mods = rows.get(control.net)
            made.append(
                net(
                    inputs, control, modulation=mods, run_block=run_block, sharing=self.sharing, attend=self.attend
                )
            )  # fmt: skip
        return made

    def tokens(self, x: Tensor, references: Sequence[Tensor] = ()) -> Tensor:
        """Patches of the latent, then of the references: [B, Li, 4 * in_channels]."""
        packed = [latents.pack(part) for part in (x, *references)]
        widened = bool(self.img_in.branches)  # a control LoRA has more input channels than the model
        for part in packed:
            if part.shape[-1] != self.img_in.in_features and not (widened and part.shape[-1] == packed[0].shape[-1]):
                raise InputError(
                    f"This FLUX model takes latents of {self.config.in_channels} channels and was given one of "
                    f"{part.shape[-1] // 4}. Fill models need the inpainting conditioning, Canny and Depth models the "
                    "control image, and all of them latents of the FLUX autoencoder."
                )
        return torch.cat(packed, dim=1) if references else packed[0]

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


def with_sharing(flux: Flux, sharing: Sharing | None) -> Flux:
    """A copy of the transformer that computes a share of the tokens. All weights are shared."""
    made = shallow(flux)
    made.sharing = sharing
    return made


def with_attention(flux: Flux, attend: Callable[..., Tensor] | None) -> Flux:
    """A copy of the transformer whose attention, and that of its ControlNets, is computed by `attend`; see
    `models.attention.attention`. All weights are shared.
    """
    made = shallow(flux)
    made.attend = attend
    return made


def with_controlnets(flux: Flux, nets: Mapping[str, nn.Module]) -> Flux:
    """A copy of the transformer with ControlNets, by their names. All weights are shared."""
    made = shallow(flux)
    made.controlnets = nn.ModuleDict(dict(nets))
    return made


def _add_residuals(
    stream: Tensor,
    given: Sequence[tuple[Sequence[Tensor | None], bool]],
    number: int,
    share: TokenShare | None = None,
    start: int = 0,
) -> Tensor:
    """stream [B, L, D] with the sum of all residuals `number`, or this device's share of it, added to the tokens from
    `start` on, in place. given: residuals, and whether they are this device's share already."""
    parts = [(residuals[number], own) for residuals, own in given if number < len(residuals)]
    present = [part if own or share is None else share.image(part) for part, own in parts if part is not None]
    if present:
        total = present[0]
        for part in present[1:]:
            total = total + part
        stream[:, start : start + total.shape[1]] += total
    return stream


def _call(block: nn.Module, *args: object) -> object:
    return block(*args)
