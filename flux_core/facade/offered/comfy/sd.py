"""comfy.sd: CLIP and VAE for packs: our handles with ComfyUI's methods, and loading models from files."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....conditioning import text as encoding
from ....conditioning.tokenizer import Row
from ....errors import InputError
from ....images.resize import crop_to_cells
from ....runtime import handles, vision
from ....runtime.lora_files import read_lora
from ...engine import current
from ...offered_modules import NotOffered
from ...partly_offered import PartlyOffered
from .model_patcher import ModelPatcher

__all__ = [
    "CLIP",
    "CLIPType",
    "StyleModel",
    "VAE",
    "load_checkpoint",
    "load_checkpoint_guess_config",
    "load_clip",
    "load_diffusion_model",
    "load_lora_for_models",
    "load_style_model",
    "load_unet",
]

Tokens = dict[str, list[list[tuple[Any, ...]]]]  # {"l", "t5xxl"} -> rows of (token, weight) or (token, weight, word)


class CLIPType(enum.Enum):
    STABLE_DIFFUSION = 1
    STABLE_CASCADE = 2
    SD3 = 3
    STABLE_AUDIO = 4
    HUNYUAN_DIT = 5
    FLUX = 6
    MOCHI = 7
    LTXV = 8
    HUNYUAN_VIDEO = 9
    PIXART = 10
    COSMOS = 11
    LUMINA2 = 12
    WAN = 13
    HIDREAM = 14
    CHROMA = 15
    ACE = 16
    OMNIGEN2 = 17
    QWEN_IMAGE = 18
    HUNYUAN_IMAGE = 19


class CLIP(metaclass=PartlyOffered):
    """Both text encoders. Made by loaders and by `clone`."""

    def __init__(self, handle: Any = None, **kwargs: Any) -> None:
        if not isinstance(handle, handles.TextEncoders):
            raise NotOffered("A CLIP made of one of ComfyUI's own encoder classes")
        self._handle = handle
        self.use_clip_schedule = False
        self.tokenizer_options: dict[str, Any] = {}

    def handle(self) -> handles.TextEncoders:
        return self._handle

    def clone(self) -> CLIP:
        twin = CLIP(self._handle)
        twin.tokenizer_options = dict(self.tokenizer_options)
        return twin

    @property
    def layer_idx(self) -> int | None:
        return self._handle.options.last_layer

    def clip_layer(self, layer_idx: int) -> None:
        """Use T5 only up to a layer, counted from the end."""
        self._handle = replace(self._handle, options=replace(self._handle.options, last_layer=layer_idx))

    def set_tokenizer_option(self, option_name: str, value: Any) -> None:
        """T5's t5xxl_min_padding and t5xxl_min_length."""
        known = {"t5xxl_min_padding": "min_padding", "t5xxl_min_length": "min_length"}
        if option_name not in known:
            raise NotOffered(f"The tokenizer option {option_name}")
        options = replace(self._handle.options, **{known[option_name]: value})
        self._handle = replace(self._handle, options=options)

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> Tokens:
        """Rows of (token, weight), with `return_word_ids` (token, weight, 0)."""
        rows = {
            "l": encoding.tokenize_clip(self._handle, text),
            "t5xxl": [encoding.tokenize_t5(self._handle, text)],
        }
        word = (0,) if return_word_ids else ()
        return {
            name: [
                [(token, weight, *word) for token, weight in zip(row.tokens, row.weights, strict=True)] for row in own
            ]
            for name, own in rows.items()
        }

    def encode_from_tokens(self, tokens: Tokens, return_pooled: bool = False, return_dict: bool = False) -> Any:
        """The tokens' hidden states [1, L, D]; with return_pooled (states, CLIP's pooled vector)."""
        ((states, values),) = encoding.encode_rows(self._handle, _row(tokens["l"]), _row(tokens["t5xxl"]))
        pooled = values["pooled_output"]
        if return_dict:
            return {"cond": states, "pooled_output": pooled}
        return (states, pooled) if return_pooled else states

    def encode_from_tokens_scheduled(
        self,
        tokens: Tokens,
        unprojected: bool = False,
        add_dict: Mapping[str, Any] | None = None,
        show_pbar: bool = True,
    ) -> list[list[Any]]:
        """A conditioning of one entry."""
        states, pooled = self.encode_from_tokens(tokens, return_pooled=True)
        return [[states, {"pooled_output": pooled, **(add_dict or {})}]]

    def encode(self, text: str) -> Tensor:
        states: Tensor = self.encode_from_tokens(self.tokenize(text))
        return states

    def load_model(self) -> CLIP:
        """Does nothing: models are loaded when they are used."""
        return self

    def add_hooks_to_dict(self, pooled_dict: dict[str, Any]) -> dict[str, Any]:
        return pooled_dict

    def add_patches(self, patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0) -> Any:
        raise NotOffered("CLIP.add_patches (use Load LoRA, or comfy.sd.load_lora_for_models)")

    def __getattr__(self, name: str) -> Any:
        if name in ("patcher", "cond_stage_model", "tokenizer"):
            raise NotOffered(f"CLIP.{name} (ComfyUI's own encoder classes)")
        raise NotOffered(f"CLIP.{name}")


