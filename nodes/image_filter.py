"""Pictures blurred, sharpened, blended, and reduced to their edges."""

from __future__ import annotations

from typing import Any

from .sockets import IMAGE, Inputs, choice, integer, number, wire

BLEND_MODES = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")
PICTURE = wire(IMAGE, "The picture.")


class ImageBlend:
    """Two pictures through one another."""

    DESCRIPTION = "Mixes two pictures. The second takes the size of the first."
    CATEGORY = "image/postprocessing"
    FUNCTION = "blend"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The mixture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image1": wire(IMAGE, "The picture underneath."),
                "image2": wire(IMAGE, "The picture on top."),
                "blend_factor": number(0.5, 0.0, 1.0, 0.01, "Share of the result; 0 leaves the first picture."),
                "blend_mode": choice(BLEND_MODES, "How the two are mixed."),
            }
        }

    def blend(self, image1: Any, image2: Any, blend_factor: float, blend_mode: str) -> tuple[Any]:
        from ..flux_core.images.filters import blend

        return (blend(image1, image2, blend_factor, blend_mode),)


class ImageBlur:
    """Softer."""

    DESCRIPTION = "Blurs a picture."
    CATEGORY = "image/postprocessing"
    FUNCTION = "blur"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The blurred picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                "blur_radius": integer(1, 1, 31, "Pixels around each that count.", step=1),
                "sigma": number(1.0, 0.1, 10.0, 0.1, "How much the far ones count: 10 as much as the near."),
            }
        }

    def blur(self, image: Any, blur_radius: int, sigma: float) -> tuple[Any]:
        from ..flux_core.images.filters import blur

        return (blur(image, blur_radius, sigma),)


class ImageSharpen:
    """Crisper."""

    DESCRIPTION = "Sharpens a picture."
    CATEGORY = "image/postprocessing"
    FUNCTION = "sharpen"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The sharpened picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                "sharpen_radius": integer(1, 1, 31, "Pixels around each that count.", step=1),
                "sigma": number(1.0, 0.1, 10.0, 0.01, "How much the far ones count: 10 as much as the near."),
                "alpha": number(1.0, 0.0, 5.0, 0.01, "How much to sharpen."),
            }
        }

    def sharpen(self, image: Any, sharpen_radius: int, sigma: float, alpha: float) -> tuple[Any]:
        from ..flux_core.images.filters import sharpen

        return (sharpen(image, sharpen_radius, sigma, alpha),)


class Canny:
    """Edges, for the control models."""

    DESCRIPTION = "Finds the edges of a picture: what FLUX.1-Canny and its LoRA are steered by."
    CATEGORY = "image/preprocessors"
    FUNCTION = "find"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("White edges on black.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                "low_threshold": number(0.4, 0.01, 0.99, 0.01, "Weaker edges are left out. Lower finds more."),
                "high_threshold": number(0.8, 0.01, 0.99, 0.01, "Only edges joined to one as strong as this are kept."),
            }
        }

    def find(self, image: Any, low_threshold: float, high_threshold: float) -> tuple[Any]:
        from ..flux_core.images.canny import canny

        return (canny(image, low_threshold, high_threshold),)
