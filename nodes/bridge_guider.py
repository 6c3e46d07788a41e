"""Our guider for ComfyUI's own SamplerCustomAdvanced: ComfyUI's samplers, noise, masks, previews and interrupts.

A `BridgedGuider` is a guider of ours (flux_core/sampling/guider.py) with the interface of ComfyUI's guiders. It
evaluates the model, D(x, sigma); ComfyUI does everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.model_sampling
import comfy.sampler_helpers
import torch

from ..flux_core.conditioning.entries import Conditioning
from ..flux_core.errors import InputError
from ..flux_core.sampling.conditions import Canvas, equal_areas, prepare
from ..flux_core.sampling.guider import Denoiser, Evaluate, Guider, Model, Run, cached_evaluations
from ..flux_core.sampling.schedule import FluxShift, Sampling
from ..flux_core.sampling.solvers import SOLVERS

Tensor = torch.Tensor


class _FluxSampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):  # type: ignore[misc]
    """ComfyUI's samplers recognise a rectified flow by the base class CONST."""


class _LinearSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):  # type: ignore[misc]
    """The same, with a shift that does not depend on the image's size."""


def model_sampling(sampling: Sampling) -> Any:
    """Our noise levels with the interface that ComfyUI's samplers use."""
    if isinstance(sampling, FluxShift):
        flux = _FluxSampling()
        flux.set_parameters(shift=sampling.mu)
        return flux
    linear = _LinearSampling()
    linear.set_parameters(shift=sampling.shift, multiplier=1.0)
    return linear


class BridgedGuider:
    """Both interfaces: `model`, `conditionings` and `combine` for our samplers, the rest for ComfyUI's."""

    def __init__(self, guider: Guider) -> None:
        self.guider = guider
        sampling = model_sampling(guider.model.sampling)
        latents = comfy.latent_formats.Flux()
        parts = {"latent_format": latents, "model_sampling": sampling}
        model = SimpleNamespace(latent_format=latents, process_latent_out=latents.process_out, model_sampling=sampling)
        self.model_patcher = SimpleNamespace(
            load_device=guider.model.device, model=model, model_options={}, get_model_object=parts.__getitem__
        )
        self.inner_model = SimpleNamespace(
            model_sampling=sampling, latent_format=latents, scale_latent_inpaint=partial(_at_level, sampling)
        )
        self._denoiser: Denoiser | None = None

    # -- as a guider of ours

    @property
    def model(self) -> Model:
        return self.guider.model

    @property
    def conditionings(self) -> tuple[Conditioning, ...]:
        return self.guider.conditionings

    def combine(self, evaluate: Evaluate, want_uncond: bool) -> tuple[Tensor, Tensor | None]:
        return self.guider.combine(evaluate, want_uncond)

    # -- as one of ComfyUI's

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable[..., None] | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        """Run a sampler of ComfyUI. Latents are unscaled, as on links. Raises what the callback raises."""
        if len(sigmas) == 0:
            return latent_image
        model, latents = self.model, self.inner_model.latent_format
        noise, latent_image, sigmas = (t.to(model.device, torch.float32) for t in (noise, latent_image, sigmas))
        if latent_image.any():
            latent_image = latents.process_in(latent_image)
        if denoise_mask is not None:
            denoise_mask = comfy.sampler_helpers.prepare_mask(denoise_mask, noise.shape, model.device)
        options: dict[str, Any] = {"transformer_options": {"sample_sigmas": sigmas}}
        if model.mask_function is not None:
            options["denoise_mask_function"] = self._mask_at
        run, conditions = self._run(sampler, noise, sigmas, denoise_mask)
        with model.open(run) as network:
            self._denoiser = Denoiser(self.guider, network, conditions, model.dtype, cached_evaluations(model))
            try:
                extra = {"model_options": options, "seed": seed}
                out = sampler.sample(self, sigmas, extra, callback, noise, latent_image, denoise_mask, disable_pbar)
            finally:
                self._denoiser = None
        done: Tensor = latents.process_out(out.to(torch.float32))
        return done

    def __call__(
        self, x: Tensor, sigma: Tensor, model_options: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """D(x, sigma). CFG++ samplers pass a function that also receives the unconditional estimate U."""
        if self._denoiser is None:
            raise InputError("This guider was called outside of a run. Use it with SamplerCustomAdvanced.")
        comfy.model_management.throw_exception_if_processing_interrupted()
        level, options = float(sigma.flatten()[0]), model_options or {}
        watchers = options.get("sampler_post_cfg_function", ())
        if not watchers:
            return self._denoiser(x, level)
        D, U = self._denoiser.with_uncond(x, level)
        for watch in watchers:
            told = {"denoised": D, "cond_denoised": D, "uncond_denoised": U, "sigma": sigma, "input": x}
            D = watch({**told, "model": self.inner_model, "model_options": options, "cond": None, "uncond": None})
        return D

    def _run(self, sampler: Any, noise: Tensor, sigmas: Tensor, mask: Tensor | None) -> tuple[Run, list[Any]]:
        model, (batch, _, height, width) = self.model, noise.shape
        seen = None if mask is None else mask[:, :1]
        canvas = Canvas(batch, height, width, model.in_channels, model.device, model.dtype, seen)
        conditions = [prepare(conditioning, canvas, model.sampling) for conditioning in self.conditionings]
        equal_areas(conditions)
        levels = _asked(sampler, tuple(sigmas.tolist()), model.sampling)
        timesteps = tuple(map(model.sampling.timestep, levels))
        return Run(tuple(noise.shape), timesteps, tuple(c for each in conditions for c in each)), conditions

    def _mask_at(self, sigma: Tensor, mask: Tensor, extra_options: Mapping[str, Any]) -> Tensor:
        assert self.model.mask_function is not None
        levels = tuple(extra_options["sigmas"].tolist())
        return self.model.mask_function(mask, float(sigma.flatten()[0]), levels, self.model.sampling)


def run_sampler(guider: BridgedGuider, sampler: Any, noise: Any, sigmas: Tensor, latent: Any) -> tuple[Any, Any]:
    """ComfyUI's SamplerCustomAdvanced: (output, denoised output)."""
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    done: tuple[Any, Any] = SamplerCustomAdvanced().sample(noise, guider, sampler, sigmas, latent)
    return done


def _at_level(sampling: Any, x: Tensor, sigma: Tensor, noise: Tensor, latent_image: Tensor, **_: Any) -> Tensor:
    """The original image with noise of x's level."""
    noisy: Tensor = sampling.noise_scaling(sigma.reshape(-1, *[1] * (noise.ndim - 1)), noise, latent_image)
    return noisy


def _asked(sampler: Any, levels: tuple[float, ...], sampling: Sampling) -> tuple[float, ...]:
    """The levels at which a sampler evaluates the model if we have the same one, else those of the schedule."""
    function = getattr(sampler, "sampler_function", None)
    method = SOLVERS.get(getattr(function, "__name__", "").removeprefix("sample_"))
    return levels[:-1] if method is None else method.evaluated(levels, sampling)