def _row(rows: Sequence[Sequence[tuple[Any, ...]]]) -> Row:
    """The first row, the only one that FLUX.1 uses."""
    return Row(tuple(item[0] for item in rows[0]), tuple(float(item[1]) for item in rows[0]))


class VAE(metaclass=PartlyOffered):
    """The autoencoder: images [B, H, W, 3] in 0..1 to latents [B, 16, h, w] and back."""

    latent_channels, latent_dim, downscale_ratio, upscale_ratio = 16, 2, 8, 8
    output_channels = 3
    working_dtypes = (torch.bfloat16, torch.float32)
    not_video = True
    extra_1d_channel = None

    def __init__(self, sd: Any = None, device: Any = None, config: Any = None, dtype: Any = None, **more: Any) -> None:
        """sd: a handle, or the result of comfy.utils.load_torch_file for an autoencoder's file."""
        if sd is not None and getattr(sd, "path", None) is not None:
            sd = handles.load_autoencoder(current().runtime, sd.path)
        if not isinstance(sd, handles.Autoencoder):
            raise NotOffered("A VAE made of tensors that a pack has changed")
        self._handle = sd

    def handle(self) -> handles.Autoencoder:
        return self._handle

    @property
    def device(self) -> torch.device:
        return self._handle.runtime.device

    offload_device = output_device = torch.device("cpu")

    @property
    def vae_dtype(self) -> torch.dtype:
        return self._handle.runtime.autoencoder_dtype

    def vae_output_dtype(self) -> torch.dtype:
        return torch.float32

    def throw_exception_if_invalid(self) -> None:
        """Does nothing: the autoencoder was checked when it was loaded."""

    def vae_encode_crop_pixels(self, pixels: Tensor) -> Tensor:
        """Crops sides to multiples of 8 and removes the alpha channel."""
        return crop_to_cells(pixels.movedim(-1, 1)).movedim(1, -1)[..., :3]

    def encode(self, pixel_samples: Tensor) -> Tensor:
        return self._handle.encode_image(pixel_samples)

    def decode(self, samples_in: Tensor, vae_options: Any = None) -> Tensor:
        return self._handle.decode_image(samples_in)

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """Tiles in pixels."""
        return self._handle.encode_image_tiled(pixel_samples, tile_x or tile_y or 512, overlap or 64)

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """Tiles in cells of the latent, as in ComfyUI."""
        return self._handle.decode_image_tiled(samples, 8 * (tile_x or tile_y or 64), 8 * (overlap or 16))

    def spacial_compression_decode(self) -> int:
        return self.upscale_ratio

    def spacial_compression_encode(self) -> int:
        return self.downscale_ratio

    def temporal_compression_decode(self) -> None:
        """An image has no time axis."""

    def __getattr__(self, name: str) -> Any:
        if name in ("first_stage_model", "patcher", "get_sd"):
            raise NotOffered(f"VAE.{name} (ComfyUI's own model classes)")
        raise NotOffered(f"VAE.{name}")


