"""comfy_api.input: names of value types, for annotations."""

from __future__ import annotations

from typing import Any, TypedDict

__all__ = ["AudioInput", "ImageInput", "LatentInput", "MaskInput"]

ImageInput = MaskInput = Any  # tensors


class AudioInput(TypedDict):
    waveform: Any
    sample_rate: int


class LatentInput(TypedDict, total=False):
    samples: Any
    noise_mask: Any
    batch_index: Any
