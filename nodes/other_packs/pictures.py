"""Images resized, cropped, joined and compared, with the ids of other packs. Masks are in masks.py, sizes in
sizes.py.
"""

from __future__ import annotations

from typing import Any

from ..image_save import ImageCompare
from ..sockets import IMAGE, INT, MASK, Inputs, choice, integer, pixels, wire
from .declared import Numbered, OfAnotherPack, flag, in_order, line, one_of, whole

ESSENTIALS, KJ = "comfyui_essentials", "comfyui-kjnodes"
PICTURE = wire(IMAGE, "The image.")
WIDTH, HEIGHT = "Width in pixels.", "Height in pixels."
METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
METHOD_TIP = "The interpolation method. lanczos keeps the most detail when an image becomes smaller."


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
                "width": pixels(512, f"{WIDTH} 0 follows the image."),
                "height": pixels(512, f"{HEIGHT} 0 follows the image."),
                "interpolation": one_of(
                    ("nearest", "bilinear", "bicubic", "area", "nearest-exact", "lanczos"), METHOD_TIP
                ),
                "method": one_of(
                    ("stretch", "keep proportion", "fill / crop", "pad"), "What happens to its aspect ratio."
                ),
                "condition": one_of(conditions, "The condition for resizing."),
                "multiple_of": integer(0, 0, 512, "Both sides become multiples of this."),
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
        return {"required": {cls.INPUT: wire(cls.RETURN_TYPES[0], "The axis."), "axis": axes}}

    def flip(self, axis: str, **given: Any) -> tuple[Any]:
        return (given[self.INPUT].flip([{"y": 1, "x": 2}[letter] for letter in axis]),)


class ImageFlipPlus(_Flips):
    """Essentials' node that flips images."""


class MaskFlipPlus(_Flips):
    """Essentials' node that flips masks."""

    TITLE = "Mask Flip"
    RETURN_TYPES = (MASK,)
    INPUT = "mask"


class ImageBatchMultiple(OfAnotherPack):
    """Essentials' node that joins up to five images in a batch."""

    PACK = ESSENTIALS
    TITLE = "Images Batch Multiple"
    DESCRIPTION = "Joins up to five images in one batch. All are resized to the size of the first."
    FUNCTION = "batch"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("All images.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image_1": wire(IMAGE, "The first image."),
                "method": choice(METHODS, METHOD_TIP, default="lanczos"),
            },
            "optional": {f"image_{n}": wire(IMAGE, "Another image.") for n in range(2, 6)},
        }

    def batch(self, image_1: Any, method: str, **others: Any) -> tuple[Any]:
        return (_joined([image_1, *in_order(others, "image_")], method),)


class ImageBatchMulti(OfAnotherPack):
    """KJNodes' node that joins any number of images in a batch."""

    PACK = KJ
    TITLE = "Image Batch Multi"
    DESCRIPTION = "Joins any number of images in one batch. All are resized to the size of the first."
    FUNCTION = "batch"
    RETURN_TYPES = (IMAGE,)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("All images.",)
    ACCEPT_ALL_INPUTS = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        image = wire(IMAGE, "An image.")
        return {
            "required": {"inputcount": integer(2, 2, 1000, "The number of images that are used."), "image_1": image},
            "optional": Numbered("image_", image, {"image_2": image}),
        }

    def batch(self, inputcount: int, **images: Any) -> tuple[Any]:
        import torch

        first = images["image_1"]
        given = [images.get(f"image_{n}") for n in range(2, inputcount + 1)]
        return (_joined([first, *(torch.zeros_like(first) if one is None else one for one in given)], "bilinear"),)


def _joined(images: list[Any], method: str) -> Any:
    """One batch of images, resized to the size of the first; transparency is 1 where an image has none."""
    import torch
    import torch.nn.functional as F

    from ...flux_core.images.resize import resize_image

    present = [image for image in images if image is not None]
    tall, wide = present[0].shape[1:3]
    channels = max(image.shape[-1] for image in present)
    fitted = [
        image if image.shape[1:3] == (tall, wide) else resize_image(image, wide, tall, method, "center")
        for image in present
    ]
    return torch.cat([F.pad(image, (0, channels - image.shape[-1]), value=1.0) for image in fitted])


class ImageListToBatch(OfAnotherPack):
    """Essentials' node that converts a list to a batch."""

    PACK = ESSENTIALS
    TITLE = "Image List To Batch"
    DESCRIPTION = "Joins the images of a list in one batch. All are resized to the size of the first."
    FUNCTION = "batch"
    INPUT_IS_LIST = True
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("All images.",)
    INPUT, METHOD = "image", "bicubic"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {cls.INPUT: wire(IMAGE, "The images.")}}

    def batch(self, **images: Any) -> tuple[Any]:
        return (_joined(images[self.INPUT], self.METHOD),)


class EasyImageListToBatch(ImageListToBatch):
    """Easy-Use's node that converts a list to a batch."""

    PACK = "comfyui-easy-use"
    INPUT, METHOD = "images", "lanczos"


