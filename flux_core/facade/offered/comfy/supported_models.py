"""comfy.supported_models: the kinds of models that this program samples, for packs that ask what a MODEL is.

Other kinds are absent: no MODEL here is one of them.
"""

from __future__ import annotations

from typing import Any

from ...partly_offered import PartlyOffered
from . import latent_formats

__all__ = ["Flux", "FluxSchnell", "models"]


class Flux(metaclass=PartlyOffered):
    """FLUX.1 with guidance: the value of `model.model.model_config`."""

    sampling_settings: dict[str, Any] = {}

    def __init__(self, unet_config: dict[str, Any]) -> None:
        self.unet_config = unet_config
        self.latent_format = latent_formats.Flux()


class FluxSchnell(Flux):
    """FLUX.1-schnell: without guidance."""


models = [Flux, FluxSchnell]