# -- from files --------------------------------------------------------------------------------------------------------


class StyleModel:
    """FLUX.1 Redux."""

    def __init__(self, handle: vision.StyleModel) -> None:
        self._handle = handle

    def handle(self) -> vision.StyleModel:
        return self._handle

    def get_cond(self, input: Any) -> Tensor:
        """The tokens [B, T, C] for the output of a vision encoder."""
        every = self._handle.tokens(input)
        return every.view(len(input.last_hidden_state), -1, every.shape[-1])


def load_style_model(ckpt_path: str) -> StyleModel:
    """Raises the errors of Load Style Model."""
    return StyleModel(vision.load_style(current().runtime, ckpt_path))


def _text_folders() -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    folders = current().folders
    return folders.directories("tokenizers"), folders.directories("embeddings")


def load_clip(
    ckpt_paths: Sequence[str],
    embedding_directory: Any = None,
    clip_type: Any = CLIPType.STABLE_DIFFUSION,
    model_options: Any = None,
) -> CLIP:
    """CLIP-L and T5 from these files. Raises the errors of our loaders, also for encoders of other models."""
    device = str((model_options or {}).get("load_device", "default"))
    return CLIP(
        handles.load_text(
            current().runtime, list(ckpt_paths), "cpu" if device == "cpu" else "default", *_text_folders()
        )
    )


def load_diffusion_model(unet_path: str, model_options: Mapping[str, Any] | None = None) -> ModelPatcher:
    """FLUX.1's transformer from a file."""
    names = {dtype: name for name, dtype in handles.WEIGHT_DTYPES.items() if not name.endswith("_fast")}
    weight_dtype = names.get((model_options or {}).get("dtype"), "default")
    return ModelPatcher(handles.load_flux(current().runtime, unet_path, weight_dtype))


def load_unet(unet_path: str, dtype: torch.dtype | None = None) -> ModelPatcher:
    return load_diffusion_model(unet_path, {"dtype": dtype})


def load_checkpoint_guess_config(
    ckpt_path: str,
    output_vae: bool = True,
    output_clip: bool = True,
    output_clipvision: bool = False,
    embedding_directory: Any = None,
    output_model: bool = True,
    model_options: Any = None,
    te_model_options: Any = None,
) -> tuple[Any, Any, Any, None]:
    """(MODEL, CLIP, VAE, None) from one file; None for parts that it does not contain."""
    model, text, autoencoder = handles.load_checkpoint(current().runtime, ckpt_path, *_text_folders())
    clip = CLIP(text) if output_clip and isinstance(text, handles.TextEncoders) else None
    vae = VAE(autoencoder) if output_vae and isinstance(autoencoder, handles.Autoencoder) else None
    return ModelPatcher(model) if output_model else None, clip, vae, None


def load_checkpoint(
    config_path: Any = None, ckpt_path: str = "", output_vae: bool = True, output_clip: bool = True, **more: Any
) -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE)."""
    return load_checkpoint_guess_config(ckpt_path, output_vae, output_clip)[:3]


def load_lora_for_models(
    model: ModelPatcher | None, clip: CLIP | None, lora: Any, strength_model: float, strength_clip: float
) -> tuple[Any, Any]:
    """The same models with a LoRA. `lora`: the unchanged result of comfy.utils.load_torch_file."""
    path = getattr(lora, "path", None)
    if path is None:
        raise InputError("A pack gives a LoRA as tensors it has changed; Sluice reads LoRAs from their files.")
    if model is None:
        raise InputError("A LoRA for text encoders alone needs the model as well, to determine its targets.")
    handle, text = model.handle(), None if clip is None else clip.handle()
    changed, text = read_lora(handle, text, path).added_to(handle, text, strength_model, strength_clip)
    twin = model.clone()
    twin._handle = changed
    return twin, None if text is None else CLIP(text)
