"""Enlarging images with upscale models: ESRGAN and its relatives."""

from __future__ import annotations

from typing import Any

from .binding import HostedNode
from .loaders import FromFiles
from .sockets import IMAGE, Inputs, socket

UPSCALE_MODEL = "UPSCALE_MODEL"


class UpscaleModelLoader(FromFiles):
    """An upscale model."""

    TITLE = "Load Upscale Model"
    DESCRIPTION = "Loads a model that enlarges images (ESRGAN, SwinIR, DAT, ...). Needs the package spandrel."
    CATEGORY = "loaders"
    FUNCTION = "load"
    RETURN_TYPES = (UPSCALE_MODEL,)
    OUTPUT_TOOLTIPS = ("The upscale model.",)
    FILES = {"model_name": "upscale_models"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"model_name": cls.files("upscale_models", "The upscale model's file.")}}

    def load(self, model_name: str) -> tuple[Any]:
        from ..flux_core.runtime.upscaler import load_upscaler

        return (load_upscaler(self.host.runtime, self.host.full_path("upscale_models", model_name)),)


class ImageUpscaleWithModel(HostedNode):
    """Enlarge images with an upscale model."""

    TITLE = "Upscale Image (using Model)"
    DESCRIPTION = "Enlarges images with an upscale model, in tiles as large as the memory allows."
    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The enlarged image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "upscale_model": socket(UPSCALE_MODEL, "The upscale model. It determines the factor of enlargement."),
                "image": socket(IMAGE, "The image."),
            }
        }

    def upscale(self, upscale_model: Any, image: Any) -> tuple[Any]:
        return (upscale_model.enlarge(image, self.host.step),)
