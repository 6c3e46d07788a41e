"""LoRA nodes: they return a handle with one more side branch."""

from __future__ import annotations

from typing import Any

from .loaders import FromFiles
from .sockets import CLIP, MODEL, Inputs, number, socket


class LoraLoader(FromFiles):
    """Add a LoRA to transformer and text encoders."""

    TITLE = "Load LoRA"
    DESCRIPTION = "Adds a LoRA. Any number can be chained. A changed strength reloads nothing; 0 costs nothing."
    CATEGORY = "loaders"
    FUNCTION = "load_lora"
    RETURN_TYPES = (MODEL, CLIP)
    OUTPUT_TOOLTIPS = ("The model with the LoRA.", "The text encoders with the LoRA.")
    FILES = {"lora_name": "loras"}
    kept: Any = None  # the file's content, so that another strength reads nothing

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "clip": socket(CLIP, "The text encoders."),
                "lora_name": cls.files("loras", "The LoRA's file."),
                "strength_model": number(1.0, -100.0, 100.0, 0.01, "How strongly the transformer is changed."),
                "strength_clip": number(1.0, -100.0, 100.0, 0.01, "How strongly the text encoders are changed."),
            }
        }

    def load_lora(
        self, model: Any, clip: Any, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[Any, Any]:
        from ..flux_core.runtime.lora_files import read_lora

        if strength_model == 0 and strength_clip == 0:
            return model, clip
        file = self.kept = read_lora(model, clip, self.host.full_path("loras", lora_name))
        return file.added_to(model, clip, strength_model, strength_clip)


class LoraLoaderModelOnly(FromFiles):
    """Add a LoRA to the transformer."""

    TITLE = "LoraLoaderModelOnly"
    DESCRIPTION = "Adds a LoRA to the transformer only."
    CATEGORY = "loaders"
    FUNCTION = "load_lora_model_only"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with the LoRA.",)
    FILES = {"lora_name": "loras"}
    kept: Any = None

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "lora_name": cls.files("loras", "The LoRA's file."),
                "strength_model": number(1.0, -100.0, 100.0, 0.01, "How strongly the transformer is changed."),
            }
        }

    def load_lora_model_only(self, model: Any, lora_name: str, strength_model: float) -> tuple[Any]:
        from ..flux_core.runtime.lora_files import read_lora

        if strength_model == 0:
            return (model,)
        file = self.kept = read_lora(model, None, self.host.full_path("loras", lora_name))
        return (file.added_to(model, None, strength_model)[0],)
