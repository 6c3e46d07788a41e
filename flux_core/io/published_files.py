"""Published model files: their repositories, their sizes, and the smaller forms of the same model.

Sizes are those on the pages of their repositories, in GB (10^9 bytes). Reads no file.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

# File name pattern -> the repository on Hugging Face that publishes it. The first match is used.
PUBLISHED: tuple[tuple[str, str], ...] = (
    ("flux1-dev-fp8*", "Comfy-Org/flux1-dev"),
    ("flux1-schnell-fp8*", "Comfy-Org/flux1-schnell"),
    ("flux1-dev-kontext_fp8_scaled*", "Comfy-Org/flux1-kontext-dev_ComfyUI"),
    ("flux1-kontext-dev*.gguf", "city96/FLUX.1-Kontext-dev-gguf"),
    ("flux1-dev*.gguf", "city96/FLUX.1-dev-gguf"),
    ("flux1-schnell*.gguf", "city96/FLUX.1-schnell-gguf"),
    ("flux1-fill-dev*", "black-forest-labs/FLUX.1-Fill-dev"),
    ("flux1-canny-dev-lora*", "black-forest-labs/FLUX.1-Canny-dev-lora"),
    ("flux1-depth-dev-lora*", "black-forest-labs/FLUX.1-Depth-dev-lora"),
    ("flux1-canny-dev*", "black-forest-labs/FLUX.1-Canny-dev"),
    ("flux1-depth-dev*", "black-forest-labs/FLUX.1-Depth-dev"),
    ("flux1-redux-dev*", "black-forest-labs/FLUX.1-Redux-dev"),
    ("flux1-kontext-dev*", "black-forest-labs/FLUX.1-Kontext-dev"),
    ("flux1-dev*", "black-forest-labs/FLUX.1-dev"),
    ("flux1-schnell*", "black-forest-labs/FLUX.1-schnell"),
    ("flux.1-turbo-alpha*", "alimama-creative/FLUX.1-Turbo-Alpha"),
    ("hyper-flux.1-dev-*steps-lora*", "ByteDance/Hyper-SD"),
    ("flux_realism_lora*", "comfyanonymous/flux_RealismLora_converted_comfyui"),
    ("instantx_flux_canny*", "InstantX/FLUX.1-dev-Controlnet-Canny"),
    ("flux*controlnet-union-pro-2*", "Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0"),
    ("flux*controlnet-union-pro*", "Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro"),
    ("flux*controlnet-union*", "InstantX/FLUX.1-dev-Controlnet-Union"),
    ("flux*controlnet-inpainting-beta*", "alimama-creative/FLUX.1-dev-Controlnet-Inpainting-Beta"),
    ("flux-*-controlnet*", "XLabs-AI/flux-controlnet-collections"),
    ("realesrgan_x?plus*", "Comfy-Org/Real-ESRGAN_repackaged"),
    ("4x-ultrasharp*", "Kim2091/UltraSharp"),
    ("ae.*", "black-forest-labs/FLUX.1-schnell"),
    ("t5-v1_1-xxl-encoder*.gguf", "city96/t5-v1_1-xxl-encoder-gguf"),
    ("t5xxl*", "comfyanonymous/flux_text_encoders"),
    ("clip_l*", "comfyanonymous/flux_text_encoders"),
    ("sigclip_vision_patch14_384*", "Comfy-Org/sigclip_vision_384"),
    ("uso-flux1-*", "Comfy-Org/USO_1.0_Repackaged"),
)

_GB: Mapping[str, float] = {
    "flux1-dev.safetensors": 23.8,
    "flux1-schnell.safetensors": 23.8,
    "flux1-fill-dev.safetensors": 23.8,
    "flux1-kontext-dev.safetensors": 23.8,
    "flux1-canny-dev.safetensors": 23.8,
    "flux1-depth-dev.safetensors": 23.8,
    "flux1-dev-fp8.safetensors": 17.2,
    "flux1-schnell-fp8.safetensors": 17.2,
    "flux1-dev-kontext_fp8_scaled.safetensors": 11.9,
    "flux1-dev-q8_0.gguf": 12.7,
    "flux1-dev-q5_k_s.gguf": 8.29,
    "flux1-dev-q4_k_s.gguf": 6.81,
    "flux1-dev-q3_k_s.gguf": 5.23,
    "t5xxl_fp16.safetensors": 9.79,
    "t5xxl_fp8_e4m3fn_scaled.safetensors": 5.16,
    "t5xxl_fp8_e4m3fn.safetensors": 4.89,
    "t5-v1_1-xxl-encoder-q8_0.gguf": 5.06,
    "t5-v1_1-xxl-encoder-q5_k_m.gguf": 3.39,
    "t5-v1_1-xxl-encoder-q4_k_m.gguf": 2.9,
    "clip_l.safetensors": 0.246,
    "ae.safetensors": 0.335,
    "flux1-canny-dev-lora.safetensors": 1.24,
    "flux1-depth-dev-lora.safetensors": 1.24,
    "flux.1-turbo-alpha.safetensors": 0.694,
    "hyper-flux.1-dev-8steps-lora.safetensors": 1.39,
    "flux_realism_lora.safetensors": 0.0224,
}

# The same model in several files, the largest first. Loaders for safetensors read GGUF too.
_FORMS: tuple[tuple[str, ...], ...] = (
    (
        "flux1-dev.safetensors",
        "flux1-dev-Q8_0.gguf",
        "flux1-dev-Q5_K_S.gguf",
        "flux1-dev-Q4_K_S.gguf",
        "flux1-dev-Q3_K_S.gguf",
    ),
    ("flux1-kontext-dev.safetensors", "flux1-dev-kontext_fp8_scaled.safetensors"),
    (
        "t5xxl_fp16.safetensors",
        "t5-v1_1-xxl-encoder-Q8_0.gguf",
        "t5xxl_fp8_e4m3fn.safetensors",
        "t5-v1_1-xxl-encoder-Q5_K_M.gguf",
        "t5-v1_1-xxl-encoder-Q4_K_M.gguf",
    ),
)


def published(name: str) -> str | None:
    """The Hugging Face repository that publishes a file of this name, where it is known."""
    last = _last(name)
    return next((repository for pattern, repository in PUBLISHED if fnmatch.fnmatchcase(last, pattern)), None)


def gigabytes(name: str) -> float | None:
    """The published size of a file of this name in GB, where it is known."""
    return _GB.get(_last(name))


def smaller_forms(name: str) -> list[str]:
    """Published files of the same model that are smaller than the one of this name, the largest first."""
    last = _last(name)
    for forms in _FORMS:
        lowered = [form.lower() for form in forms]
        if last in lowered:
            return list(forms[lowered.index(last) + 1 :])
    return []


def size_text(name: str) -> str:
    """ "23.8 GB" or "246 MB" for a file of this name; "" if its size is not known."""
    size = gigabytes(name)
    return "" if size is None else f"{size:g} GB" if size >= 1 else f"{size * 1000:g} MB"


def told_forms(name: str) -> str:
    """The smaller forms with their sizes, for a sentence: "a.gguf (6.81 GB), b.gguf (5.23 GB)"."""
    return ", ".join(f"{form} ({size_text(form)})" for form in smaller_forms(name))


def _last(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2].lower()
