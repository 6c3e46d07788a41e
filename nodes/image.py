"""Pictures: resized, batched, inverted, padded, laid over one another. Files are in image_files.py."""

from __future__ import annotations

from typing import Any

from .sockets import IMAGE, MASK, Inputs, choice, integer, number, pixels, switch, wire

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
METHOD_TIP = "How values between pixels are found. lanczos keeps most detail when a picture becomes smaller."
CROP = ("disabled", "center")


class ImageScale:
    """Another size."""

    TITLE = "Upscale Image"
    DESCRIPTION = "Resizes a picture."
    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The resized picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": wire(IMAGE, "The picture."),
                "upscale_method": choice(METHODS, METHOD_TIP),
                "width": pixels(512, "Width in pixels. 0 follows the height."),
                "height": pixels(512, "Height in pixels. 0 follows the width."),
                "crop": choice(CROP, "center cuts the longer side first, so that nothing is stretched."),
            }
        }

    def upscale(self, image: Any, upscale_method: str, width: int, height: int, crop: str) -> tuple[Any]:
        from ..flux_core.images.resize import resize_image

        return (resize_image(image, width, height, upscale_method, crop),)


class ImageScaleBy:
    """A multiple of the size."""

    TITLE = "Upscale Image By"
    DESCRIPTION = "Resizes a picture by a factor."
    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The resized picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": wire(IMAGE, "The picture."),
                "upscale_method": choice(METHODS, METHOD_TIP),
                "scale_by": number(1.0, 0.01, 8.0, 0.01, "Factor for both sides."),
            }
        }

    def upscale(self, image: Any, upscale_method: str, scale_by: float) -> tuple[Any]:
        from ..flux_core.images.resize import resize_image

        height, width = image.shape[1:3]
        return (resize_image(image, round(width * scale_by), round(height * scale_by), upscale_method),)


class ImageScaleToTotalPixels:
    """As many pixels as the model likes."""

    DESCRIPTION = "Resizes a picture to a number of megapixels and keeps its shape. FLUX.1 likes about one."
    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The resized picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": wire(IMAGE, "The picture."),
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
    """A size FLUX.1-Kontext was trained on."""

    DESCRIPTION = "Resizes and crops a picture to the nearest size FLUX.1-Kontext was trained on."
    CATEGORY = "advanced/conditioning/flux"
    FUNCTION = "scale"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The resized picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": wire(IMAGE, "The picture.")}}

    def scale(self, image: Any) -> tuple[Any]:
        from ..flux_core.images.resize import kontext_size, resize_image

        width, height = kontext_size(image.shape[2], image.shape[1])
        return (resize_image(image, width, height, "lanczos", "center"),)


class ImageBatch:
    """Two pictures in one batch."""

    TITLE = "Batch Images"
    DESCRIPTION = "Puts two pictures into one batch. The second takes the size of the first."
    CATEGORY = "image"
    FUNCTION = "batch"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("Both pictures.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image1": wire(IMAGE, "The first picture."),
                "image2": wire(IMAGE, "The second picture."),
            }
        }

    def batch(self, image1: Any, image2: Any) -> tuple[Any]:
        import torch

        from ..flux_core.images.resize import resize_image

        if image1.shape[1:] != image2.shape[1:]:
            image2 = resize_image(image2, image1.shape[2], image1.shape[1], "bilinear", "center")
        return (torch.cat((image1, image2)),)


class ImageInvert:
    """The negative."""

    TITLE = "Invert Image"
    DESCRIPTION = "Turns light into dark and every colour into its opposite."
    CATEGORY = "image"
    FUNCTION = "invert"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The negative.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": wire(IMAGE, "The picture.")}}

    def invert(self, image: Any) -> tuple[Any]:
        return (1.0 - image,)


class EmptyImage:
    """One colour everywhere."""

    TITLE = "EmptyImage"
    DESCRIPTION = "A picture of one colour."
    CATEGORY = "image"
    FUNCTION = "generate"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "width": pixels(512, "Width in pixels.", low=1),
                "height": pixels(512, "Height in pixels.", low=1),
                "batch_size": integer(1, 1, 4096, "How many pictures."),
                "color": integer(0, 0, 0xFFFFFF, "The colour as one number, 0xRRGGBB.", step=1, display="color"),
            }
        }

    def generate(self, width: int, height: int, batch_size: int, color: int) -> tuple[Any]:
        import torch

        from ..flux_core.limits import check_room

        check_room(f"{batch_size} pictures of {width}x{height} pixels", batch_size * width * height * 12)
        colour = torch.tensor([color >> 16, color >> 8 & 255, color & 255]) / 255
        return (colour.expand(batch_size, height, width, 3).contiguous(),)


class ImagePadForOutpaint:
    """Room around a picture, for the model to fill."""

    TITLE = "Pad Image for Outpainting"
    DESCRIPTION = "Enlarges the canvas and gives the mask of what is new, for Fill and other inpainting."
    CATEGORY = "image"
    FUNCTION = "pad"
    RETURN_TYPES = (IMAGE, MASK)
    OUTPUT_TOOLTIPS = ("The larger picture, grey where it is new.", "What is new.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": wire(IMAGE, "The picture."),
                "left": pixels(0, "Pixels to add on the left.", step=8),
                "top": pixels(0, "Pixels to add at the top.", step=8),
                "right": pixels(0, "Pixels to add on the right.", step=8),
                "bottom": pixels(0, "Pixels to add at the bottom.", step=8),
                "feathering": pixels(40, "Over how many pixels of the old picture the mask fades out."),
            }
        }

    def pad(self, image: Any, left: int, top: int, right: int, bottom: int, feathering: int) -> tuple[Any, Any]:
        from ..flux_core.images.resize import pad_for_outpaint

        return pad_for_outpaint(image, left, top, right, bottom, feathering)


class ImageCompositeMasked:
    """One picture laid over another."""

    TITLE = "ImageCompositeMasked"
    DESCRIPTION = "Lays one picture over another, where the mask (if there is one) is 1."
    CATEGORY = "image"
    FUNCTION = "composite"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The two in one.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "destination": wire(IMAGE, "The picture underneath."),
                "source": wire(IMAGE, "The picture on top."),
                "x": pixels(0, "Its left edge in pixels."),
                "y": pixels(0, "Its top edge in pixels."),
                "resize_source": switch(False, "Stretch it to the size of the one underneath."),
            },
            "optional": {"mask": wire(MASK, "Where the upper picture covers the lower.")},
        }

    def composite(
        self, destination: Any, source: Any, x: int, y: int, resize_source: bool, mask: Any = None
    ) -> tuple[Any]:
        from ..flux_core.images.resize import composite

        laid = composite(destination.movedim(-1, 1), source.movedim(-1, 1), x, y, mask, resize_source)
        return (laid.movedim(1, -1),)
