"""Pictures cut, turned, set beside one another, picked out of a batch, measured."""

from __future__ import annotations

from typing import Any

from .sockets import IMAGE, INT, Inputs, choice, integer, pixels, switch, wire

METHODS = ("area", "lanczos", "bilinear", "nearest-exact", "bilinear", "bicubic")
METHOD_TIP = "How values between pixels are found. lanczos keeps most detail when a picture becomes smaller."
ROTATIONS = ("none", "90 degrees", "180 degrees", "270 degrees")
FLIPS = ("x-axis: vertically", "y-axis: horizontally")
PICTURE = wire(IMAGE, "The picture.")


class ImageCrop:
    """A part of a picture."""

    TITLE = "Image Crop"
    DESCRIPTION = "Cuts a rectangle out of a picture."
    CATEGORY = "image/transform"
    FUNCTION = "crop"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The part.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
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
    """A mirror."""

    TITLE = "ImageFlip"
    DESCRIPTION = "Mirrors a picture."
    CATEGORY = "image/transform"
    FUNCTION = "flip"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The mirrored picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "Upside down, or left for right."
        return {"required": {"image": PICTURE, "flip_method": choice(FLIPS, tip)}}

    def flip(self, image: Any, flip_method: str) -> tuple[Any]:
        return (image.flip(1 if flip_method.startswith("x") else 2),)


class ImageRotate:
    """Quarter turns."""

    TITLE = "ImageRotate"
    DESCRIPTION = "Turns a picture to the right by quarters."
    CATEGORY = "image/transform"
    FUNCTION = "rotate"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The turned picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": PICTURE, "rotation": choice(ROTATIONS, "How far, clockwise.")}}

    def rotate(self, image: Any, rotation: str) -> tuple[Any]:
        from ..flux_core.images.layout import turns

        return (image.rot90(turns(rotation), (2, 1)),)


class ImageScaleToMaxDimension:
    """As large as its longer side may be."""

    TITLE = "ImageScaleToMaxDimension"
    DESCRIPTION = "Resizes a picture so that its longer side has a number of pixels, and keeps its shape."
    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The resized picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                "upscale_method": choice(METHODS, METHOD_TIP),
                "largest_size": pixels(512, "Length of the longer side in pixels."),
            }
        }

    def upscale(self, image: Any, upscale_method: str, largest_size: int) -> tuple[Any]:
        from ..flux_core.images.layout import scale_to_longest

        return (scale_to_longest(image, largest_size, upscale_method),)


class ResizeAndPadImage:
    """A given size, and nothing cut off."""

    TITLE = "ResizeAndPadImage"
    DESCRIPTION = "Resizes a picture until it fits into a size, and fills the rest with black or white."
    CATEGORY = "image/transform"
    FUNCTION = "fit"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The picture on its ground.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                "target_width": pixels(512, "Width in pixels.", low=1),
                "target_height": pixels(512, "Height in pixels.", low=1),
                "padding_color": choice(["white", "black"], "What is around the picture."),
                "interpolation": choice(["area", "bicubic", "nearest-exact", "bilinear", "lanczos"], METHOD_TIP),
            }
        }

    def fit(
        self, image: Any, target_width: int, target_height: int, padding_color: str, interpolation: str
    ) -> tuple[Any]:
        from ..flux_core.images.layout import fit_into

        return (fit_into(image, target_width, target_height, padding_color, interpolation),)


class ImageStitch:
    """Two pictures as one."""

    TITLE = "Image Stitch"
    DESCRIPTION = "Sets two pictures beside one another, for instance as the reference of FLUX.1-Kontext."
    CATEGORY = "image/transform"
    FUNCTION = "stitch"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("Both pictures in one.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        colours = ["white", "black", "red", "green", "blue"]
        return {
            "required": {
                "image1": wire(IMAGE, "The first picture."),
                "direction": choice(["right", "down", "left", "up"], "Where the second goes.", default="right"),
                "match_image_size": switch(True, "Resize the second to the height or width of the first."),
                "spacing_width": integer(0, 0, 1024, "Pixels between them.", step=2),
                "spacing_color": choice(colours, "What is between them.", default="white"),
            },
            "optional": {"image2": wire(IMAGE, "The second picture; without it the first stays as it is.")},
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
    """A part of a batch."""

    TITLE = "ImageFromBatch"
    DESCRIPTION = "Picks pictures out of a batch."
    CATEGORY = "image/batch"
    FUNCTION = "pick"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The picked pictures.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": wire(IMAGE, "The batch."),
                "batch_index": integer(0, 0, 4095, "The first one, counted from 0."),
                "length": integer(1, 1, 4096, "How many."),
            }
        }

    def pick(self, image: Any, batch_index: int, length: int) -> tuple[Any]:
        first = min(batch_index, len(image) - 1)
        return (image[first : first + length],)


class RepeatImageBatch:
    """The same picture several times."""

    TITLE = "RepeatImageBatch"
    DESCRIPTION = "Repeats pictures."
    CATEGORY = "image/batch"
    FUNCTION = "repeat"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The larger batch.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": wire(IMAGE, "What to repeat."), "amount": integer(1, 1, 4096, "How many times.")}}

    def repeat(self, image: Any, amount: int) -> tuple[Any]:
        from ..flux_core.limits import check_room

        check_room(f"{amount * len(image)} pictures", amount * image.nbytes)
        return (image.repeat(amount, 1, 1, 1),)


class GetImageSize:
    """The size, to drive other nodes."""

    TITLE = "Get Image Size"
    DESCRIPTION = "Width and height of a picture, and how many there are."
    CATEGORY = "image"
    FUNCTION = "measure"
    RETURN_TYPES = (INT, INT, INT)
    RETURN_NAMES = ("width", "height", "batch_size")
    OUTPUT_TOOLTIPS = ("Width in pixels.", "Height in pixels.", "Number of pictures.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": PICTURE}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def measure(self, image: Any, unique_id: str | None = None) -> tuple[int, int, int]:
        batch, height, width, _ = image.shape
        return width, height, batch
