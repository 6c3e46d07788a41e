"""What may be changed about a model: a copy of its handle with another setting. The weights are never touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .binding import HostedNode
from .sockets import MODEL, STRING, Inputs, choice, number, pixels, wire

SHIFT_TIP = "1 leaves the levels evenly spread; more spends more steps on high noise. schnell has 1."


class ModelSamplingFlux:
    """The shift of the noise levels, by the size of the picture."""

    TITLE = "ModelSamplingFlux"
    DESCRIPTION = "Spends more steps on high noise for larger pictures. The usual values change nothing at 1024x1024."
    CATEGORY = "advanced/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this shift.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": wire(MODEL, "The model."),
                "max_shift": number(1.15, 0.0, 100.0, 0.01, "The shift of a 1024x1024 picture."),
                "base_shift": number(0.5, 0.0, 100.0, 0.01, "The shift of a 256x256 picture."),
                "width": pixels(1024, "Width of the picture in pixels.", low=16, step=8),
                "height": pixels(1024, "Height of the picture in pixels.", low=16, step=8),
            }
        }

    def patch(self, model: Any, max_shift: float, base_shift: float, width: int, height: int) -> tuple[Any]:
        from ..flux_core.sampling.schedule import FluxShift

        return (replace(model, sampling=FluxShift.for_size(width, height, max_shift, base_shift)),)


class ModelSamplingSD3:
    """The shift of Stable Diffusion 3."""

    TITLE = "ModelSamplingSD3"
    DESCRIPTION = (
        "Shifts noise levels as Stable Diffusion 3 does, and tells the model times 1000 times as large, which is not "
        "what FLUX.1 was trained with. ModelSamplingAuraFlow has the same shift and the right times."
    )
    CATEGORY = "advanced/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this shift.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        shift = number(3.0, 0.0, 100.0, 0.01, SHIFT_TIP)
        return {"required": {"model": wire(MODEL, "The model."), "shift": shift}}

    def patch(self, model: Any, shift: float) -> tuple[Any]:
        from ..flux_core.sampling.schedule import LinearFlow

        return (replace(model, sampling=LinearFlow(shift, multiplier=1000.0)),)


class ModelSamplingAuraFlow:
    """A shift by one number."""

    TITLE = "ModelSamplingAuraFlow"
    DESCRIPTION = "Shifts noise levels by one number, whatever the size of the picture."
    CATEGORY = "advanced/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this shift.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        shift = number(1.73, 0.0, 100.0, 0.01, SHIFT_TIP)
        return {"required": {"model": wire(MODEL, "The model."), "shift": shift}}

    def patch(self, model: Any, shift: float) -> tuple[Any]:
        from ..flux_core.sampling.schedule import LinearFlow

        return (replace(model, sampling=LinearFlow(shift)),)


class DifferentialDiffusion:
    """A mask that says when, not whether."""

    TITLE = "Differential Diffusion"
    DESCRIPTION = "Lets the grey of a noise mask say from which step on a place is denoised: soft changes, no seams."
    CATEGORY = "_for_testing"
    EXPERIMENTAL = True
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this reading of masks.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        strength = number(1.0, 0.0, 1.0, 0.01, "1 reads the mask by steps, 0 as it is.")
        return {"required": {"model": wire(MODEL, "The model.")}, "optional": {"strength": strength}}

    def patch(self, model: Any, strength: float = 1.0) -> tuple[Any]:
        from ..flux_core.sampling.inpaint import DifferentialDiffusion as ByTime

        return (replace(model, mask_function=ByTime(strength)),)


class ModelComputeDtype:
    """Other numbers to compute in."""

    TITLE = "ModelComputeDtype"
    DESCRIPTION = "Computes the model in other numbers than the program does: fp32 is exact, bf16 and fp16 are fast."
    CATEGORY = "advanced/debug/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this setting.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "default computes as the whole program does."
        return {
            "required": {
                "model": wire(MODEL, "The model."),
                "dtype": choice(["default", "fp32", "fp16", "bf16"], tip),
            }
        }

    def patch(self, model: Any, dtype: str) -> tuple[Any]:
        from ..flux_core.runtime.device import DTYPES

        return (replace(model, compute_dtype=DTYPES.get(dtype)),)


class FluxToModel(HostedNode):
    """Over the bridge to ComfyUI's own sampling nodes."""

    ALONE = True  # ComfyUI has no node of this kind
    TITLE = "FLUX model to MODEL"
    DESCRIPTION = (
        "Lets ComfyUI's own KSampler and schedulers denoise with a model of Sluice. What changes weights or blocks "
        "from outside, like LoRA or ControlNet nodes of other makers, does not reach it and is refused."
    )
    CATEGORY = "advanced/model"
    EXPERIMENTAL = True
    FUNCTION = "convert"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model as ComfyUI's nodes take it.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"model": wire(MODEL, "The model.")}}

    def convert(self, model: Any) -> tuple[Any]:
        return (self.host.model(model),)


class MemoryBudget:
    """How much memory models may use from here on."""

    ALONE = True  # ComfyUI has no node of this kind
    TITLE = "Memory budget"
    DESCRIPTION = (
        "Sets how much memory this program may use, whatever else it has loaded included: 8G, 7.5G, 800M, auto for "
        "what is free, off for no limit. Weights that do not fit are streamed. It holds until it is set again."
    )
    CATEGORY = "advanced/model"
    FUNCTION = "set"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The same model.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": wire(MODEL, "The model."),
                "vram": (STRING, {"default": "auto", "tooltip": "Memory of the GPU: a size, auto or off."}),
                "ram": (STRING, {"default": "auto", "tooltip": "Memory of the machine: a size or auto."}),
            }
        }

    def set(self, model: Any, vram: str, ram: str) -> tuple[Any]:
        from ..flux_core.memory.budget import Allowed

        model.runtime.budget = Allowed.parse(vram, ram)
        return (model,)
