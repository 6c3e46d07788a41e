"""ControlNets for FLUX.1: a few blocks like the transformer's, with a control image as a further input.

A ControlNet (Zhang et al. 2023) is evaluated before the transformer with the same latent, text and time. The image
stream after each of its blocks passes a layer of its own and is added to the transformer's after several blocks. There
are three families, which differ in their tensors:

    latent      InstantX, Shakker, alimama: the image is a latent; alimama's has a mask as 17th channel; "union"
                models have an embedding for each kind of image, which becomes the first text token
    picture     XLabs: the image is given in pixels, which convolutions convert to a latent
    mistoline   MistoLine: as XLabs, with other convolutions, and an activation after the layer of each block

Attribute names are the keys of the files, in the blocks those of BFL.
Independent of: devices, storage formats, the source of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from . import latents
from .controlnet_config import ControlNetConfig
from .denoiser_inputs import ControlInput, ControlResiduals, DenoiserInputs
from .flux_blocks import finite, sinusoids
from .flux_body import FluxBody
from .flux_config import FluxConfig
from .linear import Linear
from .products import Convolution
from .strides import row_major
from .token_share import Sharing

DOUBLE_BLOCKS, SINGLE_BLOCKS = 19, 38  # of the transformer that the residuals are spread over
_STRIDES = {"picture": (1, 1, 2, 1, 2, 1, 2, 1), "mistoline": (1, 1, 1, 2, 1, 2, 1, 2, 1, 1)}  # of the convolutions
_POINTWISE = {"picture": (), "mistoline": (1, 8)}  # those with kernels of one pixel; the others have 3 x 3


class ControlNet(FluxBody):
    """Computes the residuals of one control image for the image tokens of the transformer."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config.body)
        self.config = config
        hidden = config.body.hidden
        self.pos_embed_input = Linear(config.hint_channels * 4, hidden)
        layer = _ActiveLinear if config.kind == "mistoline" else Linear
        self.controlnet_blocks = nn.ModuleList(layer(hidden, hidden) for _ in range(config.body.depth))
        self.controlnet_single_blocks = nn.ModuleList(layer(hidden, hidden) for _ in range(config.body.depth_single))
        if config.modes:
            self.controlnet_mode_embedder = nn.Embedding(config.modes, hidden)
        if config.kind == "picture":
            self.input_hint_block = _convolutions("picture")
        if config.kind == "mistoline":
            self.input_cond_block = _Encoder()
        self.eval()

    @property
    def sizes(self) -> FluxConfig:
        return self.config.body

    def forward(
        self,
        inputs: DenoiserInputs,
        control: ControlInput,
        *,
        modulation: Sequence[Tensor] | None = None,
        run_block: Callable[..., object] | None = None,
        sharing: Sharing | None = None,
        attend: Callable[..., Tensor] | None = None,
    ) -> ControlResiduals:
        """The residuals for the image tokens, in the number type of `inputs.x`, multiplied by the strength.

        modulation, run_block: as for `Flux.forward`. sharing: divides the tokens among devices. Each device then gets
        the residuals of its own tokens, or all residuals if references follow the image: ControlNets do not use
        references, and so the transformer divides its tokens at other positions. attend: as `Flux.attend`.
        """
        run: Callable[..., Any] = run_block or (lambda block, *args: block(*args))
        x = inputs.x[:, : self.sizes.in_channels]
        if modulation is None:
            modulation = self.modulations(self.vector(inputs.timesteps, inputs.pooled, inputs.guidance, x.dtype))
        mods = iter(map(row_major, modulation))

        tokens, hint = latents.pack(x), self._hint_tokens(control.hint.to(x.dtype), x)
        txt = self._with_modes(self.txt_in(inputs.context.to(x.dtype)), control.modes)
        rope = self.rope(x, txt.shape[1])
        share = None if sharing is None else sharing(txt.shape[1], tokens.shape[1])
        if share is not None:
            tokens, hint, txt, rope = share.image(tokens), share.image(hint), share.text(txt), share.positions(rope)
        chosen = attend if share is None else share.attention
        attending = () if chosen is None else (None, chosen)
        img, text = self.img_in(tokens) + self.pos_embed_input(hint), txt.shape[1]
        collected = share is not None and bool(inputs.references)

        def residual(layer: nn.Module, stream: Tensor) -> Tensor:
            made: Tensor = layer(stream) * control.strength
            return share.whole_image(made) if share is not None and collected else made

        double, single = [], []
        for block, layer in zip(self.double_blocks, self.controlnet_blocks, strict=True):
            img, txt = run(block, img, txt, next(mods), rope, *attending)
            double.append(residual(layer, img))
        if len(self.single_blocks):
            both = torch.cat((txt, finite(img)), dim=1)
            for block, layer in zip(self.single_blocks, self.controlnet_single_blocks, strict=True):
                both = run(block, both, next(mods), rope, *attending)
                single.append(residual(layer, both[:, text:]))
        each, own = self.config.takes_latent, share is not None and not collected
        return ControlResiduals(_spread(double, DOUBLE_BLOCKS, each), _spread(single, SINGLE_BLOCKS, each), own)

    def vector(self, timesteps: Tensor, pooled: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        """As `FluxBody.vector`, but the time is also rounded to `dtype` before it is multiplied."""
        return self._vector(sinusoids(self._placed(timesteps, dtype)), pooled, guidance, dtype)

    def _hint_tokens(self, hint: Tensor, x: Tensor) -> Tensor:
        """Patches of the image, [B, T, 4 * hint_channels]: of a latent, or of the pixels after the convolutions."""
        if not self.config.takes_latent:
            stem = self.input_hint_block if self.config.kind == "picture" else self.input_cond_block
            hint = stem(hint * 2.0 - 1.0)
        if hint.shape[1] != self.config.hint_channels:
            raise InputError(
                f"This ControlNet takes {self.config.hint_channels} channels and was given {hint.shape[1]}. Connect "
                "the autoencoder of FLUX.1 to the node that applies it."
            )
        assert hint.shape[-2:] == x.shape[-2:], (hint.shape, x.shape)
        return latents.pack(hint)

    def _with_modes(self, txt: Tensor, modes: tuple[int, ...]) -> Tensor:
        """txt [B, L, D] with the tokens of these kinds of images before it."""
        if not self.config.modes or not modes:
            return txt
        if max(modes) >= self.config.modes:
            raise InputError(
                f"This union ControlNet has the kinds of images 0 to {self.config.modes - 1} and was asked for "
                f"{max(modes)}. Choose another type in SetUnionControlNetType, or auto."
            )
        rows = self.controlnet_mode_embedder(torch.tensor(modes, device=txt.device)).to(txt.dtype)
        return torch.cat((rows.expand(txt.shape[0], -1, -1), txt), dim=1)


class _ActiveLinear(nn.Module):
    """Linear, SiLU."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.linear(x))


class _Encoder(nn.Module):
    """MistoLine's convolutions, under the name they have in its file."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _convolutions("mistoline")

    def forward(self, picture: Tensor) -> Tensor:
        out: Tensor = self.encoder(picture)
        return out


def _convolutions(kind: str) -> nn.Sequential:
    """Pixels [B, 3, 8h, 8w] to [B, 16, h, w], with SiLU between the convolutions."""
    parts: list[nn.Module] = []
    for number, stride in enumerate(_STRIDES[kind]):
        size = 1 if number in _POINTWISE[kind] else 3
        parts += [Convolution(3 if number == 0 else 16, 16, size, stride, padding=size // 2), nn.SiLU()]
    return nn.Sequential(*parts[:-1])


def _spread(outputs: Iterable[Tensor], count: int, each: bool) -> tuple[Tensor, ...]:
    """Outputs for `count` blocks of the transformer: one after the other, each several times, or again and again."""
    made = list(outputs)
    if not made:
        return ()
    times = -(-count // len(made))
    return tuple([out for out in made for _ in range(times)] if each else made * times)[:count]
