"""Vision encoders as CLIP and SigLIP have them (Radford et al. 2021, Zhai et al. 2023): an image to tokens.

    SigLIP   no class token; the last hidden state goes through the final norm: the input of FLUX.1 Redux. Its states
             at three depths are the input of USO's style projector
    CLIP     a class token; its final state is projected into the space that texts share: the input of IP-Adapters

Attribute names are Hugging Face's keys. Activations are float32; weights may be stored in any number type. Uses no
files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileFormatError
from .clip_layers import Embedding, Encoder, LayerNorm
from .linear import Linear
from .strides import row_major

DEPTHS = (2, 11, 20)  # layers counted from the last one, which is 1; what the style projector of USO takes, in order
_HEADS = {768: 12, 1024: 16, 1152: 16, 1280: 16, 1664: 16}  # by width, of the published ones
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images


@dataclass(frozen=True)
class VisionConfig:
    """The sizes of one vision encoder. size: pixels of a side; projection: width of the shared space, 0 for none."""

    width: int
    mlp: int
    layers: int
    heads: int
    patch: int
    size: int
    siglip: bool
    activation: str  # "tanh", "quick" or "exact": which GELU
    projection: int = 0

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> VisionConfig:
        """Read every size off a Hugging Face state dict. Raises FileFormatError if it is not one."""
        try:
            width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
            positions = shapes["vision_model.embeddings.position_embedding.weight"][0]
            mlp = shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0]
        except (KeyError, ValueError) as missing:
            raise FileFormatError(
                f"This is not a vision encoder: it has no usable tensor named {missing}. "
                "Choose a file like sigclip_vision_patch14_384.safetensors."
            ) from None
        siglip = "vision_model.embeddings.class_embedding" not in shapes
        prefix = "vision_model.encoder.layers."
        layers = len({name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)})
        cells = isqrt(positions if siglip else positions - 1)
        size = 384 if siglip and (cells, patch) == (27, 14) else cells * patch  # 6 of its 384 pixels are left over
        heads = _HEADS.get(width, width // (64 if width % 64 == 0 else 16))
        activation = "tanh" if siglip else "quick" if layers < 30 else "exact"
        projection = shapes.get("visual_projection.weight", (0,))[0]
        return cls(width, mlp, layers, heads, patch, size, siglip, activation, projection)

    @property
    def tokens(self) -> int:
        """Of one image."""
        return (self.size // self.patch) ** 2 + (0 if self.siglip else 1)

    @property
    def has_depths(self) -> bool:
        """Whether it is a SigLIP with enough layers for `DEPTHS`."""
        return self.siglip and self.layers >= max(DEPTHS)


class VisionEncoder(nn.Module):
    """Pixels to hidden states, and to one vector where there is a projection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTransformer(config)
        if config.projection:
            self.visual_projection = Linear(config.width, config.projection, bias=False)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Normalised pixels [B, 3, size, size] -> last hidden state [B, T, D], the one before [B, T, D], embedding.

        The embedding is [B, projection] of the class token; without a projection [B, D] of the class token, or
        [B, T, D] of SigLIP. A SigLIP with enough layers also returns its hidden states at `DEPTHS` [B, 3, T, D].
        """
        last, before, pooled, depths = self.vision_model(row_major(pixels))
        embedding = self.visual_projection(pooled) if self.config.projection else pooled
        return (last, before, embedding) if depths is None else (last, before, embedding, depths)


class VisionTransformer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.siglip = config.siglip
        self.kept = [config.layers - depth for depth in DEPTHS] if config.has_depths else []
        self.embeddings = PatchEmbeddings(config)
        if not config.siglip:
            self.pre_layrnorm = LayerNorm(config.width)  # spelt so in the files
        self.encoder = Encoder(config)
        self.post_layernorm = LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        x = before = self.embeddings(pixels)
        if not self.siglip:
            x = self.pre_layrnorm(x)
        states = {}
        for number, layer in enumerate(self.encoder.layers):
            before, x = x, layer(x)
            if number in self.kept:
                states[number] = x
        if self.siglip:
            x = self.post_layernorm(x)
            depths = torch.stack([states[number] for number in self.kept], dim=1) if self.kept else None
            return x, before, x, depths
        return x, before, self.post_layernorm(x[:, 0]), None


class PatchEmbeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = Patches(config.width, config.patch, bias=config.siglip)
        if not config.siglip:
            self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.position_embedding = Embedding(config.tokens, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embedding(pixels).flatten(2).mT  # [B, T, D]
        if hasattr(self, "class_embedding"):
            x = torch.cat((self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x), dim=1)
        out: Tensor = x + self.position_embedding.weight.to(x.dtype)
        return out


class Patches(nn.Module):
    """A convolution whose windows do not overlap, in the number type of its input."""

    def __init__(self, width: int, patch: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, patch, patch))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.empty(width)) if bias else None)

    def forward(self, pixels: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(pixels.dtype)
        return F.conv2d(pixels, self.weight.to(pixels.dtype), bias, stride=self.weight.shape[-1])


def pixels_for(image: Tensor, config: VisionConfig, crop: bool) -> Tensor:
    """An image [B, H, W, C >= 3] in 0..1 in the form for the encoder: [B, 3, size, size], normalised.

    crop: keep the aspect ratio and crop the middle; else stretch. Resized with antialiasing, in steps of 1/255.
    """
    mean, deviation = ((0.5,) * 3, (0.5,) * 3) if config.siglip else (MEAN, DEVIATION)
    return preprocessed(image, config.size, mean, deviation, crop)


def preprocessed(
    image: Tensor, size: int, mean: Sequence[float] = MEAN, deviation: Sequence[float] = DEVIATION, crop: bool = True
) -> Tensor:
    """`pixels_for` with any size, mean and deviation of the three colours; without them CLIP's."""
    planes = image[..., :3].movedim(-1, 1).float()
    height, width = planes.shape[-2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        fitted = (round(scale * height), round(scale * width)) if crop else (size, size)
        planes = F.interpolate(planes, size=fitted, mode="bicubic", antialias=True)
        top, left = ((side - size) // 2 for side in fitted)
        planes = planes[..., top : top + size, left : left + size]
    planes = (255.0 * planes).clamp(0, 255).round() / 255.0
    return (planes - planes.new_tensor(mean)[:, None, None]) / planes.new_tensor(deviation)[:, None, None]
