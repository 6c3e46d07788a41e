"""Settings of a model: each node returns a copy of the handle. The weights are never changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .binding import HostedNode
from .sockets import MODEL, STRING, Inputs, choice, number, pixels, socket

SHIFT_TIP = "1 spreads the levels evenly; a higher value spends more steps on high noise. schnell uses 1."


class ModelSamplingFlux:
    """Shift the noise levels by the size of the image."""

    TITLE = "ModelSamplingFlux"
    DESCRIPTION = "Spends more steps on high noise for larger images. The usual values change nothing at 1024x1024."
    CATEGORY = "advanced/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this shift.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "max_shift": number(1.15, 0.0, 100.0, 0.01, "The shift of a 1024x1024 image."),
                "base_shift": number(0.5, 0.0, 100.0, 0.01, "The shift of a 256x256 image."),
                "width": pixels(1024, "Width of the image in pixels.", low=16, step=8),
                "height": pixels(1024, "Height of the image in pixels.", low=16, step=8),
            }
        }

    def patch(self, model: Any, max_shift: float, base_shift: float, width: int, height: int) -> tuple[Any]:
        from ..flux_core.sampling.schedule import FluxShift

        return (replace(model, sampling=FluxShift.for_size(width, height, max_shift, base_shift)),)


class ModelSamplingSD3:
    """Shift the noise levels as Stable Diffusion 3 does."""

    TITLE = "ModelSamplingSD3"
    DESCRIPTION = (
        "Shifts noise levels as Stable Diffusion 3 does, and multiplies the model's times by 1000, which is not "
        "what FLUX.1 was trained with. ModelSamplingAuraFlow has the same shift and the right times."
    )
    CATEGORY = "advanced/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this shift.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        shift = number(3.0, 0.0, 100.0, 0.01, SHIFT_TIP)
        return {"required": {"model": socket(MODEL, "The model."), "shift": shift}}

    def patch(self, model: Any, shift: float) -> tuple[Any]:
        from ..flux_core.sampling.schedule import LinearFlow

        return (replace(model, sampling=LinearFlow(shift, multiplier=1000.0)),)


class ModelSamplingAuraFlow:
    """Shift the noise levels by one number."""

    TITLE = "ModelSamplingAuraFlow"
    DESCRIPTION = "Shifts noise levels by one number, whatever the size of the image."
    CATEGORY = "advanced/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this shift.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        shift = number(1.73, 0.0, 100.0, 0.01, SHIFT_TIP)
        return {"required": {"model": socket(MODEL, "The model."), "shift": shift}}

    def patch(self, model: Any, shift: float) -> tuple[Any]:
        from ..flux_core.sampling.schedule import LinearFlow

        return (replace(model, sampling=LinearFlow(shift)),)


class DifferentialDiffusion:
    """Use the grey values of a mask as starting steps."""

    TITLE = "Differential Diffusion"
    DESCRIPTION = "The grey values of a noise mask set the step from which each place is denoised, which avoids seams."
    CATEGORY = "_for_testing"
    EXPERIMENTAL = True
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this use of masks.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        strength = number(1.0, 0.0, 1.0, 0.01, "1 uses grey values as steps, 0 uses the mask unchanged.")
        return {"required": {"model": socket(MODEL, "The model.")}, "optional": {"strength": strength}}

    def patch(self, model: Any, strength: float = 1.0) -> tuple[Any]:
        from ..flux_core.sampling.inpaint import DifferentialDiffusion as ByTime

        return (replace(model, mask_function=ByTime(strength)),)


class ModelComputeDtype:
    """Set the number type of a model's computation."""

    TITLE = "ModelComputeDtype"
    DESCRIPTION = "Computes the model in another number type than the program: fp32 is exact, bf16 and fp16 are fast."
    CATEGORY = "advanced/debug/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this setting.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "default uses the number type of the program."
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "dtype": choice(["default", "fp32", "fp16", "bf16"], tip),
            }
        }

    def patch(self, model: Any, dtype: str) -> tuple[Any]:
        from ..flux_core.runtime.device import DTYPES

        return (replace(model, compute_dtype=DTYPES.get(dtype)),)


class ModelProducts:
    """Set how a model's matrices are multiplied."""

    ALONE = True  # ComfyUI has no node of this kind
    TITLE = "Model Products"
    DESCRIPTION = (
        "Multiplies the model's matrices in 8-bit integers (faster on most cards) or in 16 bits. Images in integers "
        "differ slightly; LoRAs stay exact."
    )
    CATEGORY = "advanced/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this setting.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = (
            "default: the program's setting. int8: a file of any format is converted to integers while it is loaded. "
            "16bit: integers are decoded. fp16-sums: as 16bit, summed in float16, for GeForce cards in fp16. "
            "auto: integers where the file stores them and that is faster."
        )
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "products": choice(["default", "auto", "int8", "16bit", "fp16-sums"], tip),
            }
        }

    def patch(self, model: Any, products: str) -> tuple[Any]:
        return (replace(model, own_compute=None if products == "default" else products),)


class FluxToModel(HostedNode):
    """Convert the model for ComfyUI's own sampling nodes."""

    ALONE = True  # ComfyUI has no node of this kind
    TITLE = "FLUX model to MODEL"
    DESCRIPTION = (
        "Lets ComfyUI's own KSampler and schedulers denoise with a model of Sluice. Nodes of others that "
        "change weights or blocks, such as LoRA or ControlNet nodes, cannot change it and are refused."
    )
    CATEGORY = "advanced/model"
    EXPERIMENTAL = True
    FUNCTION = "convert"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model for ComfyUI's nodes.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"model": socket(MODEL, "The model.")}}

    def convert(self, model: Any) -> tuple[Any]:
        return (self.host.model(model),)


class MemoryBudget:
    """Set how much memory models may use from now on."""

    ALONE = True  # ComfyUI has no node of this kind
    TITLE = "Memory budget"
    DESCRIPTION = (
        "Sets how much memory this program may use in total: 8G, 7.5G, 800M, auto for "
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
                "model": socket(MODEL, "The model."),
                "vram": (STRING, {"default": "auto", "tooltip": "Memory of the GPU: a size, auto or off."}),
                "ram": (STRING, {"default": "auto", "tooltip": "Memory of the machine: a size or auto."}),
            }
        }

    def set(self, model: Any, vram: str, ram: str) -> tuple[Any]:
        from ..flux_core.memory.budget import Allowed

        model.runtime.budget = Allowed.parse(vram, ram)
        return (model,)
