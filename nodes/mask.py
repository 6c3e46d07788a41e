"""Create, invert, grow and feather masks; convert them to images and back."""

from __future__ import annotations

from typing import Any

from .sockets import IMAGE, MASK, MAX_SIZE, Inputs, choice, integer, number, pixels, socket, switch

CHANNELS = ("red", "green", "blue", "alpha")


class MaskToImage:
    """Convert a mask to an image."""

    TITLE = "Convert Mask to Image"
    DESCRIPTION = "Converts a mask to a grey image."
    CATEGORY = "mask"
    FUNCTION = "convert"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The mask in grey.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"mask": socket(MASK, "The mask.")}}

    def convert(self, mask: Any) -> tuple[Any]:
        from ..flux_core.images.masks import layers

        return (layers(mask).movedim(1, -1).expand(-1, -1, -1, 3),)


class ImageToMask:
    """Convert a channel of an image to a mask."""

    TITLE = "Convert Image to Mask"
    DESCRIPTION = "Returns one colour channel of an image as a mask."
    CATEGORY = "mask"
    FUNCTION = "convert"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The channel.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": socket(IMAGE, "The image."), "channel": choice(CHANNELS, "Which channel.")}}

    def convert(self, image: Any, channel: str) -> tuple[Any]:
        from ..flux_core.errors import InputError

        index = CHANNELS.index(channel)
        if index >= image.shape[-1]:
            raise InputError(f"The image has {image.shape[-1]} channels, so there is no {channel} channel.")
        return (image[..., index],)


class InvertMask:
    """Invert a mask."""

    TITLE = "InvertMask"
    DESCRIPTION = "Exchanges 0 and 1."
    CATEGORY = "mask"
    FUNCTION = "invert"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The inverted mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"mask": socket(MASK, "The mask.")}}

    def invert(self, mask: Any) -> tuple[Any]:
        return (1.0 - mask,)


class SolidMask:
    """A mask of one value."""

    TITLE = "SolidMask"
    DESCRIPTION = "A mask with one value everywhere."
    CATEGORY = "mask"
    FUNCTION = "fill"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "value": number(1.0, 0.0, 1.0, 0.01, "1 masks everything, 0 nothing."),
                "width": pixels(512, "Width in pixels.", low=1),
                "height": pixels(512, "Height in pixels.", low=1),
            }
        }

    def fill(self, value: float, width: int, height: int) -> tuple[Any]:
        import torch

        return (torch.full((1, height, width), value, dtype=torch.float32),)


class GrowMask:
    """Grow or shrink a mask."""

    TITLE = "GrowMask"
    DESCRIPTION = "Grows a mask by some pixels, or shrinks it if the number is negative."
    CATEGORY = "mask"
    FUNCTION = "grow"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The grown mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "mask": socket(MASK, "The mask."),
                "expand": integer(0, -MAX_SIZE, MAX_SIZE, "Pixels to grow by.", step=1),
                "tapered_corners": switch(True, "Grow without corners: a point becomes a diamond instead of a square."),
            }
        }

    def grow(self, mask: Any, expand: int, tapered_corners: bool) -> tuple[Any]:
        from ..flux_core.images.masks import grow

        return (grow(mask, expand, tapered_corners),)


class FeatherMask:
    """Fade a mask towards the sides."""

    TITLE = "FeatherMask"
    DESCRIPTION = "Fades a mask towards the sides of the image."
    CATEGORY = "mask"
    FUNCTION = "feather"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The faded mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "mask": socket(MASK, "The mask."),
                "left": pixels(0, "Pixels to fade over on the left."),
                "top": pixels(0, "Pixels to fade over at the top."),
                "right": pixels(0, "Pixels to fade over on the right."),
                "bottom": pixels(0, "Pixels to fade over at the bottom."),
            }
        }

    def feather(self, mask: Any, left: int, top: int, right: int, bottom: int) -> tuple[Any]:
        from ..flux_core.images.masks import feather

        return (feather(mask, left, top, right, bottom),)
