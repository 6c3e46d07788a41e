"""Threshold, combine and crop masks; make them from colours and transparency."""

from __future__ import annotations

from typing import Any

from .image_files import HIDDEN, PreviewImage
from .sockets import IMAGE, MASK, Inputs, choice, integer, number, pixels, socket

OPERATIONS = ("multiply", "add", "subtract", "and", "or", "xor")


class ThresholdMask:
    """Apply a threshold to a mask."""

    TITLE = "ThresholdMask"
    DESCRIPTION = "Makes a mask binary: 1 above a threshold, 0 elsewhere."
    CATEGORY = "mask"
    FUNCTION = "cut"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The binary mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "mask": socket(MASK, "The mask."),
                "value": number(0.5, 0.0, 1.0, 0.01, "The threshold."),
            }
        }

    def cut(self, mask: Any, value: float) -> tuple[Any]:
        return ((mask > value).float(),)


class MaskComposite:
    """Combine two masks."""

    TITLE = "MaskComposite"
    DESCRIPTION = "Combines one mask with another."
    CATEGORY = "mask"
    FUNCTION = "combine"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The combined result.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "destination": socket(MASK, "The mask below."),
                "source": socket(MASK, "The mask on top."),
                "x": pixels(0, "Its left edge in pixels."),
                "y": pixels(0, "Its top edge in pixels."),
                "operation": choice(OPERATIONS, "How the two are combined."),
            }
        }

    def combine(self, destination: Any, source: Any, x: int, y: int, operation: str) -> tuple[Any]:
        from ..flux_core.images.masks import combine

        return (combine(destination, source, x, y, operation),)


class CropMask:
    """Crop a mask."""

    TITLE = "CropMask"
    DESCRIPTION = "Crops a mask to a rectangle."
    CATEGORY = "mask"
    FUNCTION = "crop"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The part.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "mask": socket(MASK, "The mask."),
                "x": pixels(0, "Left edge of the part in pixels."),
                "y": pixels(0, "Top edge of the part in pixels."),
                "width": pixels(512, "Its width in pixels.", low=1),
                "height": pixels(512, "Its height in pixels.", low=1),
            }
        }

    def crop(self, mask: Any, x: int, y: int, width: int, height: int) -> tuple[Any]:
        from ..flux_core.images.masks import layers

        return (layers(mask).squeeze(1)[:, y : y + height, x : x + width],)


class ImageColorToMask:
    """Make a mask of one colour."""

    TITLE = "ImageColorToMask"
    DESCRIPTION = "Masks all pixels of exactly one colour."
    CATEGORY = "mask"
    FUNCTION = "find"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("1 where the image has the colour.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": socket(IMAGE, "The image."),
                "color": integer(0, 0, 0xFFFFFF, "The colour as one number, 0xRRGGBB.", step=1, display="color"),
            }
        }

    def find(self, image: Any, color: int) -> tuple[Any]:
        from ..flux_core.images.masks import of_colour

        return (of_colour(image, color),)


class SplitImageWithAlpha:
    """Separate colours and transparency."""

    TITLE = "Split Image with Alpha"
    DESCRIPTION = "Separates the transparency of an image as a mask: 1 is transparent."
    CATEGORY = "mask/compositing"
    FUNCTION = "split"
    RETURN_TYPES = (IMAGE, MASK)
    OUTPUT_TOOLTIPS = ("The colours.", "1 where the image is transparent; 0 everywhere without transparency.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": socket(IMAGE, "The image.")}}

    def split(self, image: Any) -> tuple[Any, Any]:
        alpha = image[..., 3] if image.shape[-1] > 3 else image[..., 0].new_ones(image.shape[:3])
        return image[..., :3], 1.0 - alpha


class JoinImageWithAlpha:
    """Join colours and transparency."""

    TITLE = "Join Image with Alpha"
    DESCRIPTION = "Makes an image transparent where a mask is 1."
    CATEGORY = "mask/compositing"
    FUNCTION = "join"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The image with its transparency.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": socket(IMAGE, "The image."),
                "alpha": socket(MASK, "1 where the image becomes transparent."),
            }
        }

    def join(self, image: Any, alpha: Any) -> tuple[Any]:
        import torch

        from ..flux_core.images.masks import resize

        clear = resize(alpha, *image.shape[1:3]).movedim(1, -1)
        batch = min(len(image), len(clear))
        return (torch.cat((image[:batch, ..., :3], 1.0 - clear[:batch].to(image)), dim=-1),)


class MaskPreview(PreviewImage):
    """Show a mask without saving it."""

    TITLE = "MaskPreview"
    DESCRIPTION = "Shows a mask as a grey image without saving it."
    CATEGORY = "mask"
    FUNCTION = "show"
    RETURN_TYPES = (MASK,)
    RETURN_NAMES = ("mask",)
    OUTPUT_TOOLTIPS = ("The same mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"mask": socket(MASK, "The mask to show.")}, "hidden": HIDDEN}

    def show(self, mask: Any, prompt: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:
        from ..flux_core.images.masks import layers

        shown = self.save(layers(mask).movedim(1, -1).expand(-1, -1, -1, 3), prompt, extra_pnginfo)
        return {**shown, "result": (mask,)}
