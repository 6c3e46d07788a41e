"""comfy.latent_formats: FLUX.1's latents. Formats of other model families are absent."""

from __future__ import annotations

from torch import Tensor

from ....models import latents

__all__ = ["Flux", "LatentFormat"]


class LatentFormat:
    """The scaling of a model family's latents for its transformer."""

    scale_factor = 1.0
    latent_channels = 4
    latent_dimensions = 2
    latent_rgb_factors: list[list[float]] | None = None
    latent_rgb_factors_bias: list[float] | None = None
    taesd_decoder_name: str | None = None

    def process_in(self, latent: Tensor) -> Tensor:
        return latent * self.scale_factor

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale_factor


class Flux(LatentFormat):
    """16 channels, one cell per 8x8 pixels."""

    scale_factor = latents.SCALE
    shift_factor = latents.SHIFT
    latent_channels = latents.CHANNELS
    latent_rgb_factors = [list(row) for row in latents.PREVIEW_RGB]
    latent_rgb_factors_bias = list(latents.PREVIEW_BIAS)
    taesd_decoder_name = "taef1_decoder"

    def process_in(self, latent: Tensor) -> Tensor:
        return latents.process_in(latent)

    def process_out(self, latent: Tensor) -> Tensor:
        return latents.process_out(latent)
