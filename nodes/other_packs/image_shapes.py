"""Images resized, cropped, flipped and measured, with the ids of other packs.

Masks are in masks.py, lists of sizes in sizes.py.
"""

from __future__ import annotations

from typing import Any

from ..sockets import IMAGE, INT, MASK, Inputs, choice, integer, pixels, socket
from .declared import PICTURE, OfAnotherPack, flag, line, one_of, whole

ESSENTIALS, KJ = "comfyui_essentials", "comfyui-kjnodes"
WIDTH, HEIGHT = "Width in pixels.", "Height in pixels."
METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
SIDES = {"width": pixels(512, f"{WIDTH} 0 follows the image."), "height": pixels(512, f"{HEIGHT} 0 follows the image.")}
METHOD_TIP = "The interpolation method. lanczos keeps the most detail when an image becomes smaller."
MULTIPLE_TIP = "Both sides become multiples of this."


class ImageResizePlus(OfAnotherPack):
    """Essentials' node for resizing."""

    PACK = ESSENTIALS
    TITLE = "Image Resize"
    DESCRIPTION = "Resizes an image: stretched, with its aspect ratio, cropped to fill, or padded with black."
    FUNCTION = "resize"
    RETURN_TYPES = (IMAGE, INT, INT)
    RETURN_NAMES = ("IMAGE", "width", "height")
    OUTPUT_TOOLTIPS = ("The resized image.", "Its width.", "Its height.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        conditions = ("always", "downscale if bigger", "upscale if smaller", "if bigger area", "if smaller area")
        return {
            "required": {
                "image": PICTURE,
                **SIDES,
                "interpolation": one_of(
                    ("nearest", "bilinear", "bicubic", "area", "nearest-exact", "lanczos"), METHOD_TIP
                ),
                "method": one_of(
                    ("stretch", "keep proportion", "fill / crop", "pad"), "What happens to its aspect ratio."
                ),
                "condition": one_of(conditions, "The condition for resizing."),
                "multiple_of": integer(0, 0, 512, MULTIPLE_TIP),
            }
        }

    def resize(
        self, image: Any, width: int, height: int, interpolation: str, method: str, condition: str, multiple_of: int
    ) -> tuple[Any, int, int]:
        from ...flux_core.images.fitted import essentials_resize

        made = essentials_resize(image, width, height, interpolation, method, condition, multiple_of)
        return made, made.shape[2], made.shape[1]


class ImageCropPlus(OfAnotherPack):
    """Essentials' node for cropping."""

    PACK = ESSENTIALS
    TITLE = "Image Crop"
    DESCRIPTION = "Crops an image to a rectangle at a corner, a side or the centre."
    FUNCTION = "crop"
    RETURN_TYPES = (IMAGE, INT, INT)
    RETURN_NAMES = ("IMAGE", "x", "y")
    OUTPUT_TOOLTIPS = ("The part.", "Its left edge.", "Its top edge.")
    POSITIONS = (
        *("top-left", "top-center", "top-right", "right-center", "bottom-right", "bottom-center", "bottom-left"),
        *("left-center", "center"),
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        far = 99999
        return {
            "required": {
                "image": PICTURE,
                "width": pixels(256, WIDTH, step=8),
                "height": pixels(256, HEIGHT, step=8),
                "position": one_of(cls.POSITIONS, "The position of the rectangle."),
                "x_offset": whole("Offset to the right in pixels.", 0, -far, far),
                "y_offset": whole("Offset downwards in pixels.", 0, -far, far),
            }
        }

    def crop(
        self, image: Any, width: int, height: int, position: str, x_offset: int, y_offset: int
    ) -> tuple[Any, int, int]:
        tall, wide = image.shape[1:3]
        width, height = min(wide, width), min(tall, height)
        x = 0 if "left" in position else wide - width if "right" in position else round((wide - width) / 2)
        y = 0 if "top" in position else tall - height if "bottom" in position else round((tall - height) / 2)
        x, y = x + x_offset, y + y_offset
        right, bottom = min(wide, x + width), min(tall, y + height)
        x, y = max(0, x), max(0, y)
        return image[:, y:bottom, x:right], x, y


class GetImageSizePlus(OfAnotherPack):
    """Essentials' node for the size of an image."""

    PACK = ESSENTIALS
    TITLE = "Get Image Size"
    DESCRIPTION = "Returns the width, the height and the number of images."
    FUNCTION = "measure"
    RETURN_TYPES = (INT, INT, INT)
    RETURN_NAMES = ("width", "height", "count")
    OUTPUT_TOOLTIPS = (WIDTH, HEIGHT, "Number of images.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": PICTURE}}

    def measure(self, image: Any) -> tuple[int, int, int]:
        return image.shape[2], image.shape[1], image.shape[0]


class GetImageSizeAndCount(OfAnotherPack):
    """KJNodes' node for the size of an image, which passes the image on."""

    PACK = KJ
    TITLE = "Get Image Size & Count"
    DESCRIPTION = "Returns the width, the height and the number of images."
    FUNCTION = "measure"
    RETURN_TYPES = (IMAGE, INT, INT, INT)
    RETURN_NAMES = ("image", "width", "height", "count")
    OUTPUT_TOOLTIPS = ("The same image.", WIDTH, HEIGHT, "Number of images.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": PICTURE}}

    def measure(self, image: Any) -> dict[str, Any]:
        count, tall, wide = image.shape[:3]
        return {"ui": {"text": [f"{count}x{wide}x{tall}"]}, "result": (image, wide, tall, count)}


