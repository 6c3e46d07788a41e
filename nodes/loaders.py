"""Model files -> handles. Only a file's header is read until something computes with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .binding import HostedNode
from .sockets import CLIP, MODEL, VAE, Inputs, choice

if TYPE_CHECKING:
    from .host import Host

WEIGHT_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
TEXT_DEVICES = ("default", "cpu")
DUAL_TYPES = ("sdxl", "sd3", "flux", "hunyuan_video", "hidream", "hunyuan_image")
SINGLE_TYPES = (
    "stable_diffusion",
    "stable_cascade",
    "sd3",
    "stable_audio",
    "mochi",
    "ltxv",
    "pixart",
    "cosmos",
    "lumina2",
    "wan",
    "hidream",
    "chroma",
    "ace",
    "omnigen2",
    "qwen_image",
    "hunyuan_image",
)
TAEF1, TAEF1_FILES = "taef1", ("taef1_decoder.safetensors", "taef1_encoder.safetensors")  # in vae_approx


class FromFiles(HostedNode):
    """A node whose outputs depend on model files. It runs again when one of them has been replaced."""

    FILES: Mapping[str, str] = {}  # input -> category

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> str:
        return " ".join(cls.host.stamp(category, str(inputs.get(name))) for name, category in cls.FILES.items())

    @classmethod
    def files(cls, category: str, tip: str) -> Any:
        """A widget that lists the files of a category."""
        return choice(cls.host.filenames(category), tip)


class UNETLoader(FromFiles):
    """Load a transformer."""

    TITLE = "Load Diffusion Model"
    DESCRIPTION = "Loads a FLUX.1 transformer: safetensors in BFL's or diffusers' layout, or GGUF."
    CATEGORY = "advanced/loaders"
    FUNCTION = "load"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model that denoises.",)
    FILES = {"unet_name": "diffusion_models"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "unet_name": cls.files("diffusion_models", "The transformer's file."),
                "weight_dtype": choice(
                    WEIGHT_DTYPES, "default uses the weights as stored. fp8 takes half of bf16, with a small loss."
                ),
            }
        }

    def load(self, unet_name: str, weight_dtype: str) -> tuple[Any]:
        return (load_transformer(self.host, unet_name, weight_dtype),)


class DualCLIPLoader(FromFiles):
    """Load both text encoders from two files."""

    TITLE = "DualCLIPLoader"
    DESCRIPTION = "Loads the two text encoders of FLUX.1, CLIP-L and T5-XXL, in either order. The type is flux."
    CATEGORY = "advanced/loaders"
    FUNCTION = "load"
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
            },
            "optional": {
                "device": choice(TEXT_DEVICES, "cpu encodes on the processor: slower, no GPU memory.", advanced=True),
            },
        }

    def load(self, clip_name1: str, clip_name2: str, type: str, device: str = "default") -> tuple[Any]:
        check_family(type)
        return (load_text_encoders(self.host, [clip_name1, clip_name2], device),)


class CLIPLoader(FromFiles):
    """Load both text encoders from one file."""

    TITLE = "Load CLIP"
    DESCRIPTION = "Loads one file with both text encoders of FLUX.1. For two files use DualCLIPLoader."
    CATEGORY = "advanced/loaders"
    FUNCTION = "load"
    RETURN_TYPES = (CLIP,)
    OUTPUT_TOOLTIPS = ("The text encoders.",)
    FILES = {"clip_name": "text_encoders"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip_name": cls.files("text_encoders", "The file."),
                "type": choice(SINGLE_TYPES, "No effect here: the type is read from the file."),
            },
            "optional": {
                "device": choice(TEXT_DEVICES, "cpu encodes on the processor: slower, no GPU memory.", advanced=True),
            },
        }

    def load(self, clip_name: str, type: str, device: str = "default") -> tuple[Any]:
        return (load_text_encoders(self.host, [clip_name], device),)


class VAELoader(FromFiles):
    """Load an autoencoder."""

    TITLE = "Load VAE"
    DESCRIPTION = (
        "Loads the autoencoder that converts latents to images and back (ae.safetensors). taef1 is a small one: "
        "fast but not exact."
    )
    CATEGORY = "loaders"
    FUNCTION = "load"
    RETURN_TYPES = (VAE,)
    OUTPUT_TOOLTIPS = ("The autoencoder.",)
    FILES = {"vae_name": "vae"}
    SETS = {TAEF1: ("vae_approx", TAEF1_FILES)}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        small = [TAEF1] if set(TAEF1_FILES) <= set(cls.host.filenames("vae_approx")) else []
        names = [*cls.host.filenames("vae"), *small]
        return {"required": {"vae_name": choice(names, "The autoencoder's file, or taef1 from vae_approx.")}}

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> str:
        if inputs.get("vae_name") != TAEF1:
            return super().IS_CHANGED(**inputs)
        return " ".join(cls.host.stamp("vae_approx", name) for name in TAEF1_FILES)

    def load(self, vae_name: str) -> tuple[Any]:
        from ..flux_core.runtime.handles import load_autoencoder

        category, names = self.SETS.get(vae_name, ("vae", (vae_name,)))
        return (load_autoencoder(self.host.runtime, *(self.host.full_path(category, name) for name in names)),)


class CheckpointLoaderSimple(FromFiles):
    """Load all models from one file."""

    TITLE = "Load Checkpoint"
    DESCRIPTION = "Loads transformer, text encoders and autoencoder from one file."
    CATEGORY = "loaders"
    FUNCTION = "load"
    RETURN_TYPES = (MODEL, CLIP, VAE)
    OUTPUT_TOOLTIPS = ("The model that denoises.", "The text encoders.", "The autoencoder.")
    FILES = {"ckpt_name": "checkpoints"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"ckpt_name": cls.files("checkpoints", "The checkpoint's file.")}}

    def load(self, ckpt_name: str) -> tuple[Any, Any, Any]:
        from ..flux_core.runtime.handles import load_checkpoint

        path = self.host.full_path("checkpoints", ckpt_name)
        return load_checkpoint(self.host.runtime, path, *_text_folders(self.host))


def load_transformer(host: Host, name: str, weight_dtype: str = "default") -> Any:
    """The transformer of a file in `diffusion_models`."""
    from ..flux_core.runtime.handles import load_flux

    return load_flux(host.runtime, host.full_path("diffusion_models", name), weight_dtype)


def load_text_encoders(host: Host, names: Sequence[str], device: str = "default") -> Any:
    """Both text encoders from files in `text_encoders`. device: "default" or "cpu"."""
    from ..flux_core.runtime.handles import load_text

    paths = [host.full_path("text_encoders", name) for name in names]
    return load_text(host.runtime, paths, device, *_text_folders(host))


def check_family(type: str) -> None:
    """Raise InputError unless the type of the text encoders is flux."""
    from ..flux_core.errors import InputError

    if type != "flux":
        raise InputError(f"The type of the text encoders is {type!r}; Sluice runs FLUX.1 only. Choose type flux.")


def _text_folders(host: Host) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The folders of tokenizers and textual inversions."""
    return host.directories("tokenizers"), host.directories("embeddings")
