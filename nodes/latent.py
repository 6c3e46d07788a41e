"""Latents: empty ones, sizes, batches and noise masks."""

from __future__ import annotations

from typing import Any

from .sockets import LATENT, MASK, Inputs, choice, integer, number, pixels, socket, switch

Latent = dict[str, Any]

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")
METHOD_TIP = "The interpolation method. bislerp rotates channel vectors instead of averaging them."


class EmptyLatentImage:
    """An empty latent of four channels; the sampler widens it to the channels of the model."""

    TITLE = "Empty Latent Image"
    DESCRIPTION = "An empty latent to start from. It determines the size of the image."
    CATEGORY = "latent"
    FUNCTION = "generate"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The empty latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "width": pixels(512, "Width of the image in pixels.", low=16, step=8),
                "height": pixels(512, "Height of the image in pixels.", low=16, step=8),
                "batch_size": integer(1, 1, 4096, "Number of images in the batch."),
            }
        }

    def generate(self, width: int, height: int, batch_size: int) -> tuple[Latent]:
        from ..flux_core.images.latents import empty

        return (empty(width, height, batch_size, channels=4),)


class EmptySD3LatentImage:
    """An empty latent of sixteen channels, as in FLUX.1."""

    DESCRIPTION = "An empty latent of 16 channels to start from. It determines the size of the image."
    CATEGORY = "latent/sd3"
    FUNCTION = "generate"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The empty latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "width": pixels(1024, "Width of the image in pixels.", low=16, step=16),
                "height": pixels(1024, "Height of the image in pixels.", low=16, step=16),
                "batch_size": integer(1, 1, 4096, "Number of images in the batch."),
            }
        }

    def generate(self, width: int, height: int, batch_size: int) -> tuple[Latent]:
        from ..flux_core.images.latents import empty

        return (empty(width, height, batch_size, channels=16),)


class LatentUpscale:
    """Resize to a size."""

    TITLE = "Upscale Latent"
    DESCRIPTION = "Resizes a latent to an image size. Denoise it again afterwards (0.5 to 0.7) to restore detail."
    CATEGORY = "latent"
    FUNCTION = "upscale"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The resized latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples": socket(LATENT, "The latent to resize."),
                "upscale_method": choice(METHODS, METHOD_TIP),
                "width": pixels(512, "Width of the image in pixels. 0 keeps the aspect ratio.", step=8),
                "height": pixels(512, "Height of the image in pixels. 0 keeps the aspect ratio.", step=8),
                "crop": choice(
                    ["disabled", "center"], "center crops the longer side first, so that nothing is distorted."
                ),
            }
        }

    def upscale(self, samples: Latent, upscale_method: str, width: int, height: int, crop: str) -> tuple[Latent]:
        from ..flux_core.images.latents import upscale

        return (upscale(samples, width, height, upscale_method, crop),)


class LatentUpscaleBy:
    """Resize by a factor."""

    TITLE = "Upscale Latent By"
    DESCRIPTION = "Resizes a latent by a factor. Denoise it again afterwards (0.5 to 0.7) to restore detail."
    CATEGORY = "latent"
    FUNCTION = "upscale"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The resized latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples": socket(LATENT, "The latent to resize."),
                "upscale_method": choice(METHODS, METHOD_TIP),
                "scale_by": number(1.5, 0.01, 8.0, 0.01, "Factor for both sides."),
            }
        }

    def upscale(self, samples: Latent, upscale_method: str, scale_by: float) -> tuple[Latent]:
        from ..flux_core.images.latents import upscale_by

        return (upscale_by(samples, scale_by, upscale_method),)


class LatentFromBatch:
    """Select a part of a batch."""

    TITLE = "Latent From Batch"
    DESCRIPTION = "Selects latents of a batch. They keep their noise, so that one image of a batch can be made again."
    CATEGORY = "latent/batch"
    FUNCTION = "pick"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The selected latents.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples": socket(LATENT, "The batch."),
                "batch_index": integer(0, 0, 63, "The first one, counted from 0."),
                "length": integer(1, 1, 64, "How many."),
            }
        }

    def pick(self, samples: Latent, batch_index: int, length: int) -> tuple[Latent]:
        from ..flux_core.images.latents import from_batch

        return (from_batch(samples, batch_index, length),)


class RepeatLatentBatch:
    """Repeat a latent."""

    TITLE = "Repeat Latent Batch"
    DESCRIPTION = "Repeats a latent, each time with different noise: several variations of one image."
    CATEGORY = "latent/batch"
    FUNCTION = "repeat"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The larger batch.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples": socket(LATENT, "What to repeat."),
                "amount": integer(1, 1, 64, "How many times."),
            }
        }

    def repeat(self, samples: Latent, amount: int) -> tuple[Latent]:
        from ..flux_core.images.latents import repeat

        return (repeat(samples, amount),)


class SetLatentNoiseMask:
    """Denoise only within a mask."""

    TITLE = "Set Latent Noise Mask"
    DESCRIPTION = "Denoises only where the mask is 1; the rest of the image does not change."
    CATEGORY = "latent/inpaint"
    FUNCTION = "set_mask"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The latent with its mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples": socket(LATENT, "The latent of an image."),
                "mask": socket(MASK, "The part to repaint."),
            }
        }

    def set_mask(self, samples: Latent, mask: Any) -> tuple[Latent]:
        from ..flux_core.images.masks import layers

        return ({**samples, "noise_mask": layers(mask)},)


class LatentCompositeMasked:
    """Composite one latent on another."""

    TITLE = "LatentCompositeMasked"
    DESCRIPTION = "Places one latent on another, where the mask (if there is one) is 1."
    CATEGORY = "latent"
    FUNCTION = "composite"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The combined result.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "destination": socket(LATENT, "The latent below."),
                "source": socket(LATENT, "The latent on top."),
                "x": pixels(0, "Its left edge in pixels.", step=8),
                "y": pixels(0, "Its top edge in pixels.", step=8),
                "resize_source": switch(False, "Resize it to the size of the one below."),
            },
            "optional": {"mask": socket(MASK, "Where the upper latent covers the lower one.")},
        }

    def composite(
        self, destination: Latent, source: Latent, x: int, y: int, resize_source: bool, mask: Any = None
    ) -> tuple[Latent]:
        from ..flux_core.images.resize import composite

        laid = composite(destination["samples"], source["samples"], x, y, mask, resize_source, cell=8)
        return ({**destination, "samples": laid},)
