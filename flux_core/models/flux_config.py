"""The sizes of one FLUX transformer, read off the shapes of its file. Uses no torch: a header is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import FileFormatError


@dataclass(frozen=True)
class FluxConfig:
    """The sizes of one transformer. Channels count latent channels, before 2x2 patching."""

    in_channels: int
    out_channels: int
    hidden: int
    heads: int
    head_dim: int
    mlp: int
    depth: int
    depth_single: int
    context_dim: int
    vec_dim: int
    guidance: bool
    axes_dim: tuple[int, int, int]
    theta: float = 10_000.0

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> FluxConfig:
        """Read every size off a BFL state dict's shapes. Raises FileFormatError if it is not one."""
        try:
            hidden, patch_in = shapes["img_in.weight"]
            head_dim = shapes["double_blocks.0.img_attn.norm.key_norm.scale"][0]
            return cls(
                in_channels=patch_in // 4,
                out_channels=shapes["final_layer.linear.weight"][0] // 4,
                hidden=hidden,
                heads=hidden // head_dim,
                head_dim=head_dim,
                mlp=shapes["double_blocks.0.img_mlp.0.weight"][0],
                depth=_count(shapes, "double_blocks."),
                depth_single=_count(shapes, "single_blocks."),
                context_dim=shapes["txt_in.weight"][1],
                vec_dim=shapes["vector_in.in_layer.weight"][1],
                guidance="guidance_in.in_layer.weight" in shapes,
                axes_dim=axes_of(head_dim),
            )
        except KeyError as missing:
            raise FileFormatError(
                f"This is not a FLUX transformer: it has no tensor named {missing}. "
                "Choose a FLUX diffusion model (BFL or diffusers layout)."
            ) from None


def flux1(in_channels: int = 16, guidance: bool = True) -> FluxConfig:
    """FLUX.1 as published: dev and Kontext. Fill takes 96 channels, Canny and Depth 32; schnell has no guidance."""
    return FluxConfig(in_channels, 16, 3072, 24, 128, 12288, 19, 38, 4096, 768, guidance, (16, 56, 56))


def axes_of(head_dim: int) -> tuple[int, int, int]:
    """The channels of a head for index, row and column: 128 -> (16, 56, 56)."""
    if head_dim % 32:
        raise FileFormatError(f"FLUX heads are 128 channels wide, or another multiple of 32; this file has {head_dim}.")
    return head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16


AXES = "sluice.axes_dim"  # in the header of a file whose shares are not FLUX.1's, such as "16,24,24"


def axes_from(text: str, head_dim: int) -> tuple[int, int, int]:
    """The shares that a header states. Raises FileFormatError if they do not fill a head of `head_dim` channels."""
    shares = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if len(shares) != 3 or sum(shares) != head_dim or any(share % 2 or not share for share in shares):
        raise FileFormatError(
            f"{AXES} in the file's header is {text!r}; it should be three even numbers whose sum is {head_dim}."
        )
    return shares[0], shares[1], shares[2]


def _count(names: Mapping[str, object], prefix: str) -> int:
    return len({name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix)})
