"""latent_preview: previews of latents during sampling, and the callback that reports steps with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from ...models.latents import preview
from ..engine import current

__all__ = [
    "MAX_PREVIEW_RESOLUTION",
    "Latent2RGBPreviewer",
    "LatentPreviewer",
    "TAESDPreviewerImpl",
    "get_previewer",
    "prepare_callback",
    "preview_to_image",
]

MAX_PREVIEW_RESOLUTION = 512


class LatentPreviewer:
    """Latents in a sampler's scale -> a small image."""

    def decode_latent_to_preview(self, x0: Tensor) -> Image.Image:
        return Image.fromarray(preview(x0[0]).cpu().numpy())

    def decode_latent_to_preview_image(self, preview_format: str, x0: Tensor) -> tuple[str, Image.Image, int]:
        return "JPEG", self.decode_latent_to_preview(x0), MAX_PREVIEW_RESOLUTION


class Latent2RGBPreviewer(LatentPreviewer):
    """Each cell of the latent as a colour: the only kind of preview here."""

    def __init__(self, latent_rgb_factors: Any = None, latent_rgb_factors_bias: Any = None) -> None:
        """The factors are those of FLUX.1; the arguments are ignored."""


class TAESDPreviewerImpl(LatentPreviewer):
    def __init__(self, taesd: Any = None) -> None:
        """No small autoencoder is used here: previews are those of Latent2RGBPreviewer."""


def preview_to_image(latent_image: Tensor) -> Image.Image:
    """[H, W, 3] with values from -1 to 1 -> an image."""
    pixels = ((latent_image + 1.0) / 2.0).clamp(0, 1).mul(0xFF)
    return Image.fromarray(pixels.byte().cpu().numpy())


def get_previewer(device: Any, latent_format: Any) -> LatentPreviewer:
    return Latent2RGBPreviewer()


def prepare_callback(
    model: Any, steps: int, x0_output_dict: dict[str, Any] | None = None
) -> Callable[[int, Tensor, Tensor, int], None]:
    """callback(step, x0, x, total_steps) for samplers: the step is reported, x0 kept in `x0_output_dict["x0"]`."""

    def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        if x0_output_dict is not None:
            x0_output_dict["x0"] = x0
        current().progress(step + 1, total_steps, lambda: LatentPreviewer().decode_latent_to_preview(x0))

    return callback