class EasyImageBatchToList(OfAnotherPack):
    """Easy-Use's node that converts a batch to a list."""

    PACK = "comfyui-easy-use"
    TITLE = "Image Batch To Image List"
    DESCRIPTION = "Returns the images of a batch as a list, so that the following nodes run once for each image."
    FUNCTION = "split"
    OUTPUT_IS_LIST = (True,)
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The images, one by one.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": PICTURE}}

    def split(self, image: Any) -> tuple[list[Any]]:
        return (list(image.split(1)),)


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
                "width": pixels(512, f"{WIDTH} 0 follows the image."),
                "height": pixels(512, f"{HEIGHT} 0 follows the image."),
                "upscale_method": choice(METHODS, METHOD_TIP),
                "keep_proportion": flag(False, "Keep the aspect ratio and fit the image into the size."),
                "divisible_by": integer(2, 0, 512, "Both sides become multiples of this."),
            },
            "optional": {
                "width_input": (INT, {"forceInput": True, "tooltip": "The width from another node."}),
                "height_input": (INT, {"forceInput": True, "tooltip": "The height from another node."}),
                "get_image_size": wire(IMAGE, "An image whose size is used."),
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
                "width": pixels(512, f"{WIDTH} 0 follows the image."),
                "height": pixels(512, f"{HEIGHT} 0 follows the image."),
                "upscale_method": choice(METHODS, METHOD_TIP),
                "keep_proportion": one_of(cls.PROPORTIONS, "What happens to its aspect ratio."),
                "pad_color": line(
                    "The colour of the padding: three numbers from 0 to 255, a name or a code.", "0, 0, 0"
                ),
                "crop_position": one_of(
                    ("center", "top", "bottom", "left", "right"),
                    "The part that is kept, or the position on the padding.",
                ),
                "divisible_by": integer(2, 0, 512, "Both sides become multiples of this."),
            },
            "optional": {
                "mask": wire(MASK, "A mask that is resized with the image."),
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


class ImageConcatenate(OfAnotherPack):
    """KJNodes' node that joins two images side by side."""

    PACK = KJ
    TITLE = "Image Concatenate"
    DESCRIPTION = "Joins two images side by side."
    FUNCTION = "stitch"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("Both images in one.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image1": wire(IMAGE, "The first image."),
                "image2": wire(IMAGE, "The second image."),
                "direction": one_of(("right", "down", "left", "up"), "The side for the second image."),
                "match_image_size": flag(True, "Resize the second to the height or width of the first."),
            }
        }

    def stitch(self, image1: Any, image2: Any, direction: str, match_image_size: bool) -> tuple[Any]:
        return (_beside(image1, image2, direction, match_image_size),)


class ImageConcatMulti(OfAnotherPack):
    """KJNodes' node that joins any number of images side by side."""

    PACK = KJ
    TITLE = "Image Concatenate Multi"
    DESCRIPTION = "Joins any number of images side by side."
    FUNCTION = "stitch"
    RETURN_TYPES = (IMAGE,)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("All images in one.",)
    ACCEPT_ALL_INPUTS = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        image = wire(IMAGE, "An image.")
        return {
            "required": {
                "inputcount": integer(2, 2, 1000, "The number of images that are used."),
                "image_1": image,
                "direction": one_of(("right", "down", "left", "up"), "The side for the next image."),
                "match_image_size": flag(False, "Resize the others to the height or width of the first."),
            },
            "optional": Numbered("image_", image, {"image_2": image}),
        }

    def stitch(self, inputcount: int, direction: str, match_image_size: bool, **images: Any) -> tuple[Any]:
        made = images["image_1"]
        for n in range(2, inputcount + 1):
            if images.get(f"image_{n}") is not None:
                made = _beside(made, images[f"image_{n}"], direction, match_image_size)
        return (made,)


def _beside(first: Any, second: Any, direction: str, match: bool) -> Any:
    from ...flux_core.images.layout import stitch

    return stitch(first, second, direction, match, 0, "black")


class ImageBlank(OfAnotherPack):
    """WAS's node for an image of one colour."""

    PACK = "was-node-suite-comfyui"
    TITLE = "Image Blank"
    DESCRIPTION = "An image of one colour. Its sides become multiples of 8."
    FUNCTION = "make"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        sides = {"width": integer(512, 8, 4096, WIDTH), "height": integer(512, 8, 4096, HEIGHT)}
        return {
            "required": {
                **sides,
                **{name: integer(255, 0, 255, f"The {name} component.") for name in ("red", "green", "blue")},
            }
        }

    def make(self, width: int, height: int, red: int, green: int, blue: int) -> tuple[Any]:
        import torch

        colour = torch.tensor([red, green, blue]) / 255
        return (colour.expand(1, height // 8 * 8, width // 8 * 8, 3).contiguous(),)


class ImageComparer(OfAnotherPack, ImageCompare):
    """rgthree's node that compares two images with a slider."""

    PACK = "rgthree-comfy"
    TITLE = "Image Comparer (rgthree)"
    CATEGORY = OfAnotherPack.CATEGORY
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        inputs = super().INPUT_TYPES()
        return {"required": {}, "optional": inputs["optional"], "hidden": inputs["hidden"]}

    def compare(self, image_a: Any = None, image_b: Any = None, **hidden: Any) -> dict[str, Any]:
        return self.show(None, image_a, image_b, **hidden)
