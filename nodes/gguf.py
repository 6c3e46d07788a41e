"""Loaders under the names that GGUF workflows use. Our other loaders read GGUF files as well."""

from __future__ import annotations

from typing import Any

from .loaders import DUAL_TYPES, SINGLE_TYPES, FromFiles, check_family, load_text_encoders, load_transformer
from .sockets import CLIP, MODEL, Inputs, choice, switch

NUMBERS = ("default", "target", "float32", "float16", "bfloat16")


class UnetLoaderGGUF(FromFiles):
    """A transformer from a GGUF file."""

    TITLE = "Unet Loader (GGUF)"
    DESCRIPTION = "Loads a FLUX.1 transformer from a GGUF file. Its blocks stay compressed until they are multiplied."
    CATEGORY = "bootleg"
    FUNCTION = "load_unet"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model that denoises.",)
    FILES = {"unet_name": "diffusion_models"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        found = [name for name in cls.host.filenames("diffusion_models") if name.lower().endswith(".gguf")]
        return {"required": {"unet_name": choice(found, "The transformer's file.")}}

    def load_unet(self, unet_name: str) -> tuple[Any]:
        return (load_transformer(self.host, unet_name),)


class UnetLoaderGGUFAdvanced(UnetLoaderGGUF):
    """The same. Its settings have no effect, because memory is managed here."""

    TITLE = "Unet Loader (GGUF/Advanced)"
    DESCRIPTION = "The same as Unet Loader (GGUF). The additional settings have no effect here."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                **super().INPUT_TYPES()["required"],
                "dequant_dtype": choice(
                    NUMBERS, "No effect here: blocks are decoded exactly and rounded once.", default="default"
                ),
                "patch_dtype": choice(
                    NUMBERS, "No effect here: LoRAs are computed as side branches.", default="default"
                ),
                "patch_on_device": switch(False, "No effect here: LoRAs are on the model's device."),
            }
        }

    def load_unet(
        self, unet_name: str, dequant_dtype: str = "", patch_dtype: str = "", patch_on_device: bool = False
    ) -> tuple[Any]:
        return super().load_unet(unet_name)


class CLIPLoaderGGUF(FromFiles):
    """Load one file with both text encoders, of any format."""

    TITLE = "CLIPLoader (GGUF)"
    DESCRIPTION = "Loads one file with both text encoders of FLUX.1. For two files use DualCLIPLoader (GGUF)."
    CATEGORY = "bootleg"
    FUNCTION = "load_clip"
    RETURN_TYPES = (CLIP,)
    OUTPUT_TOOLTIPS = ("The text encoders.",)
    FILES = {"clip_name": "text_encoders"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip_name": cls.files("text_encoders", "The file."),
                "type": choice(SINGLE_TYPES, "No effect here: the type is read from the file."),
            }
        }

    def load_clip(self, clip_name: str, type: str = "flux") -> tuple[Any]:
        return (load_text_encoders(self.host, [clip_name]),)


class DualCLIPLoaderGGUF(FromFiles):
    """Load both text encoders from two files, each of any format."""

    TITLE = "DualCLIPLoader (GGUF)"
    DESCRIPTION = "Loads CLIP-L and T5-XXL, in either order, each from a safetensors or a GGUF file. The type is flux."
    CATEGORY = "bootleg"
    FUNCTION = "load_clip"
    RETURN_TYPES = (CLIP,)
    OUTPUT_TOOLTIPS = ("The text encoders.",)
    FILES = {"clip_name1": "text_encoders", "clip_name2": "text_encoders"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip_name1": cls.files("text_encoders", "One of the two files: clip_l or t5xxl."),
                "clip_name2": cls.files("text_encoders", "The other file."),
                "type": choice(DUAL_TYPES, "flux; the other types are for models that Sluice does not run."),
            }
        }

    def load_clip(self, clip_name1: str, clip_name2: str, type: str) -> tuple[Any]:
        check_family(type)
        return (load_text_encoders(self.host, [clip_name1, clip_name2]),)
