"""Images joined in batches or side by side, compared, and made of one colour, with the ids of other packs."""

from __future__ import annotations

from typing import Any

from ..image_save import ImageCompare
from ..sockets import IMAGE, Inputs, choice, integer, socket
from .declared import PICTURE, Numbered, OfAnotherPack, flag, in_order, one_of
from .image_shapes import ESSENTIALS, HEIGHT, KJ, METHOD_TIP, METHODS, WIDTH

COUNT = integer(2, 2, 1000, "The number of images that are used.")
ANY = socket(IMAGE, "An image.")


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
                "image_1": socket(IMAGE, "The first image."),
                "method": choice(METHODS, METHOD_TIP, default="lanczos"),
            },
            "optional": {f"image_{n}": socket(IMAGE, "Another image.") for n in range(2, 6)},
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
        return {
            "required": {"inputcount": COUNT, "image_1": ANY},
            "optional": Numbered("image_", ANY, {"image_2": ANY}),
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
        return {"required": {cls.INPUT: socket(IMAGE, "The images.")}}

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
                "image1": socket(IMAGE, "The first image."),
                "image2": socket(IMAGE, "The second image."),
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
        return {
            "required": {
                "inputcount": COUNT,
                "image_1": ANY,
                "direction": one_of(("right", "down", "left", "up"), "The side for the next image."),
                "match_image_size": flag(False, "Resize the others to the height or width of the first."),
            },
            "optional": Numbered("image_", ANY, {"image_2": ANY}),
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
