"""Denoising: the nodes that sample a latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .binding import HostedNode
from .guiders import NEGATIVE_TIP, SAMPLER_TIP, SAMPLERS, cfg
from .sigmas import DENOISE_TIP, SCHEDULER_TIP, SCHEDULERS, STEPS_TIP
from .sockets import (
    CONDITIONING,
    GUIDER,
    LATENT,
    MODEL,
    NOISE,
    SAMPLER,
    SIGMAS,
    Inputs,
    choice,
    integer,
    number,
    seed,
    socket,
    switch,
)

if TYPE_CHECKING:
    from .host import Host

Conditioning = list[list[Any]]
Latent = dict[str, Any]


class KSampler(HostedNode):
    """Schedule, noise and denoising in one node."""

    TITLE = "KSampler"
    DESCRIPTION = "Denoises a latent with a model and two prompts. For FLUX.1 set cfg to 1."
    CATEGORY = "sampling"
    FUNCTION = "sample"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The denoised latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model that denoises."),
                "seed": seed(),
                "steps": integer(20, 1, 10000, STEPS_TIP),
                "cfg": cfg(),
                "sampler_name": choice(SAMPLERS, SAMPLER_TIP),
                "scheduler": choice(SCHEDULERS, SCHEDULER_TIP),
                "positive": socket(CONDITIONING, "What the image should show."),
                "negative": socket(CONDITIONING, NEGATIVE_TIP),
                "latent_image": socket(LATENT, "The latent to denoise. It determines the size of the image."),
                "denoise": number(1.0, 0.0, 1.0, 0.01, DENOISE_TIP),
            }
        }

    def sample(
        self,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        denoise: float = 1.0,
    ) -> tuple[Latent]:
        from ..flux_core.sampling.sample import ksampler

        return (
            ksampler(
                model,
                seed,
                steps,
                cfg,
                sampler_name,
                scheduler,
                positive,
                negative,
                latent_image,
                denoise,
                report(self.host),
            ),
        )


class KSamplerAdvanced(HostedNode):
    """Denoise a part of the steps."""

    TITLE = "KSampler (Advanced)"
    DESCRIPTION = "Denoises from one step to another, for two samplers in a row. For FLUX.1 set cfg to 1."
    CATEGORY = "sampling"
    FUNCTION = "sample"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The latent after the last step.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model that denoises."),
                "add_noise": choice(
                    ["enable", "disable"], "Disable it in a second sampler, whose latent is noisy already."
                ),
                "noise_seed": seed(),
                "steps": integer(20, 1, 10000, STEPS_TIP),
                "cfg": cfg(),
                "sampler_name": choice(SAMPLERS, SAMPLER_TIP),
                "scheduler": choice(SCHEDULERS, SCHEDULER_TIP),
                "positive": socket(CONDITIONING, "What the image should show."),
                "negative": socket(CONDITIONING, NEGATIVE_TIP),
                "latent_image": socket(LATENT, "The latent to denoise. It determines the size of the image."),
                "start_at_step": integer(0, 0, 10000, "The first step taken."),
                "end_at_step": integer(10000, 0, 10000, "The step to stop before."),
                "return_with_leftover_noise": choice(
                    ["disable", "enable"], "Enable it if another sampler continues from the last step."
                ),
            }
        }

    def sample(
        self,
        model: Any,
        add_noise: str,
        noise_seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        start_at_step: int,
        end_at_step: int,
        return_with_leftover_noise: str,
        denoise: float = 1.0,
    ) -> tuple[Latent]:
        from ..flux_core.sampling.sample import ksampler_advanced

        return (
            ksampler_advanced(
                model,
                add_noise == "enable",
                noise_seed,
                steps,
                cfg,
                sampler_name,
                scheduler,
                positive,
                negative,
                latent_image,
                start_at_step,
                end_at_step,
                return_with_leftover_noise == "enable",
                report(self.host),
            ),
        )


class SamplerCustom(HostedNode):
    """Denoise with any sampler and schedule, with two prompts."""

    TITLE = "SamplerCustom"
    DESCRIPTION = "Denoises with any sampler along any schedule. For FLUX.1 set cfg to 1."
    CATEGORY = "sampling/custom_sampling"
    FUNCTION = "sample"
    RETURN_TYPES = (LATENT, LATENT)
    RETURN_NAMES = ("output", "denoised_output")
    OUTPUT_TOOLTIPS = ("The latent after the last step.", "The model's estimate of the image in the last step.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model that denoises."),
                "add_noise": switch(True, "Add noise at the start."),
                "noise_seed": seed(),
                "cfg": cfg(),
                "positive": socket(CONDITIONING, "What the image should show."),
                "negative": socket(CONDITIONING, NEGATIVE_TIP),
                "sampler": socket(SAMPLER, "The algorithm."),
                "sigmas": socket(SIGMAS, "The noise levels."),
                "latent_image": socket(LATENT, "The latent to denoise. It determines the size of the image."),
            }
        }

    def sample(
        self,
        model: Any,
        add_noise: bool,
        noise_seed: int,
        cfg: float,
        positive: Conditioning,
        negative: Conditioning,
        sampler: Any,
        sigmas: Any,
        latent_image: Latent,
    ) -> tuple[Latent, Latent]:
        from ..flux_core.sampling.guider import CFGGuider
        from ..flux_core.sampling.sample import DisableNoise, RandomNoise

        noise: Any = RandomNoise(noise_seed) if add_noise else DisableNoise(noise_seed)
        return _run(self.host, noise, CFGGuider(model, positive, negative, cfg), sampler, sigmas, latent_image)


class SamplerCustomAdvanced(HostedNode):
    """Denoise with separate nodes for noise, guider, sampler and schedule."""

    TITLE = "SamplerCustomAdvanced"
    DESCRIPTION = "Denoises with separate nodes for noise, guider, sampler and schedule."
    CATEGORY = "sampling/custom_sampling"
    FUNCTION = "sample"
    RETURN_TYPES = (LATENT, LATENT)
    RETURN_NAMES = ("output", "denoised_output")
    OUTPUT_TOOLTIPS = ("The latent after the last step.", "The model's estimate of the image in the last step.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "noise": socket(NOISE, "The source of the noise."),
                "guider": socket(GUIDER, "Model and prompts."),
                "sampler": socket(SAMPLER, "The algorithm."),
                "sigmas": socket(SIGMAS, "The noise levels."),
                "latent_image": socket(LATENT, "The latent to denoise. It determines the size of the image."),
            }
        }

    def sample(self, noise: Any, guider: Any, sampler: Any, sigmas: Any, latent_image: Latent) -> tuple[Latent, Latent]:
        return _run(self.host, noise, guider, sampler, sigmas, latent_image)


class AddNoise:
    """Add noise to a latent, without denoising."""

    TITLE = "AddNoise"
    DESCRIPTION = "Adds noise of the schedule's first level to a latent."
    CATEGORY = "_for_testing/custom_sampling/noise"
    FUNCTION = "add"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The noisy latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model whose scaling is used."),
                "noise": socket(NOISE, "The noise."),
                "sigmas": socket(SIGMAS, "The noise levels."),
                "latent_image": socket(LATENT, "The latent."),
            }
        }

    def add(self, model: Any, noise: Any, sigmas: Any, latent_image: Latent) -> tuple[Latent]:
        from ..flux_core.sampling.sample import add_noise

        return (add_noise(noise, sigmas, latent_image),)


def _run(host: Host, noise: Any, guider: Any, sampler: Any, sigmas: Any, latent: Latent) -> tuple[Latent, Latent]:
    from ..flux_core.sampling.sample import Sampler, sample_custom_advanced

    if not isinstance(sampler, Sampler):
        return host.run_foreign(sampler, guider, noise, sigmas, latent)
    return sample_custom_advanced(noise, guider, sampler, sigmas, latent, report(host))


def report(host: Host) -> Callable[[int, Any, Any, int], None]:
    """A callback for sampling: each step is reported with a preview of the estimated image."""
    return lambda step, D, x, steps: host.step(step + 1, steps, lambda: host.preview(D[0]))
