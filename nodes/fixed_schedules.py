"""Schedules that do not depend on the model: formulas of other kinds of models, and published lists."""

from __future__ import annotations

from typing import Any

from .sigmas import DENOISE_TIP, STEPS_TIP
from .sockets import SIGMAS, Inputs, choice, integer, number


class PolyexponentialScheduler:
    """A polynomial in the logarithm of sigma."""

    TITLE = "PolyexponentialScheduler"
    DESCRIPTION = "Noise levels by a power of the logarithm between two numbers. FLUX.1's levels lie between 1 and 0."
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
                "rho": number(1.0, 0.0, 100.0, 0.01, "A larger value takes more steps at low noise.", round=False),
            }
        }

    def schedule(self, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import polyexponential

        return (polyexponential(steps, sigma_max, sigma_min, rho),)


class LaplaceScheduler:
    """Levels by a Laplace distribution."""

    TITLE = "LaplaceScheduler"
    DESCRIPTION = "Noise levels whose logarithm follows a Laplace distribution: dense around its mean."
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "schedule"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels, as many as there are steps.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "steps": integer(20, 1, 10000, STEPS_TIP),
                "sigma_max": number(14.614642, 0.0, 5000.0, 0.01, "The largest level; 1 for FLUX.1.", round=False),
                "sigma_min": number(0.0291675, 0.0, 5000.0, 0.01, "The smallest level.", round=False),
                "mu": number(0.0, -10.0, 10.0, 0.1, "The mean of the logarithm of the levels.", round=False),
                "beta": number(0.5, 0.0, 10.0, 0.1, "The scale of the distribution.", round=False),
            }
        }

    def schedule(self, steps: int, sigma_max: float, sigma_min: float, mu: float, beta: float) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import laplace

        return (laplace(steps, sigma_max, sigma_min, mu, beta),)


class VPScheduler:
    """Levels of variance-preserving diffusion models."""

    TITLE = "VPScheduler"
    DESCRIPTION = "The noise levels of a variance-preserving diffusion. They begin far above FLUX.1's 1."
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "schedule"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "steps": integer(20, 1, 10000, STEPS_TIP),
                "beta_d": number(19.9, 0.0, 5000.0, 0.01, "Growth of the noise rate over time.", round=False),
                "beta_min": number(0.1, 0.0, 5000.0, 0.01, "Noise rate at the beginning.", round=False),
                "eps_s": number(0.001, 0.0, 1.0, 0.0001, "The time of the last level.", round=False),
            }
        }

    def schedule(self, steps: int, beta_d: float, beta_min: float, eps_s: float) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import variance_preserving

        return (variance_preserving(steps, beta_d, beta_min, eps_s),)


class AlignYourStepsScheduler:
    """Levels optimised for other models."""

    DESCRIPTION = "Noise levels optimised by Align Your Steps for Stable Diffusion. They begin far above FLUX.1's 1."
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "schedule"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model_type": choice(["SD1", "SDXL", "SVD"], "The model that the levels were optimised for."),
                "steps": integer(10, 1, 10000, STEPS_TIP),
                "denoise": number(1.0, 0.0, 1.0, 0.01, DENOISE_TIP),
            }
        }

    def schedule(self, model_type: str, steps: int, denoise: float) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import ALIGN_YOUR_STEPS, published

        return (published(ALIGN_YOUR_STEPS[model_type], steps, denoise),)


class OptimalStepsScheduler:
    """Levels optimised for few steps."""

    DESCRIPTION = "Noise levels optimised by OptimalSteps, also for FLUX.1, for about ten steps."
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "schedule"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model_type": choice(["FLUX", "Wan", "Chroma"], "The model that the levels were optimised for."),
                "steps": integer(20, 3, 1000, STEPS_TIP),
                "denoise": number(1.0, 0.0, 1.0, 0.01, DENOISE_TIP),
            }
        }

    def schedule(self, model_type: str, steps: int, denoise: float) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import OPTIMAL_STEPS, published

        return (published(OPTIMAL_STEPS[model_type], steps, denoise),)
