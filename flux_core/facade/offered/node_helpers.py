"""node_helpers: small functions that nodes share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import ImageFile, UnidentifiedImageError

from ...images.resize import repeat_to_batch

__all__ = ["conditioning_set_values", "hasher", "image_alpha_fix", "pillow", "string_to_torch_dtype"]


def conditioning_set_values(conditioning: Any, values: Mapping[str, Any] | None = None, append: bool = False) -> Any:
    """The same tokens with these values set on every entry; `append` extends existing lists."""
    changed = []
    for tokens, old in conditioning:
        new = dict(old)
        for key, value in (values or {}).items():
            new[key] = [*old[key], *value] if append and old.get(key) is not None else value
        changed.append([tokens, new])
    return changed


def pillow(function: Callable[[Any], Any], argument: Any) -> Any:
    """Call a function of Pillow; a truncated image is read as far as possible."""
    try:
        return function(argument)
    except (OSError, UnidentifiedImageError, ValueError):
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            return function(argument)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def hasher() -> Any:
    return hashlib.sha256


def string_to_torch_dtype(string: str) -> torch.dtype | None:
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.get(string)


def image_alpha_fix(destination: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes the channels of two images [B, H, W, C] equal: removes the source's alpha, or adds alpha to the target."""
    if source.shape[-1] > destination.shape[-1]:
        source = source[..., : destination.shape[-1]]
    elif source.shape[-1] < destination.shape[-1]:
        opaque = torch.ones_like(repeat_to_batch(source[..., :1], source.shape[0]))
        source = torch.cat((source, opaque), dim=-1)
    return destination, source
