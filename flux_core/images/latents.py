"""The values of LATENT links: dicts with `samples` [B, C, h, w], perhaps `noise_mask` and `batch_index`.

Every function returns a new dict and keeps unknown keys. Independent of sampling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..limits import check_room
from ..models.latents import CELL, CHANNELS
from .resize import repeat_to_batch, resize

Latent = dict[str, Any]


COPIES = 6  # copies of a latent in a run, at least: start, noise, state, input and output of the network, image


def empty(width: int, height: int, batch: int, channels: int) -> Latent:
    """Zeros for an image of `width` x `height` pixels. Raises InputError if it does not fit into memory."""
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
    """The batch, repeated `times` times. Each repetition gets noise of its own."""
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
    """Resize to an image of `width` x `height` pixels. Both 0: unchanged. One 0: that side follows the other."""
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


def fitted(other: Latent, latent: Latent, repeated: bool = True) -> Tensor:
    """The samples of `other` in the size of `latent`, cropped, and (`repeated`) with its batch size."""
    samples, like = other["samples"], latent["samples"]
    if samples.shape[1:] != like.shape[1:]:
        samples = resize(samples, like.shape[-1], like.shape[-2], "bilinear", "center")
    return repeat_to_batch(samples, len(like)) if repeated else samples


def interpolate(a: Tensor, b: Tensor, share: float) -> Tensor:
    """`share` of a, the rest of b: directions and lengths of the channel vectors are averaged separately."""
    a_norm, b_norm = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    way = (a / a_norm).nan_to_num() * share + (b / b_norm).nan_to_num() * (1 - share)
    unit: Tensor = (way / way.norm(dim=1, keepdim=True)).nan_to_num()
    length: Tensor = a_norm * share + b_norm * (1 - share)
    return unit * length


def joined(latent: Latent, other: Latent) -> Latent:
    """Both batches in one; each keeps its noise."""
    samples = torch.cat((latent["samples"], fitted(other, latent, repeated=False)))
    index = [i for part in (latent, other) for i in part.get("batch_index", range(len(part["samples"])))]
    return {**latent, "samples": samples, "batch_index": index}


def crop(latent: Latent, width: int, height: int, x: int, y: int) -> Latent:
    """A part, given in pixels. At least 64 pixels are left, unless there are fewer."""
    samples = latent["samples"]
    left, top = (min(at // CELL, max(0, size - 8)) for at, size in ((x, samples.shape[3]), (y, samples.shape[2])))
    return {**latent, "samples": samples[..., top : top + height // CELL, left : left + width // CELL]}


def lay_over(latent: Latent, other: Latent, x: int, y: int, feather: int) -> Latent:
    """`other` over `latent`, its corner at (x, y), its sides faded in over `feather`; all three in pixels."""
    under = latent["samples"].clone()
    left, top, fade = x // CELL, y // CELL, feather // CELL
    over = other["samples"][..., : max(0, under.shape[2] - top), : max(0, under.shape[3] - left)]
    rows, columns = over.shape[-2:]
    cover = over.new_ones(rows, columns)
    for step in range(fade):  # slices, as ComfyUI's: empty or counted from the end if a side is too long
        share = 1.0 / fade * (step + 1)
        if top:
            cover[step : step + 1] *= share
        if top + rows < under.shape[2]:
            cover[rows - 1 - step : rows - step] *= share
        if left:
            cover[:, step : step + 1] *= share
        if left + columns < under.shape[3]:
            cover[:, columns - 1 - step : columns - step] *= share
    there = under[..., top : top + rows, left : left + columns]
    there.copy_(over * cover + there * (1 - cover))
    return {**latent, "samples": under}
