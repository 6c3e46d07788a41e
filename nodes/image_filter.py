"""Blur, sharpen and blend images, and find their edges."""

from __future__ import annotations

from typing import Any

from .sockets import IMAGE, Inputs, choice, integer, number, socket

BLEND_MODES = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")
SOURCE = socket(IMAGE, "The image.")


class ImageBlend:
    """Blend two images."""

    DESCRIPTION = "Blends two images. The second is resized to the size of the first."
    CATEGORY = "image/postprocessing"
    FUNCTION = "blend"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The mixture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image1": socket(IMAGE, "The image below."),
                "image2": socket(IMAGE, "The image on top."),
                "blend_factor": number(0.5, 0.0, 1.0, 0.01, "Share of the result; 0 leaves the first image."),
                "blend_mode": choice(BLEND_MODES, "How the two are blended."),
            }
        }

    def blend(self, image1: Any, image2: Any, blend_factor: float, blend_mode: str) -> tuple[Any]:
        from ..flux_core.images.filters import blend

        return (blend(image1, image2, blend_factor, blend_mode),)


class ImageBlur:
    """Blur an image."""

    DESCRIPTION = "Blurs an image."
    CATEGORY = "image/postprocessing"
    FUNCTION = "blur"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The blurred image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": SOURCE,
                "blur_radius": integer(1, 1, 31, "Radius in pixels.", step=1),
                "sigma": number(1.0, 0.1, 10.0, 0.1, "Width of the Gaussian; 10 is almost a plain average."),
            }
        }

    def blur(self, image: Any, blur_radius: int, sigma: float) -> tuple[Any]:
        from ..flux_core.images.filters import blur

        return (blur(image, blur_radius, sigma),)


class ImageSharpen:
    """Sharpen an image."""

    DESCRIPTION = "Sharpens an image."
    CATEGORY = "image/postprocessing"
    FUNCTION = "sharpen"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The sharpened image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": SOURCE,
                "sharpen_radius": integer(1, 1, 31, "Radius in pixels.", step=1),
                "sigma": number(1.0, 0.1, 10.0, 0.01, "Width of the Gaussian; 10 is almost a plain average."),
                "alpha": number(1.0, 0.0, 5.0, 0.01, "How much to sharpen."),
            }
        }

    def sharpen(self, image: Any, sharpen_radius: int, sigma: float, alpha: float) -> tuple[Any]:
        from ..flux_core.images.filters import sharpen

        return (sharpen(image, sharpen_radius, sigma, alpha),)


class Canny:
    """Find edges, for the control models."""

    DESCRIPTION = "Finds the edges of an image, which FLUX.1-Canny and its LoRA follow."
    CATEGORY = "image/preprocessors"
    FUNCTION = "find"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("White edges on black.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": SOURCE,
                "low_threshold": number(0.4, 0.01, 0.99, 0.01, "Weaker edges are discarded. A lower value finds more."),
                "high_threshold": number(0.8, 0.01, 0.99, 0.01, "Weak edges are kept only beside an edge this strong."),
            }
        }

    def find(self, image: Any, low_threshold: float, high_threshold: float) -> tuple[Any]:
        from ..flux_core.images.canny import canny

        return (canny(image, low_threshold, high_threshold),)
