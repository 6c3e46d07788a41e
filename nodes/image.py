"""Resize, batch, invert, pad and composite images. Files are in image_files.py."""

from __future__ import annotations

from typing import Any

from .sockets import IMAGE, MASK, Inputs, choice, integer, number, pixels, socket, switch

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
METHOD_TIP = "The interpolation method. lanczos keeps the most detail when an image becomes smaller."
CROP = ("disabled", "center")


class ImageScale:
    """Resize to a size."""

    TITLE = "Upscale Image"
    DESCRIPTION = "Resizes an image."
    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The resized image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": socket(IMAGE, "The image."),
                "upscale_method": choice(METHODS, METHOD_TIP),
                "width": pixels(512, "Width in pixels. 0 keeps the aspect ratio."),
                "height": pixels(512, "Height in pixels. 0 keeps the aspect ratio."),
                "crop": choice(CROP, "center crops the longer side first, so that nothing is distorted."),
            }
        }

    def upscale(self, image: Any, upscale_method: str, width: int, height: int, crop: str) -> tuple[Any]:
        from ..flux_core.images.resize import resize_image

        return (resize_image(image, width, height, upscale_method, crop),)


class ImageScaleBy:
    """Resize by a factor."""

    TITLE = "Upscale Image By"
    DESCRIPTION = "Resizes an image by a factor."
    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The resized image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": socket(IMAGE, "The image."),
                "upscale_method": choice(METHODS, METHOD_TIP),
                "scale_by": number(1.0, 0.01, 8.0, 0.01, "Factor for both sides."),
            }
        }

    def upscale(self, image: Any, upscale_method: str, scale_by: float) -> tuple[Any]:
        from ..flux_core.images.resize import resize_image

        height, width = image.shape[1:3]
        return (resize_image(image, round(width * scale_by), round(height * scale_by), upscale_method),)


class ImageScaleToTotalPixels:
    """Resize to a number of pixels."""

    DESCRIPTION = "Resizes an image to a number of megapixels and keeps its aspect ratio. About one is best for FLUX.1."
    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The resized image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": socket(IMAGE, "The image."),
                "upscale_method": choice(METHODS, METHOD_TIP),
                "megapixels": number(1.0, 0.01, 16.0, 0.01, "Size in units of 1024 x 1024 pixels."),
            },
            "optional": {"resolution_steps": integer(1, 1, 256, "Both sides become multiples of this.")},
        }

    def upscale(self, image: Any, upscale_method: str, megapixels: float, resolution_steps: int = 1) -> tuple[Any]:
        from ..flux_core.images.resize import resize_image, size_for_pixels

        width, height = size_for_pixels(image.shape[2], image.shape[1], megapixels, resolution_steps)
        return (resize_image(image, width, height, upscale_method),)


class FluxKontextImageScale:
    """Resize to a size that FLUX.1-Kontext was trained on."""

    DESCRIPTION = "Resizes and crops an image to the nearest size FLUX.1-Kontext was trained on."
    CATEGORY = "advanced/conditioning/flux"
    FUNCTION = "scale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The resized image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": socket(IMAGE, "The image.")}}

    def scale(self, image: Any) -> tuple[Any]:
        from ..flux_core.images.resize import kontext_size, resize_image

        width, height = kontext_size(image.shape[2], image.shape[1])
        return (resize_image(image, width, height, "lanczos", "center"),)


class ImageBatch:
    """Two images in one batch."""

    TITLE = "Batch Images"
    DESCRIPTION = "Joins two images in one batch. The second is resized to the size of the first."
    CATEGORY = "image"
    FUNCTION = "batch"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("Both images.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image1": socket(IMAGE, "The first image."),
                "image2": socket(IMAGE, "The second image."),
            }
        }

    def batch(self, image1: Any, image2: Any) -> tuple[Any]:
        import torch

        from ..flux_core.images.resize import resize_image

        if image1.shape[1:] != image2.shape[1:]:
            image2 = resize_image(image2, image1.shape[2], image1.shape[1], "bilinear", "center")
        return (torch.cat((image1, image2)),)


class ImageInvert:
    """Invert the colours."""

    TITLE = "Invert Image"
    DESCRIPTION = "Inverts an image: light becomes dark, and each colour its complement."
    CATEGORY = "image"
    FUNCTION = "invert"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The negative.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": socket(IMAGE, "The image.")}}

    def invert(self, image: Any) -> tuple[Any]:
        return (1.0 - image,)


class EmptyImage:
    """An image of one colour."""

    TITLE = "EmptyImage"
    DESCRIPTION = "An image of one colour."
    CATEGORY = "image"
    FUNCTION = "generate"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "width": pixels(512, "Width in pixels.", low=1),
                "height": pixels(512, "Height in pixels.", low=1),
                "batch_size": integer(1, 1, 4096, "Number of images."),
                "color": integer(0, 0, 0xFFFFFF, "The colour as one number, 0xRRGGBB.", step=1, display="color"),
            }
        }

    def generate(self, width: int, height: int, batch_size: int, color: int) -> tuple[Any]:
        import torch

        from ..flux_core.limits import check_room

        check_room(f"{batch_size} images of {width}x{height} pixels", batch_size * width * height * 12)
        colour = torch.tensor([color >> 16, color >> 8 & 255, color & 255]) / 255
        return (colour.expand(batch_size, height, width, 3).contiguous(),)


class ImagePadForOutpaint:
    """Enlarge the canvas around an image."""

    TITLE = "Pad Image for Outpainting"
    DESCRIPTION = "Enlarges the canvas and returns the mask of the new area, for Fill and other inpainting."
    CATEGORY = "image"
    FUNCTION = "pad"
    RETURN_TYPES = (IMAGE, MASK)
    OUTPUT_TOOLTIPS = ("The larger image, with grey in the new area.", "The new area.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": socket(IMAGE, "The image."),
                "left": pixels(0, "Pixels to add on the left.", step=8),
                "top": pixels(0, "Pixels to add at the top.", step=8),
                "right": pixels(0, "Pixels to add on the right.", step=8),
                "bottom": pixels(0, "Pixels to add at the bottom.", step=8),
                "feathering": pixels(40, "Pixels of the old image over which the mask fades out."),
            }
        }

    def pad(self, image: Any, left: int, top: int, right: int, bottom: int, feathering: int) -> tuple[Any, Any]:
        from ..flux_core.images.resize import pad_for_outpaint

        return pad_for_outpaint(image, left, top, right, bottom, feathering)


class ImageCompositeMasked:
    """Composite one image on another."""

    TITLE = "ImageCompositeMasked"
    DESCRIPTION = "Places one image on another, where the mask (if there is one) is 1."
    CATEGORY = "image"
    FUNCTION = "composite"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The combined result.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "destination": socket(IMAGE, "The image below."),
                "source": socket(IMAGE, "The image on top."),
                "x": pixels(0, "Its left edge in pixels."),
                "y": pixels(0, "Its top edge in pixels."),
                "resize_source": switch(False, "Resize it to the size of the one below."),
            },
            "optional": {"mask": socket(MASK, "Where the upper image covers the lower one.")},
        }

    def composite(
        self, destination: Any, source: Any, x: int, y: int, resize_source: bool, mask: Any = None
    ) -> tuple[Any]:
        from ..flux_core.images.resize import composite

        laid = composite(destination.movedim(-1, 1), source.movedim(-1, 1), x, y, mask, resize_source)
        return (laid.movedim(1, -1),)