class _Flips(OfAnotherPack):
    """Flip an image or a mask."""

    PACK = ESSENTIALS
    TITLE = "Image Flip"
    DESCRIPTION = "Flips left and right (x), top and bottom (y), or both."
    FUNCTION = "flip"
    RETURN_TYPES: tuple[str, ...] = (IMAGE,)
    OUTPUT_TOOLTIPS = ("Mirrored.",)
    INPUT = "image"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        axes = one_of(("x", "y", "xy"), "Which way.")
        return {"required": {cls.INPUT: socket(cls.RETURN_TYPES[0], "The axis."), "axis": axes}}

    def flip(self, axis: str, **given: Any) -> tuple[Any]:
        return (given[self.INPUT].flip([{"y": 1, "x": 2}[letter] for letter in axis]),)


class ImageFlipPlus(_Flips):
    """Essentials' node that flips images."""


class MaskFlipPlus(_Flips):
    """Essentials' node that flips masks."""

    TITLE = "Mask Flip"
    RETURN_TYPES = (MASK,)
    INPUT = "mask"


class ImageResizeKJ(OfAnotherPack):
    """KJNodes' older node for resizing."""

    PACK = KJ
    TITLE = "Resize Image (deprecated)"
    DESCRIPTION = "Resizes an image, to a size or to that of another image."
    FUNCTION = "resize"
    RETURN_TYPES = (IMAGE, INT, INT)
    RETURN_NAMES = ("IMAGE", "width", "height")
    OUTPUT_TOOLTIPS = ("The resized image.", WIDTH, HEIGHT)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                **SIDES,
                "upscale_method": choice(METHODS, METHOD_TIP),
                "keep_proportion": flag(False, "Keep the aspect ratio and fit the image into the size."),
                "divisible_by": integer(2, 0, 512, MULTIPLE_TIP),
            },
            "optional": {
                "width_input": (INT, {"forceInput": True, "tooltip": "The width from another node."}),
                "height_input": (INT, {"forceInput": True, "tooltip": "The height from another node."}),
                "get_image_size": socket(IMAGE, "An image whose size is used."),
                "crop": (
                    ["disabled", "center", 0],
                    {"tooltip": "center crops the longer side, so that nothing is stretched."},
                ),
            },
        }

    def resize(
        self,
        image: Any,
        width: int,
        height: int,
        upscale_method: str,
        keep_proportion: bool,
        divisible_by: int,
        width_input: int | None = None,
        height_input: int | None = None,
        get_image_size: Any = None,
        crop: Any = "disabled",
    ) -> tuple[Any, int, int]:
        from ...flux_core.images.fitted import kj_size
        from ...flux_core.images.resize import resize

        tall, wide = image.shape[1:3]
        width, height = width_input or width, height_input or height
        if get_image_size is not None:
            width, height = get_image_size.shape[2], get_image_size.shape[1]
        else:
            proportion = "resize" if keep_proportion and (width or height) else "stretch"
            width, height, _, _ = kj_size(wide, tall, width, height, proportion, divisible_by)
        made = resize(image.movedim(-1, 1), width, height, upscale_method, "center" if crop == 0 else crop).movedim(
            1, -1
        )
        return made, made.shape[2], made.shape[1]


class ImageResizeKJv2(OfAnotherPack):
    """KJNodes' node for resizing."""

    PACK = KJ
    TITLE = "Resize Image v2"
    DESCRIPTION = "Resizes an image and a mask: stretched, with their aspect ratio, padded, or cropped."
    FUNCTION = "resize"
    RETURN_TYPES = (IMAGE, INT, INT, MASK)
    RETURN_NAMES = ("IMAGE", "width", "height", "mask")
    OUTPUT_TOOLTIPS = ("The resized image.", WIDTH, HEIGHT, "The mask, or the padded area.")
    PROPORTIONS = ("stretch", "resize", "pad", "pad_edge", "pad_edge_pixel", "crop", "pillarbox_blur", "total_pixels")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                **SIDES,
                "upscale_method": choice(METHODS, METHOD_TIP),
                "keep_proportion": one_of(cls.PROPORTIONS, "What happens to its aspect ratio."),
                "pad_color": line(
                    "The colour of the padding: three numbers from 0 to 255, a name or a code.", "0, 0, 0"
                ),
                "crop_position": one_of(
                    ("center", "top", "bottom", "left", "right"),
                    "The part that is kept, or the position on the padding.",
                ),
                "divisible_by": integer(2, 0, 512, MULTIPLE_TIP),
            },
            "optional": {
                "mask": socket(MASK, "A mask that is resized with the image."),
                "device": one_of(("cpu", "gpu"), "No effect here."),
            },
        }

    def resize(
        self,
        image: Any,
        width: int,
        height: int,
        upscale_method: str,
        keep_proportion: str,
        pad_color: str,
        crop_position: str,
        divisible_by: int,
        mask: Any = None,
        device: str = "cpu",
    ) -> tuple[Any, int, int, Any]:
        import torch

        from ...flux_core.images import fitted
        from ...flux_core.images.masks import resize as resize_mask

        tall, wide = image.shape[1:3]
        if mask is not None and mask.shape[-2:] == (64, 64) != (tall, wide):
            mask = None  # the empty mask of an image without transparency
        if mask is not None and mask.shape[-2:] != (tall, wide):
            mask = resize_mask(mask, tall, wide)[:, 0]
        colour = fitted.colour_of(pad_color)
        made, covered = fitted.kj_resize(
            image, mask, (width, height), upscale_method, keep_proportion, colour, crop_position, divisible_by
        )
        return made, made.shape[2], made.shape[1], torch.zeros(1, 64, 64) if covered is None else covered
