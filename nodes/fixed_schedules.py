"""Schedules that ask no model for its levels: by formulas of other kinds of models, and by published lists."""

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
                "rho": number(1.0, 0.0, 100.0, 0.01, "Larger takes more steps at low noise.", round=False),
            }
        }

    def schedule(self, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import polyexponential

        return (polyexponential(steps, sigma_max, sigma_min, rho),)


class LaplaceScheduler:
    """Levels as a Laplace distribution has them."""

    TITLE = "LaplaceScheduler"
    DESCRIPTION = "Noise levels by a Laplace distribution of their logarithm, dense about its middle."
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
                "mu": number(0.0, -10.0, 10.0, 0.1, "The logarithm of the level in the middle.", round=False),
                "beta": number(0.5, 0.0, 10.0, 0.1, "How far the levels spread about it.", round=False),
            }
        }

    def schedule(self, steps: int, sigma_max: float, sigma_min: float, mu: float, beta: float) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import laplace

        return (laplace(steps, sigma_max, sigma_min, mu, beta),)


class VPScheduler:
    """Levels as variance-preserving models have them."""

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
                "beta_d": number(19.9, 0.0, 5000.0, 0.01, "How quickly noise comes in as time goes on.", round=False),
                "beta_min": number(0.1, 0.0, 5000.0, 0.01, "How quickly noise comes in at first.", round=False),
                "eps_s": number(0.001, 0.0, 1.0, 0.0001, "The time of the last level.", round=False),
            }
        }

    def schedule(self, steps: int, beta_d: float, beta_min: float, eps_s: float) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import variance_preserving

        return (variance_preserving(steps, beta_d, beta_min, eps_s),)


class AlignYourStepsScheduler:
    """Levels found for other models."""

    DESCRIPTION = "Noise levels found by Align Your Steps for Stable Diffusion. They begin far above FLUX.1's 1."
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "schedule"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model_type": choice(["SD1", "SDXL", "SVD"], "The model the levels were found for."),
                "steps": integer(10, 1, 10000, STEPS_TIP),
                "denoise": number(1.0, 0.0, 1.0, 0.01, DENOISE_TIP),
            }
        }

    def schedule(self, model_type: str, steps: int, denoise: float) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import ALIGN_YOUR_STEPS, published

        return (published(ALIGN_YOUR_STEPS[model_type], steps, denoise),)


class OptimalStepsScheduler:
    """Levels found for few steps."""

    DESCRIPTION = "Noise levels found by OptimalSteps, for FLUX.1 as well: made for about ten steps."
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "schedule"
    RETURN_TYPES = (SIGMAS,)
    OUTPUT_TOOLTIPS = ("The noise levels.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model_type": choice(["FLUX", "Wan", "Chroma"], "The model the levels were found for."),
                "steps": integer(20, 3, 1000, STEPS_TIP),
                "denoise": number(1.0, 0.0, 1.0, 0.01, DENOISE_TIP),
            }
        }

    def schedule(self, model_type: str, steps: int, denoise: float) -> tuple[Any]:
        from ..flux_core.sampling.fixed_schedules import OPTIMAL_STEPS, published

        return (published(OPTIMAL_STEPS[model_type], steps, denoise),)
