"""What flows on a LATENT wire: a dict with `samples` [B, C, h, w], perhaps `noise_mask` and `batch_index`.

Every function returns a new dict and carries unknown keys along. Knows nothing of sampling.
"""

from __future__ import annotations

from typing import Any

import torch

from .capacity import check_room
from .image_ops import repeat_to_batch, resize
from .latents import CELL, CHANNELS

Latent = dict[str, Any]


COPIES = 6  # of a latent that a run has at the least: start, noise, state, what the network sees and says, picture


def empty(width: int, height: int, batch: int, channels: int) -> Latent:
    """Zeros for a picture of `width` x `height` pixels. Raises InputError when no machine like this could hold it."""
    cells = batch * (width // CELL) * (height // CELL)
    check_room(f"A batch of {batch} latents for {width}x{height} pixels", COPIES * cells * CHANNELS * 4)
    return {"samples": torch.zeros(batch, channels, height // CELL, width // CELL)}


def from_batch(latent: Latent, index: int, length: int) -> Latent:
    """`length` items from `index` on. They keep the noise they had in the whole batch (`batch_index`)."""
    samples = latent["samples"]
    index = min(index, len(samples) - 1)
    part = slice(index, index + min(length, len(samples) - index))
    picked = {**latent, "samples": samples[part].clone()}
    if "noise_mask" in latent:
        mask = latent["noise_mask"]
        picked["noise_mask"] = mask if len(mask) == 1 else repeat_to_batch(mask, max(len(samples), len(mask)))[part]
    picked["batch_index"] = list(latent.get("batch_index", range(len(samples))))[part]
    return picked


def repeat(latent: Latent, times: int) -> Latent:
    """The batch `times` over. Each repetition gets noise of its own."""
    samples = latent["samples"]
    repeated = {**latent, "samples": samples.repeat(times, 1, 1, 1)}
    if len(latent.get("noise_mask", ())) > 1:
        repeated["noise_mask"] = latent["noise_mask"].repeat(times, 1, 1, 1)
    if "batch_index" in latent:
        index = list(latent["batch_index"])
        apart = max(index) - min(index) + 1
        repeated["batch_index"] = [i + apart * turn for turn in range(times) for i in index]
    return repeated


def upscale(latent: Latent, width: int, height: int, method: str, crop: str) -> Latent:
    """Resize to a picture of `width` x `height` pixels. Both 0: unchanged. One 0: that side follows the other."""
    if width == 0 and height == 0:
        return latent
    rows, columns = latent["samples"].shape[-2:]
    if height:
        height = max(64, height)
    width = max(64, width or round(columns * height / rows))
    height = height or max(64, round(rows * width / columns))
    return {**latent, "samples": resize(latent["samples"], width // CELL, height // CELL, method, crop)}


def upscale_by(latent: Latent, factor: float, method: str) -> Latent:
    """Resize both sides by `factor`."""
    rows, columns = latent["samples"].shape[-2:]
    samples = resize(latent["samples"], round(columns * factor), round(rows * factor), method)
    return {**latent, "samples": samples}
