"""comfy.model_sampling: FLUX.1's noise levels as ComfyUI's objects. Those of diffusion models (EPS, ...) are absent."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ....errors import InputError
from ....sampling.schedule import FluxShift, LinearFlow, Sampling

__all__ = [
    "CONST",
    "ModelSamplingDiscreteFlow",
    "ModelSamplingFlux",
    "engine_sampling",
    "flux_time_shift",
    "sampling_object",
    "time_snr_shift",
]

# Names of diffusion models: absent, but listed for `from comfy.model_sampling import *`.
COMPUTED = (
    *("EDM", "EPS", "X0", "V_PREDICTION", "IMG_TO_IMG", "COSMOS_RFLOW", "StableCascadeSampling"),
    *("ModelSamplingContinuousEDM", "ModelSamplingContinuousV", "ModelSamplingCosmosRFlow", "ModelSamplingDiscrete"),
    *("ModelSamplingDiscreteEDM", "rescale_zero_terminal_snr_sigmas", "reshape_sigma"),
)


def time_snr_shift(alpha: float, t: Any) -> Any:
    return t if alpha == 1.0 else alpha * t / (1 + (alpha - 1) * t)


def flux_time_shift(mu: float, sigma: float, t: Any) -> Any:
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1) ** sigma)


class CONST:
    """The straight path from noise to image: x = sigma * noise + (1 - sigma) * image."""

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_input - model_output * _like(sigma, model_output)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        sigma = _like(sigma, noise)
        return sigma * noise + (1.0 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1.0 - _like(sigma, latent))


def _like(sigma: Any, x: Tensor) -> Tensor:
    """A level, or one for each image, in a shape that can be multiplied with a batch of images."""
    like: Tensor = sigma.reshape(sigma.shape[:1] + (1,) * (x.ndim - 1)) if getattr(sigma, "ndim", 0) else sigma
    return like


class _Levels:
    """The table of levels of one of our samplings."""

    levels: Sampling

    @property
    def sigmas(self) -> Tensor:
        return self.levels.table

    @property
    def sigma_min(self) -> Tensor:
        return self.levels.table[0]

    @property
    def sigma_max(self) -> Tensor:
        return self.levels.table[-1]

    def percent_to_sigma(self, percent: float) -> float:
        return self.levels.percent_to_sigma(percent)


class ModelSamplingFlux(_Levels):
    """FLUX.1-dev's levels. `set_parameters(shift=mu)`."""

    def __init__(self, model_config: Any = None) -> None:
        self.set_parameters()

    def set_parameters(self, shift: float = 1.15, timesteps: int = 10000) -> None:
        self.shift, self.levels = shift, FluxShift(shift)

    def timestep(self, sigma: Any) -> Any:
        return sigma

    def sigma(self, timestep: Any) -> Any:
        return flux_time_shift(self.shift, 1.0, timestep)


class ModelSamplingDiscreteFlow(_Levels):
    """Levels shifted by one number, as for FLUX.1-schnell (1.0)."""

    def __init__(self, model_config: Any = None) -> None:
        self.multiplier = 1.0
        self.set_parameters(multiplier=1.0)

    def set_parameters(self, shift: float = 1.0, timesteps: int = 1000, multiplier: float = 1000) -> None:
        self.shift, self.multiplier = shift, multiplier
        self.levels = LinearFlow(shift, multiplier)

    def timestep(self, sigma: Any) -> Any:
        return sigma * self.multiplier

    def sigma(self, timestep: Any) -> Any:
        return time_snr_shift(self.shift, timestep / self.multiplier)


class _FluxSampling(ModelSamplingFlux, CONST):
    """The sampling of a model like FLUX.1-dev."""


class _LinearSampling(ModelSamplingDiscreteFlow, CONST):
    """The sampling of a model like FLUX.1-schnell."""


def sampling_object(levels: Sampling) -> Any:
    """One of our samplings as ComfyUI's object."""
    made: Any
    if isinstance(levels, FluxShift):
        made = _FluxSampling()
        made.set_parameters(shift=levels.mu)
    else:
        made = _LinearSampling()
        made.set_parameters(shift=levels.shift, multiplier=levels.multiplier)
    return made


def engine_sampling(made: Any) -> Sampling:
    """The inverse of `sampling_object`. Raises InputError for a sampling that FLUX.1 does not have."""
    levels = getattr(made, "levels", None)
    if not isinstance(levels, (FluxShift, LinearFlow)):
        raise InputError(
            f"A node pack samples with a {type(made).__name__}; Sluice samples FLUX.1 with shifts only "
            "(ModelSamplingFlux, ModelSamplingSD3). Use one of these nodes instead."
        )
    return levels
