"""Noise levels: schedules of steps, and nodes that split, reverse or change schedules."""

from __future__ import annotations

from typing import Any

from .sockets import FLOAT, MODEL, SIGMAS, STRING, Inputs, choice, integer, number, socket, switch

SCHEDULERS = (
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
)
SCHEDULER_TIP = "How noise levels are spread over the steps. simple and normal are usual for FLUX.1."
STEPS_TIP = "Number of steps. 20 to 30 for dev, 4 for schnell."
DENOISE_TIP = "How much of the image is replaced: 1 is everything, 0.5 keeps large shapes."


class BasicScheduler:
    """One of the nine schedules."""

    TITLE = "BasicScheduler"
    DESCRIPTION = "Spreads noise levels over the steps, by the model's own sampling."
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "schedule"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels, one more than there are steps.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model whose noise levels are used."),
                "scheduler": choice(SCHEDULERS, SCHEDULER_TIP),
                "steps": integer(20, 1, 10000, STEPS_TIP),
                "denoise": number(1.0, 0.0, 1.0, 0.01, DENOISE_TIP),
            }
        }

    def schedule(self, model: Any, scheduler: str, steps: int, denoise: float) -> tuple[Any]:
        from ..flux_core.sampling.schedule import basic_schedule

        return (basic_schedule(scheduler, model.sampling, steps, denoise),)


class BetaSamplingScheduler:
    """The beta schedule with its two numbers."""

    TITLE = "BetaSamplingScheduler"
    DESCRIPTION = "Spreads noise levels by a Beta distribution: small numbers take more steps at both ends."
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "schedule"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels. Equal levels are used once.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model whose noise levels are used."),
                "steps": integer(20, 1, 10000, STEPS_TIP),
                "alpha": number(0.6, 0.0, 50.0, 0.01, "A smaller value takes more steps at high noise.", round=False),
                "beta": number(0.6, 0.0, 50.0, 0.01, "A smaller value takes more steps at low noise.", round=False),
            }
        }

    def schedule(self, model: Any, steps: int, alpha: float, beta: float) -> tuple[Any]:
        from ..flux_core.sampling import schedule

        return (schedule.beta(model.sampling, steps, alpha, beta),)


class KarrasScheduler:
    """Equal steps in a root of sigma."""

    TITLE = "KarrasScheduler"
    DESCRIPTION = "Noise levels by Karras et al. between two numbers. FLUX.1's levels lie between 1 and 0."
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "schedule"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "steps": integer(20, 1, 10000, STEPS_TIP),
                "sigma_max": number(14.614642, 0.0, 5000.0, 0.01, "The first level; 1 for FLUX.1.", round=False),
                "sigma_min": number(0.0291675, 0.0, 5000.0, 0.01, "The last level before 0.", round=False),
                "rho": number(7.0, 0.0, 100.0, 0.01, "A larger value takes more steps at low noise.", round=False),
            }
        }

    def schedule(self, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[Any]:
        from ..flux_core.sampling.schedule import karras_between

        return (karras_between(steps, sigma_max, sigma_min, rho),)


class ExponentialScheduler:
    """Equal steps in the logarithm of sigma."""

    TITLE = "ExponentialScheduler"
    DESCRIPTION = "Noise levels by equal ratios between two numbers. FLUX.1's levels lie between 1 and 0."
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "schedule"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "steps": integer(20, 1, 10000, STEPS_TIP),
                "sigma_max": number(14.614642, 0.0, 5000.0, 0.01, "The first level; 1 for FLUX.1.", round=False),
                "sigma_min": number(0.0291675, 0.0, 5000.0, 0.01, "The last level before 0.", round=False),
            }
        }

    def schedule(self, steps: int, sigma_max: float, sigma_min: float) -> tuple[Any]:
        from ..flux_core.sampling.schedule import exponential_between

        return (exponential_between(steps, sigma_max, sigma_min),)


class SplitSigmas:
    """Split a schedule at a step."""

    TITLE = "SplitSigmas"
    DESCRIPTION = "Splits a schedule in two, for two samplers in a row."
    CATEGORY = "sampling/custom_sampling/sigmas"
    FUNCTION = "split"
    RETURN_TYPES = (SIGMAS, SIGMAS)
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    OUTPUT_TOOLTIPS = ("The first steps.", "The remaining steps.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "sigmas": socket(SIGMAS, "The schedule."),
                "step": integer(0, 0, 10000, "Steps in the first part."),
            }
        }

    def split(self, sigmas: Any, step: int) -> tuple[Any, Any]:
        from ..flux_core.sampling.schedule import split

        return split(sigmas, step)


