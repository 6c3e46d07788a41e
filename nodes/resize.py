"""Resize by one of several rules."""

from __future__ import annotations

from typing import Any

from .image import CROP, METHODS
from .logic import same
from .sockets import Declared, Inputs, choice, integer, number, pixels, socket

Sections = dict[str, dict[str, Declared]]


def _options() -> dict[str, Sections]:
    """Rule for the new size -> the inputs that it needs."""
    side = "{} in pixels. The other side keeps the aspect ratio."
    crop = choice(CROP, "center crops the longer side first, so that nothing is distorted.", default="center")
    match = socket("IMAGE,MASK", "The image or mask whose size is used.")
    multiple = integer(1, 1, 16384, "Both sides become multiples of this.", step=1)
    options: dict[str, dict[str, Declared]] = {
        "scale dimensions": {
            "width": pixels(512, "Width in pixels. 0 keeps the aspect ratio."),
            "height": pixels(512, "Height in pixels. 0 keeps the aspect ratio."),
            "crop": crop,
        },
        "scale by multiplier": {"multiplier": number(1.0, 0.01, 8.0, 0.01, "Factor for both sides.")},
        "scale longer dimension": {"longer_size": pixels(512, side.format("The longer side"))},
        "scale shorter dimension": {"shorter_size": pixels(512, side.format("The shorter side"))},
        "scale width": {"width": pixels(512, side.format("Width"))},
        "scale height": {"height": pixels(512, side.format("Height"))},
        "scale total pixels": {
            "megapixels": number(1.0, 0.01, 16.0, 0.01, "Size in units of 1024 x 1024 pixels."),
            "multiple": multiple,
        },
        "match size": {"match": match, "crop": crop},
        "scale to multiple": {"multiple": integer(8, 1, 16384, "Both sides become multiples of this.", step=1)},
    }
    return {key: {"required": inputs} for key, inputs in options.items()}


class ResizeImageMaskNode:
    """Resize an image or a mask."""

    TITLE = "Resize Image/Mask"
    DESCRIPTION = "Resizes an image or a mask: to a size, by a factor, to a pixel count, or to another image's size."
    CATEGORY = "image/transform"
    FUNCTION = "resize"
    RETURN_TYPES = ("COMFY_MATCHTYPE_V3",)
    RETURN_NAMES = ("resized",)
    OUTPUT_MATCHTYPES = ("input_type",)
    OUTPUT_TOOLTIPS = ("The resized image or mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        options = [{"key": key, "inputs": inputs} for key, inputs in _options().items()]
        tip = "The interpolation method. lanczos keeps the most detail when an image becomes smaller."
        return {
            "required": {
                "input": same("input_type", "The image or mask.", "IMAGE,MASK"),
                "resize_type": ("COMFY_DYNAMICCOMBO_V3", {"options": options, "tooltip": "The rule for the new size."}),
                "scale_method": choice(METHODS, tip, default="area"),
            }
        }

    def resize(self, input: Any, resize_type: dict[str, Any], scale_method: str) -> tuple[Any]:
        from ..flux_core.images.sizes import resized

        return (resized(input, scale_method, **resize_type),)
