"""comfy.model_base: the description of a MODEL. Types of models other than FLUX.1 are absent."""

from __future__ import annotations

import enum
from typing import Any, NoReturn

from torch import Tensor

from ....runtime.handles import FluxModel
from ...offered_modules import NotOffered
from ...partly_offered import PartlyOffered
from . import latent_formats, model_sampling, supported_models

__all__ = ["BaseModel", "Flux", "ModelType"]


class ModelType(enum.Enum):
    EPS = 1
    V_PREDICTION = 2
    V_PREDICTION_EDM = 3
    STABLE_CASCADE = 4
    EDM = 5
    FLOW = 6
    V_PREDICTION_CONTINUOUS = 7
    FLUX = 8
    IMG_TO_IMG = 9
    FLOW_COSMOS = 10


class BaseModel(metaclass=PartlyOffered):
    """The model of a MODEL: its sampling and its latents. The network itself cannot be accessed."""

    model_type = ModelType.FLUX
    manual_cast_dtype = None
    concat_keys = ()

    def __init__(self, handle: FluxModel) -> None:
        self._handle = handle
        self.latent_format = latent_formats.Flux()
        self.model_sampling = model_sampling.sampling_object(handle.sampling)
        config = handle.weights.config
        unet = {
            "image_model": "flux",
            "in_channels": config.in_channels // 4,
            "hidden_size": config.hidden,
            "guidance_embed": config.guidance,
        }
        kind = supported_models.Flux if config.guidance else supported_models.FluxSchnell
        self.model_config = kind(unet)

    @property
    def device(self) -> Any:
        return self._handle.device

    @property
    def diffusion_model(self) -> Any:
        return Network()

    def get_dtype(self) -> Any:
        return self._handle.dtype

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return self.latent_format.process_in(latent)

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return self.latent_format.process_out(latent)

    def memory_required(self, input_shape: Any) -> int:
        """Bytes; our manager frees memory without being called."""
        return 0

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        raise NotOffered("The state dict of a model (its weights are streamed)")


class Flux(BaseModel):
    """FLUX.1, the only model type here."""


class Network:
    """A placeholder of the network; reading an attribute raises an error that says it is not available."""

    def _get_name(self) -> str:
        """The name of its class, which packs print."""
        return "Flux"

    def __getattr__(self, name: str) -> NoReturn:
        raise NotOffered(f"model.diffusion_model.{name} (the network behind a MODEL, whose weights are streamed)")
