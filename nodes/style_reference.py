"""Images as references for style: USO's projector and its tokens."""

from __future__ import annotations

from typing import Any

from .loaders import FromFiles
from .redux import OUTPUT
from .sockets import MODEL, MODEL_PATCH, Inputs, socket


class ModelPatchLoader(FromFiles):
    """The style projector of USO."""

    TITLE = "ModelPatchLoader"
    DESCRIPTION = "Loads the style projector of USO (uso-flux1-projector-v1). Patches for other models are refused."
    CATEGORY = "advanced/loaders"
    FUNCTION = "load"
    EXPERIMENTAL = True
    RETURN_TYPES = (MODEL_PATCH,)
    OUTPUT_TOOLTIPS = ("The style projector.",)
    FILES = {"name": "model_patches"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"name": cls.files("model_patches", "The projector's file.")}}

    def load(self, name: str) -> tuple[Any]:
        from ..flux_core.runtime.vision import load_model_patch

        return (load_model_patch(self.host.runtime, self.host.full_path("model_patches", name)),)


class USOStyleReference:
    """Add the style of an image to a model."""

    TITLE = "USOStyleReference"
    DESCRIPTION = (
        "The model then makes images in the style of a reference; use it with USO's LoRA. Chain several nodes for "
        "several references."
    )
    CATEGORY = "advanced/model_patches/flux"
    FUNCTION = "apply"
    EXPERIMENTAL = True
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with the reference.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "model_patch": socket(MODEL_PATCH, "The style projector."),
                "clip_vision_output": socket(OUTPUT, "The reference image, encoded by SigLIP."),
            }
        }

    def apply(self, model: Any, model_patch: Any, clip_vision_output: Any) -> tuple[Any]:
        return (model.styled(model_patch.tokens(clip_vision_output)),)
