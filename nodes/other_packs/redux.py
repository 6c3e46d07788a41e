"""FLUX.1 Redux with fewer tokens, the way in which ComfyUI_AdvancedRefluxControl weakens the image."""

from __future__ import annotations

from typing import Any

from ..redux import OUTPUT
from ..sockets import CLIP_VISION, CONDITIONING, IMAGE, MASK, STYLE_MODEL, Inputs, number, socket
from .declared import OfAnotherPack, one_of

PACK = "ComfyUI_AdvancedRefluxControl"
Conditioning = list[list[Any]]


class StyleModelApplySimple(OfAnotherPack):
    """Redux with one of five strengths."""

    PACK = PACK
    TITLE = "Apply style model (simple)"
    DESCRIPTION = "Appends the content of an image to the prompt, with fewer tokens to weaken it."
    FUNCTION = "apply"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with the image.",)
    STRENGTHS = ("highest", "high", "medium", "low", "lowest")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning": socket(CONDITIONING, "The prompt."),
                "style_model": socket(STYLE_MODEL, "The style model."),
                "clip_vision_output": socket(OUTPUT, "The encoded image."),
                "image_strength": one_of(cls.STRENGTHS, "The influence of the image.", "medium"),
            }
        }

    def apply(
        self, conditioning: Conditioning, style_model: Any, clip_vision_output: Any, image_strength: str
    ) -> tuple[Conditioning]:
        import math

        from ...flux_core.conditioning.style import thinned, with_style

        factor = self.STRENGTHS.index(image_strength) + 1
        tokens = style_model.tokens(clip_vision_output)
        size = math.isqrt(tokens.shape[1]) // factor
        if factor > 1:
            tokens = thinned(tokens, size, "area" if factor == 3 else "bicubic")
        return (with_style(conditioning, tokens, 1.0, False),)


class ReduxAdvanced(OfAnotherPack):
    """Redux with a given factor and a weight."""

    PACK = PACK
    TITLE = "Apply Redux model (advanced)"
    DESCRIPTION = "Encodes the central square of an image and appends it to the prompt, weakened."
    FUNCTION = "apply"
    RETURN_TYPES = (CONDITIONING, IMAGE, MASK)
    OUTPUT_TOOLTIPS = ("The prompt with the image.", "The image.", "The mask.")
    SQUARE = "center crop (square)"
    LIMIT = f"only the mode {SQUARE!r} without a mask is offered here; name the folder of {PACK} with --node-packs"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        ways = ("nearest", "bilinear", "bicubic", "area", "nearest-exact")
        modes = (cls.SQUARE, "keep aspect ratio", "autocrop with mask")
        return {
            "required": {
                "conditioning": socket(CONDITIONING, "The prompt."),
                "style_model": socket(STYLE_MODEL, "The style model."),
                "clip_vision": socket(CLIP_VISION, "The vision encoder."),
                "image": socket(IMAGE, "The image."),
                "downsampling_factor": number(
                    3.0, 1.0, 9.0, 0.1, "The factor by which the number of its tokens is reduced in each direction."
                ),
                "downsampling_function": one_of(ways, "The interpolation of tokens.", "area"),
                "mode": one_of(modes, "The part of the image that is used; only the central square here.", cls.SQUARE),
                "weight": number(1.0, 0.0, 1.0, 0.01, "The influence of the image; its square multiplies the tokens."),
            },
            "optional": {
                "mask": socket(MASK, "Not available here: the part of the image that is used."),
                "autocrop_margin": number(0.1, 0.0, 1.0, 0.01, "No effect here."),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, mode: str) -> bool | str:
        return mode == cls.SQUARE or cls.LIMIT

    def apply(
        self,
        conditioning: Conditioning,
        style_model: Any,
        clip_vision: Any,
        image: Any,
        downsampling_factor: float,
        downsampling_function: str,
        mode: str,
        weight: float,
        mask: Any = None,
        autocrop_margin: float = 0.1,
    ) -> tuple[Conditioning, Any, Any]:
        import math

        from ...flux_core.conditioning.style import thinned, with_style
        from ...flux_core.errors import InputError

        if mode != self.SQUARE or mask is not None:
            raise InputError(self.LIMIT)
        tokens = style_model.tokens(clip_vision.encode(image, True))
        size = round(math.isqrt(tokens.shape[1]) / downsampling_factor)
        tokens = thinned(tokens, size, downsampling_function, weight * weight)
        return with_style(conditioning, tokens, 1.0, False), image, None
