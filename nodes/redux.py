"""Images as prompts: FLUX.1 Redux."""

from __future__ import annotations

from typing import Any

from .loaders import FromFiles
from .sockets import CLIP_VISION, CONDITIONING, IMAGE, STYLE_MODEL, Inputs, choice, number, socket

Conditioning = list[list[Any]]
OUTPUT = "CLIP_VISION_OUTPUT"


class CLIPVisionLoader(FromFiles):
    """A vision encoder."""

    TITLE = "Load CLIP Vision"
    DESCRIPTION = "Loads an encoder for images: SigLIP (sigclip_vision_patch14_384) for FLUX.1 Redux, or CLIP's."
    CATEGORY = "loaders"
    FUNCTION = "load"
    RETURN_TYPES = (CLIP_VISION,)
    OUTPUT_TOOLTIPS = ("The vision encoder.",)
    FILES = {"clip_name": "clip_vision"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"clip_name": cls.files("clip_vision", "The vision encoder's file.")}}

    def load(self, clip_name: str) -> tuple[Any]:
        from ..flux_core.runtime.vision import load_vision

        return (load_vision(self.host.runtime, self.host.full_path("clip_vision", clip_name)),)


class CLIPVisionEncode:
    """Encode an image for Redux or an IP-Adapter."""

    TITLE = "CLIP Vision Encode"
    DESCRIPTION = "Encodes an image, so that the model can use its content and style."
    CATEGORY = "conditioning"
    FUNCTION = "encode"
    RETURN_TYPES = (OUTPUT,)
    OUTPUT_TOOLTIPS = ("The encoded image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip_vision": socket(CLIP_VISION, "The vision encoder."),
                "image": socket(IMAGE, "The image."),
                "crop": choice(
                    ("center", "none"), "center uses the central square, none the whole image stretched to a square."
                ),
            }
        }

    def encode(self, clip_vision: Any, image: Any, crop: str) -> tuple[Any]:
        return (clip_vision.encode(image, crop == "center"),)


class StyleModelLoader(FromFiles):
    """FLUX.1 Redux."""

    TITLE = "Load Style Model"
    DESCRIPTION = "Loads FLUX.1 Redux, which converts images to prompts (flux1-redux-dev)."
    CATEGORY = "loaders"
    FUNCTION = "load"
    RETURN_TYPES = (STYLE_MODEL,)
    OUTPUT_TOOLTIPS = ("The style model.",)
    FILES = {"style_model_name": "style_models"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"style_model_name": cls.files("style_models", "The Redux model's file.")}}

    def load(self, style_model_name: str) -> tuple[Any]:
        from ..flux_core.runtime.vision import load_style

        return (load_style(self.host.runtime, self.host.full_path("style_models", style_model_name)),)


class StyleModelApply:
    """Append an image to a prompt."""

    TITLE = "Apply Style Model"
    DESCRIPTION = "Appends the content of an image to the prompt. Chain several nodes for several images."
    CATEGORY = "conditioning/style_model"
    FUNCTION = "apply"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with the image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        kinds = (
            "multiply weakens the tokens of the image; attn_bias changes how strongly the new image attends to them."
        )
        return {
            "required": {
                "conditioning": socket(CONDITIONING, "The prompt."),
                "style_model": socket(STYLE_MODEL, "The style model."),
                "clip_vision_output": socket(OUTPUT, "The encoded image."),
                "strength": number(1.0, 0.0, 10.0, 0.001, "The influence of the image."),
                "strength_type": choice(("multiply", "attn_bias"), kinds),
            }
        }

    def apply(
        self, conditioning: Conditioning, style_model: Any, clip_vision_output: Any, strength: float, strength_type: str
    ) -> tuple[Conditioning]:
        from ..flux_core.conditioning.style import with_style

        tokens = style_model.tokens(clip_vision_output)
        return (with_style(conditioning, tokens, strength, strength_type == "attn_bias"),)
