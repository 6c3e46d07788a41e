"""Memory for the copies of LoRA tensors that a run makes on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..adapters.lora import LoraUse
from ..memory.manager import Manager


def reclaim_for_loras(manager: Manager, uses: Sequence[LoraUse], device: torch.device, dtype: torch.dtype) -> None:
    """Free weights for the tensors of these LoRAs: the resident weights may have been chosen without them."""
    nbytes = sum(use.lora.copied_bytes(device, dtype) for use in uses if use.strength)
    if nbytes:
        manager.reclaim(" and ".join(use.lora.name for use in uses), nbytes)
