"""comfy.clip_vision: vision encoders (SigLIP, CLIP) as objects with ComfyUI's methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....models.clip_vision import DEVIATION, MEAN, preprocessed
from ....runtime.vision import VisionModel, VisionOutput, load_vision
from ...engine import current

__all__ = ["ClipVisionModel", "Output", "clip_preprocess", "load"]


class Output:
    """The output of a vision encoder, whose values are attributes and items."""

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __setitem__(self, key: str, item: Any) -> None:
        setattr(self, key, item)


class ClipVisionModel:
    """A vision encoder. Its network is not accessible, because its weights may be streamed."""

    def __init__(self, handle: VisionModel) -> None:
        self._handle = handle
        self.image_size = handle.weights.config.size
        self.dtype = torch.float32

    @property
    def load_device(self) -> torch.device:
        return current().runtime.device

    def handle(self) -> VisionModel:
        return self._handle

    def encode_image(self, image: Tensor, crop: bool | str = True) -> VisionOutput:
        """Images [B, H, W, C >= 3] in 0..1. crop: crop to the centre, otherwise squash."""
        return self._handle.encode(image, crop in (True, "center"))


def load(ckpt_path: str) -> ClipVisionModel:
    """Raises the errors of Load CLIP Vision."""
    return ClipVisionModel(load_vision(current().runtime, ckpt_path))


def clip_preprocess(
    image: Tensor,
    size: int = 224,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = DEVIATION,
    crop: bool = True,
) -> Tensor:
    """Images [B, H, W, C >= 3] in 0..1 -> [B, 3, size, size], normalised, with CLIP's mean and deviation by default."""
    return preprocessed(image, size, mean, std, crop)
