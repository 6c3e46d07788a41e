"""Crop, flip, rotate, stitch and measure images, and select images of a batch."""

from __future__ import annotations

from typing import Any

from .sockets import IMAGE, INT, Inputs, choice, integer, pixels, socket, switch

METHODS = ("area", "lanczos", "bilinear", "nearest-exact", "bilinear", "bicubic")
METHOD_TIP = "The interpolation method. lanczos keeps the most detail when an image becomes smaller."
ROTATIONS = ("none", "90 degrees", "180 degrees", "270 degrees")
FLIPS = ("x-axis: vertically", "y-axis: horizontally")
SOURCE = socket(IMAGE, "The image.")


class ImageCrop:
    """Crop an image."""

    TITLE = "Image Crop"
    DESCRIPTION = "Crops an image to a rectangle."
    CATEGORY = "image/transform"
    FUNCTION = "crop"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The part.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": SOURCE,
                "width": pixels(512, "Width of the part in pixels.", low=1),
                "height": pixels(512, "Height of the part in pixels.", low=1),
                "x": pixels(0, "Its left edge in pixels."),
                "y": pixels(0, "Its top edge in pixels."),
            }
        }

    def crop(self, image: Any, width: int, height: int, x: int, y: int) -> tuple[Any]:
        from ..flux_core.images.layout import crop

        return (crop(image, width, height, x, y),)


class ImageFlip:
    """Mirror it."""

    TITLE = "ImageFlip"
    DESCRIPTION = "Mirrors an image."
    CATEGORY = "image/transform"
    FUNCTION = "flip"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The mirrored image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "Vertically (upside down) or horizontally (left and right exchanged)."
        return {"required": {"image": SOURCE, "flip_method": choice(FLIPS, tip)}}

    def flip(self, image: Any, flip_method: str) -> tuple[Any]:
        return (image.flip(1 if flip_method.startswith("x") else 2),)


class ImageRotate:
    """Rotate by quarter turns."""

    TITLE = "ImageRotate"
    DESCRIPTION = "Rotates an image clockwise by multiples of 90 degrees."
    CATEGORY = "image/transform"
    FUNCTION = "rotate"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The rotated image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": SOURCE, "rotation": choice(ROTATIONS, "The angle, clockwise.")}}

    def rotate(self, image: Any, rotation: str) -> tuple[Any]:
        from ..flux_core.images.layout import turns

        return (image.rot90(turns(rotation), (2, 1)),)


class ImageScaleToMaxDimension:
    """Resize to a length of the longer side."""

    TITLE = "ImageScaleToMaxDimension"
    DESCRIPTION = "Resizes an image so that its longer side has this length. Keeps the aspect ratio."
    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The resized image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": SOURCE,
                "upscale_method": choice(METHODS, METHOD_TIP),
                "largest_size": pixels(512, "Length of the longer side in pixels."),
            }
        }

    def upscale(self, image: Any, upscale_method: str, largest_size: int) -> tuple[Any]:
        from ..flux_core.images.layout import scale_to_longest

        return (scale_to_longest(image, largest_size, upscale_method),)


class ResizeAndPadImage:
    """Resize to fit into a size, and pad."""

    TITLE = "ResizeAndPadImage"
    DESCRIPTION = "Resizes an image to fit into a size, and fills the rest with black or white."
    CATEGORY = "image/transform"
    FUNCTION = "fit"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The padded image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": SOURCE,
                "target_width": pixels(512, "Width in pixels.", low=1),
                "target_height": pixels(512, "Height in pixels.", low=1),
                "padding_color": choice(["white", "black"], "The colour of the padding."),
                "interpolation": choice(["area", "bicubic", "nearest-exact", "bilinear", "lanczos"], METHOD_TIP),
            }
        }

    def fit(
        self, image: Any, target_width: int, target_height: int, padding_color: str, interpolation: str
    ) -> tuple[Any]:
        from ..flux_core.images.layout import fit_into

        return (fit_into(image, target_width, target_height, padding_color, interpolation),)


class ImageStitch:
    """Join two images side by side."""

    TITLE = "Image Stitch"
    DESCRIPTION = "Places two images side by side, for example as the reference of FLUX.1-Kontext."
    CATEGORY = "image/transform"
    FUNCTION = "stitch"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("Both images in one.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        colours = ["white", "black", "red", "green", "blue"]
        return {
            "required": {
                "image1": socket(IMAGE, "The first image."),
                "direction": choice(["right", "down", "left", "up"], "The side for the second image.", default="right"),
                "match_image_size": switch(True, "Resize the second to the height or width of the first."),
                "spacing_width": integer(0, 0, 1024, "Pixels between them.", step=2),
                "spacing_color": choice(colours, "The colour between them.", default="white"),
            },
            "optional": {"image2": socket(IMAGE, "The second image; without it the first is returned unchanged.")},
        }

    def stitch(
        self,
        image1: Any,
        direction: str,
        match_image_size: bool,
        spacing_width: int,
        spacing_color: str,
        image2: Any = None,
    ) -> tuple[Any]:
        from ..flux_core.images.layout import stitch

        if image2 is None:
            return (image1,)
        return (stitch(image1, image2, direction, match_image_size, spacing_width, spacing_color),)


class ImageFromBatch:
    """Select a part of a batch."""

    TITLE = "ImageFromBatch"
    DESCRIPTION = "Selects images of a batch."
    CATEGORY = "image/batch"
    FUNCTION = "pick"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The selected images.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": socket(IMAGE, "The batch."),
                "batch_index": integer(0, 0, 4095, "The first one, counted from 0."),
                "length": integer(1, 1, 4096, "How many."),
            }
        }

    def pick(self, image: Any, batch_index: int, length: int) -> tuple[Any]:
        first = min(batch_index, len(image) - 1)
        return (image[first : first + length],)


class RepeatImageBatch:
    """Repeat an image."""

    TITLE = "RepeatImageBatch"
    DESCRIPTION = "Repeats images."
    CATEGORY = "image/batch"
    FUNCTION = "repeat"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The larger batch.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"image": socket(IMAGE, "What to repeat."), "amount": integer(1, 1, 4096, "How many times.")}
        }

    def repeat(self, image: Any, amount: int) -> tuple[Any]:
        from ..flux_core.limits import check_room

        check_room(f"{amount * len(image)} images", amount * image.nbytes)
        return (image.repeat(amount, 1, 1, 1),)


class GetImageSize:
    """Return the size, for other nodes."""

    TITLE = "Get Image Size"
    DESCRIPTION = "Returns width, height and number of images."
    CATEGORY = "image"
    FUNCTION = "measure"
    RETURN_TYPES = (INT, INT, INT)
    RETURN_NAMES = ("width", "height", "batch_size")
    OUTPUT_TOOLTIPS = ("Width in pixels.", "Height in pixels.", "Number of images.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": SOURCE}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def measure(self, image: Any, unique_id: str | None = None) -> tuple[int, int, int]:
        batch, height, width, _ = image.shape
        return width, height, batch