class SplitSigmasDenoise:
    """Split a schedule by a share."""

    TITLE = "SplitSigmasDenoise"
    DESCRIPTION = "Splits a schedule in two so that the second part has the given share of the steps."
    CATEGORY = "sampling/custom_sampling/sigmas"
    FUNCTION = "split"
    RETURN_TYPES = (SIGMAS, SIGMAS)
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    OUTPUT_TOOLTIPS = ("The first steps.", "The remaining steps.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        share = number(1.0, 0.0, 1.0, 0.01, "Share of the steps in the second part.")
        return {"required": {"sigmas": socket(SIGMAS, "The schedule."), "denoise": share}}

    def split(self, sigmas: Any, denoise: float) -> tuple[Any, Any]:
        from ..flux_core.sampling.schedule import split_denoise

        return split_denoise(sigmas, denoise)


class FlipSigmas:
    """Reverse a schedule."""

    TITLE = "FlipSigmas"
    DESCRIPTION = "Reverses a schedule: from image to noise."
    CATEGORY = "sampling/custom_sampling/sigmas"
    FUNCTION = "flip"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The reversed schedule.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"sigmas": socket(SIGMAS, "The schedule.")}}

    def flip(self, sigmas: Any) -> tuple[Any]:
        from ..flux_core.sampling.schedule import flip

        return (flip(sigmas),)


class SetFirstSigma:
    """Replace the first level."""

    TITLE = "SetFirstSigma"
    DESCRIPTION = "Replaces the first noise level of a schedule."
    CATEGORY = "sampling/custom_sampling/sigmas"
    FUNCTION = "set_first"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The changed schedule.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        level = number(136.0, 0.0, 20000.0, 0.001, "The new first level; at most 1 for FLUX.1.", round=False)
        return {"required": {"sigmas": socket(SIGMAS, "The schedule."), "sigma": level}}

    def set_first(self, sigmas: Any, sigma: float) -> tuple[Any]:
        from ..flux_core.sampling.schedule import set_first

        return (set_first(sigmas, sigma),)


class ExtendIntermediateSigmas:
    """Insert steps."""

    TITLE = "ExtendIntermediateSigmas"
    DESCRIPTION = "Divides the steps of a schedule, or those within a range of levels, into more steps."
    CATEGORY = "sampling/custom_sampling/sigmas"
    FUNCTION = "extend"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The longer schedule.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "sigmas": socket(SIGMAS, "The schedule."),
                "steps": integer(2, 1, 100, "Number of steps that replace one step."),
                "start_at_sigma": number(
                    -1.0, -1.0, 20000.0, 0.01, "Steps from higher levels are not divided; -1 divides all.", round=False
                ),
                "end_at_sigma": number(
                    12.0, 0.0, 20000.0, 0.01, "Steps from lower levels stay; at most 1 for FLUX.1.", round=False
                ),
                "spacing": choice(["linear", "cosine", "sine"], "How the new levels are spread within the step."),
            }
        }

    def extend(self, sigmas: Any, steps: int, start_at_sigma: float, end_at_sigma: float, spacing: str) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import extended

        return (extended(sigmas, steps, start_at_sigma, end_at_sigma, spacing),)


class ManualSigmas:
    """Enter a schedule by hand."""

    DESCRIPTION = "Noise levels as you enter them, from 1 down to 0."
    CATEGORY = "sampling/custom_sampling/sigmas"
    EXPERIMENTAL = True
    FUNCTION = "read"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "The levels, separated by anything that is not a number. The last is usually 0."
        return {"required": {"sigmas": (STRING, {"default": "1, 0.5", "multiline": False, "tooltip": tip})}}

    def read(self, sigmas: str) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import written

        return (written(sigmas),)


class SamplingPercentToSigma:
    """The noise level at a share of the denoising."""

    TITLE = "SamplingPercentToSigma"
    DESCRIPTION = "Returns the noise level at a share of the denoising: 0 is pure noise, 1 the finished image."
    CATEGORY = "sampling/custom_sampling/sigmas"
    FUNCTION = "level"
    RETURN_TYPES = (FLOAT,)
    RETURN_NAMES = ("sigma_value",)
    OUTPUT_TOOLTIPS = ("The noise level.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model whose noise levels are used."),
                "sampling_percent": number(0.0, 0.0, 1.0, 0.0001, "Share of the denoising."),
                "return_actual_sigma": switch(False, "At the ends return the model's own first and last level."),
            }
        }

    def level(self, model: Any, sampling_percent: float, return_actual_sigma: bool) -> tuple[float]:
        if return_actual_sigma and sampling_percent in (0.0, 1.0):
            return (model.sampling.sigma_min if sampling_percent else model.sampling.sigma_max,)
        return (model.sampling.percent_to_sigma(sampling_percent),)
