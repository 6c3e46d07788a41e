"""Batches joined from several, and divided into batches of another size. All items get the size of the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.latents import CELL
from .latents import Latent, fitted
from .masks import layers
from .resize import repeat_to_batch, resize, resize_image


def join_images(images: Sequence[Tensor]) -> Tensor:
    """Images [B, H, W, C] in one batch; if some have alpha, those without it become opaque."""
    channels = max(image.shape[-1] for image in images)
    opaque = [F.pad(image, (0, channels - image.shape[-1]), value=1.0) for image in images]
    height, width = opaque[0].shape[1:3]
    same = [
        image if image.shape[1:3] == (height, width) else resize_image(image, width, height, "bilinear", "center")
        for image in opaque
    ]
    return torch.cat(same)


def join_masks(masks: Sequence[Tensor]) -> Tensor:
    """Masks [B, H, W] in one batch."""
    height, width = masks[0].shape[-2:]
    same = [
        mask if mask.shape[-2:] == (height, width) else resize(layers(mask), width, height, "bilinear", "center")[:, 0]
        for mask in masks
    ]
    return torch.cat(same)


def join_latents(latents: Sequence[Latent]) -> Latent:
    """Latents in one batch; each keeps its noise."""
    index = [i for latent in latents for i in _index(latent, 0)]
    samples = [fitted(latent, latents[0], repeated=False) for latent in latents]
    return {**latents[0], "samples": torch.cat(samples), "batch_index": index}


def join(things: Sequence[Any]) -> Any:
    """Latents, images or masks in one batch; all have the type of the first."""
    if isinstance(things[0], dict):
        return join_latents(things)
    return join_images(things) if things[0].ndim == 4 else join_masks(things)


def cut_images(images: Sequence[Tensor], size: int) -> list[Tensor]:
    """All images of a list of batches, in batches of `size`; the last may be smaller."""
    singles = [batch[at : at + 1] for batch in images for at in range(len(batch))]
    return [torch.cat(singles[at : at + size]) for at in range(0, len(singles), size)]


def cut_latents(latents: Sequence[Latent], size: int) -> list[Latent]:
    """All latents of a list of batches, in batches of `size`; those of another size begin a batch of their own.

    Each keeps its noise and its mask; a mask that is 1 everywhere is left out.
    """
    made: list[Latent] = []
    for samples, mask, index in _runs(latents):
        for at in range(0, len(samples), size):
            part = slice(at, at + size)
            latent: Latent = {"samples": samples[part], "batch_index": index[part]}
            if mask[part].mean() != 1.0:
                latent["noise_mask"] = mask[part]
            made.append(latent)
    return made


def _runs(latents: Sequence[Latent]) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Latents of equal size that follow one another, joined: samples, masks [B, 1, 8h, 8w], numbers of their noise."""
    parts: list[tuple[Tensor, Tensor, list[int]]] = []
    passed = 0
    for latent in latents:
        samples = latent["samples"]
        if parts and samples.shape[-2:] != parts[0][0].shape[-2:]:
            yield _together(parts)
            parts = []
        parts.append((samples, _mask(latent), _index(latent, passed)))
        passed += len(parts[-1][2])
    if parts:
        yield _together(parts)


def _together(parts: Sequence[tuple[Tensor, Tensor, list[int]]]) -> tuple[Tensor, Tensor, list[int]]:
    samples, masks, index = zip(*parts, strict=True)
    return torch.cat(samples), torch.cat(masks), [i for part in index for i in part]


def _mask(latent: Latent) -> Tensor:
    samples = latent["samples"]
    size = samples.shape[-2] * CELL, samples.shape[-1] * CELL
    if "noise_mask" not in latent:
        return torch.ones(len(samples), 1, *size)
    mask = layers(latent["noise_mask"])
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask, size=size, mode="bilinear")
    return repeat_to_batch(mask, len(samples))


def _index(latent: Latent, start: int) -> list[int]:
    return list(latent.get("batch_index", range(start, start + len(latent["samples"]))))
