"""comfy.sample: noise, and denoising with names of samplers or with SAMPLER objects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....models import latents
from . import samplers
from .utils import reshape_mask

__all__ = [
    "cleanup_additional_models",
    "fix_empty_latent_channels",
    "prepare_mask",
    "prepare_noise",
    "sample",
    "sample_custom",
]


def prepare_noise(latent_image: Tensor, seed: int, noise_inds: Any = None) -> Tensor:
    """Standard normal noise, shaped like the latent; `noise_inds` selects the draws."""
    return latents.noise(seed, latent_image.shape, None if noise_inds is None else list(noise_inds))


def fix_empty_latent_channels(model: Any, latent_image: Tensor) -> Tensor:
    return latents.fix_channels(latent_image)


def prepare_mask(noise_mask: Tensor, shape: Any, device: Any) -> Tensor:
    """A mask [B, H, W] in the shape of a latent, on a device."""
    return reshape_mask(noise_mask, torch.Size(shape)).to(device)


def cleanup_additional_models(models: Any) -> None:
    """Does nothing: no additional models were loaded."""


def sample(
    model: Any,
    noise: Tensor,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent_image: Tensor,
    denoise: float = 1.0,
    disable_noise: bool = False,
    start_step: int | None = None,
    last_step: int | None = None,
    force_full_denoise: bool = False,
    noise_mask: Tensor | None = None,
    sigmas: Tensor | None = None,
    callback: Any = None,
    disable_pbar: bool = False,
    seed: int | None = None,
) -> Tensor:
    """The denoised latent [B, 16, h, w] on the CPU."""
    run = samplers.KSampler(model, steps, model.load_device, sampler_name, scheduler, denoise)
    if disable_noise:
        noise = torch.zeros_like(noise)
    return run.sample(
        noise, positive, negative, cfg, latent_image, start_step, last_step, force_full_denoise, noise_mask, sigmas,
        callback, disable_pbar, seed,
    )  # fmt: skip


def sample_custom(
    model: Any,
    noise: Tensor,
    cfg: float,
    sampler: Any,
    sigmas: Tensor,
    positive: Any,
    negative: Any,
    latent_image: Tensor,
    noise_mask: Tensor | None = None,
    callback: Any = None,
    disable_pbar: bool = False,
    seed: int | None = None,
) -> Tensor:
    """The denoised latent [B, 16, h, w] on the CPU."""
    return samplers.sample(
        model, noise, positive, negative, cfg, model.load_device, sampler, sigmas, None, latent_image, noise_mask,
        callback, disable_pbar, seed,
    )  # fmt: skip
