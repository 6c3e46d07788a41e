"""comfy.ldm.common_dit: small functions of transformers over patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..rmsnorm import RMSNorm, rms_norm

__all__ = ["RMSNorm", "pad_to_patch_size", "rms_norm"]


def pad_to_patch_size(img: Tensor, patch_size: Sequence[int] = (2, 2), padding_mode: str = "circular") -> Tensor:
    """[B, C, ..., H, W] enlarged at the ends of its last dimensions to multiples of `patch_size`."""
    sides = img.shape[-len(patch_size) :]
    missing = [-side % patch for side, patch in zip(sides, patch_size, strict=True)]
    ends = [number for count in reversed(missing) for number in (0, count)]
    return F.pad(img, ends, mode=padding_mode) if any(missing) else img
