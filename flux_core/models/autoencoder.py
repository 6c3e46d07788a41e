"""The FLUX autoencoder: 8x8 pixels to one latent cell of 16 channels, and back (Rombach et al. 2022).

Attribute names are BFL's keys. Convolutions run in the dtype of the weights; images and latents are passed in and
returned as float32. The encoder computes in channels-last memory, the layout of images, the decoder in channels-first,
that of latents. Latents here are unscaled; see latents.process_in. Uses no node and no sampler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileFormatError
from .image_coder import ImageCoder
from .products import Convolution, before_product
from .strides import channels_last, row_major

EPS = 1e-6
HALVED = 7  # halvings: values up to 128 times the range of float16 then fit into it
GROUPS = 32


@dataclass(frozen=True)
class AutoencoderConfig:
    """The sizes of one autoencoder; it shrinks by 2 ** (len(ch_mult) - 1)."""

    channels: int  # of an image
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> AutoencoderConfig:
        """Read the sizes off a BFL state dict's shapes."""
        try:
            ch, channels = shapes["encoder.conv_in.weight"][:2]
            widths: list[int] = []
            while f"encoder.down.{len(widths)}.block.0.conv2.weight" in shapes:
                widths.append(shapes[f"encoder.down.{len(widths)}.block.0.conv2.weight"][0])
            z_channels = shapes["decoder.conv_in.weight"][1]
        except KeyError as missing:
            raise FileFormatError(
                f"This is not a FLUX autoencoder: it has no tensor named {missing}. Choose a file like ae.safetensors."
            ) from None
        blocks = sum(name.startswith("encoder.down.0.") and name.endswith(".conv2.weight") for name in shapes)
        return cls(channels, ch, tuple(width // ch for width in widths), blocks, z_channels)


class Autoencoder(ImageCoder):
    """Images to latents and back. Made for inference; `train()` makes it differentiable."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = config.channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.eval()

    @property
    def compression(self) -> int:
        """Pixels along one side of a latent cell: 8 for FLUX."""
        return 1 << (len(self.config.ch_mult) - 1)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, 3, H, W] in -1..1 -> mean and log-variance, each [B, 16, H/8, W/8]."""
        mean, log_variance = self.encoder(pixels).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in -1..1 -> the mean latent [B, 16, H/8, W/8]."""
        return self.moments(pixels)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Latent [B, 16, h, w] -> pixels [B, 3, 8h, 8w], about -1..1."""
        out: Tensor = self.decoder(latent)
        return out

    @torch.no_grad()
    def scale_down(self, halvings: int = HALVED) -> None:
        """Change the weights so that all values between two norms are 2 ** halvings smaller, and the results the same.

        Then float16 holds activations that would exceed its range (FLUX's decoder exceeds 65504). A norm removes the
        factor, if its epsilon is multiplied by the factor squared. Layers with normalised inputs are scaled, and of
        all others the biases. A power of two changes no digit: in float32 the results have the same bits.
        """
        scale = 0.5**halvings
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.eps *= scale * scale
            elif isinstance(module, ResnetBlock):
                _scale(module.conv1, scale)
                _scale(module.conv2, scale)
                if isinstance(module.nin_shortcut, nn.Conv2d):
                    _scale(module.nin_shortcut, scale, bias_only=True)
            elif isinstance(module, AttnBlock):
                _scale(module.proj_out, scale)
            elif isinstance(module, Downsample | Upsample):
                _scale(module.conv, scale, bias_only=True)
        for half in (self.encoder, self.decoder):
            _scale(half.conv_in, scale)

    @torch.no_grad()
    def init_weights(self) -> None:
        """For training from scratch: PyTorch's initial convolutions, and residual branches that start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                module.reset_parameters()
        for module in self.modules():
            last = {ResnetBlock: "conv2", AttnBlock: "proj_out"}.get(type(module))
            if last is not None:
                nn.init.zeros_(getattr(module, last).weight)
                nn.init.zeros_(getattr(module, last).bias)


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        self.conv_in = _conv(config.channels, config.ch)
        self.down = nn.ModuleList(
            Level(below, width, config.num_res_blocks, downsample=number < len(widths) - 1)
            for number, (below, width) in enumerate(zip([config.ch, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = _conv(widths[-1], config.z_channels * 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(channels_last(x))
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(_swish(self.norm_out(self.mid(x)), self.training))
        return out


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        self.conv_in = _conv(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(  # level 0 is the finest and comes last
            Level(above, width, config.num_res_blocks + 1, upsample=number > 0)
            for number, (above, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = _norm(config.ch)
        self.conv_out = _conv(config.ch, config.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(row_major(x)))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(_swish(self.norm_out(x), self.training))
        return out


class Level(nn.Module):
    """The blocks at one resolution, then a change of resolution."""

    def __init__(
        self, width_in: int, width: int, blocks: int, *, downsample: bool = False, upsample: bool = False
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(width if number else width_in, width) for number in range(blocks))
        if downsample:
            self.downsample = Downsample(width)
        if upsample:
            self.upsample = Upsample(width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            out: Tensor = self.downsample(x)
            return out
        return self.upsample(x) if hasattr(self, "upsample") else x


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width)
        self.attn_1 = AttnBlock(width)
        self.block_2 = ResnetBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class ResnetBlock(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = _norm(width_in)
        self.conv1 = _conv(width_in, width)
        self.norm2 = _norm(width)
        self.conv2 = _conv(width, width)
        self.nin_shortcut = nn.Identity() if width_in == width else _conv(width_in, width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_swish(self.norm1(x), self.training))
        h = self.conv2(_swish(self.norm2(h), self.training))
        out: Tensor = h.add_(self.nin_shortcut(x))
        return out


class AttnBlock(nn.Module):
    """Every cell attends to every other, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = _conv(width, width, kernel=1)
        self.k = _conv(width, width, kernel=1)
        self.v = _conv(width, width, kernel=1)
        self.proj_out = _conv(width, width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (project(h).flatten(2).transpose(1, 2)[:, None].contiguous() for project in (self.q, self.k, self.v))
        before_product()
        out = F.scaled_dot_product_attention(q, k, v)  # [B, 1, h*w, C]
        result: Tensor = x + self.proj_out(out[:, 0].transpose(1, 2).reshape(x.shape))
        return result


class Downsample(nn.Module):
    """Halve the resolution; padded at the right and bottom edges only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, width, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def _scale(layer: nn.Conv2d, scale: float, bias_only: bool = False) -> None:
    if not bias_only:
        layer.weight.mul_(scale)
    if layer.bias is not None:
        layer.bias.mul_(scale)


def _swish(x: Tensor, training: bool) -> Tensor:
    """In place for inference: at full resolution each copy of an image is large."""
    return F.silu(x, inplace=not training)


def _conv(width_in: int, width: int, kernel: int = 3, stride: int = 1, padding: int | None = None) -> Convolution:
    padding = kernel // 2 if padding is None else padding
    return Convolution(width_in, width, kernel, stride=stride, padding=padding)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=EPS)
