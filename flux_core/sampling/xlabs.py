"""Sampling as in XLabs' nodes for FLUX.1 (x-flux-comfyui): Euler steps, with guidance from a given step on.

XLabs draw their noise in bfloat16 on the device; here it is drawn as for all samplers, so images differ in their noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..conditioning.controls import ControlNetwork, ControlUse, with_control
from ..conditioning.entries import Conditioning, with_values
from ..images.latents import Latent
from ..images.resize import resize
from ..models import latents
from .guider import BasicGuider, CFGGuider, Guider, Model
from .sample import Callback, RandomNoise, Sampler, sample
from .schedule import FluxShift

GUIDANCE = 1.0  # if the conditioning has no guidance


@dataclass(frozen=True)
class ControlCondition:
    """A ControlNet with its image [B, H, W, C]; a `ControlNetCondition` link has a list of them. start, end: shares of
    the steps.
    """

    network: ControlNetwork
    picture: Tensor
    strength: float
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class XlabsRun:
    """The settings of the sampler. guided_from: the first step with guidance; picture_strength: how much noise a latent
    with an image gets, 1 for all of it; share: of the steps that are run.
    """

    seed: int
    steps: int
    guided_from: int
    cfg: float
    picture_strength: float = 0.0
    share: float = 1.0


def sample_xlabs(
    model: Model,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    run: XlabsRun,
    controls: Sequence[ControlCondition] = (),
    callback: Callback | None = None,
) -> Latent:
    """One run; only the first entry of each conditioning is used."""
    samples = latents.fix_channels(latent["samples"]).float()
    height, width = samples.shape[-2:]
    levels = xlabs_levels(run.steps, latents.patches(height) * latents.patches(width))
    if run.share <= 0.99:
        levels = levels[: int(len(levels) * run.share)]
    count = len(levels)
    if samples.any():
        levels = levels[min(max(int((1 - min(max(run.picture_strength, 0.0), 1.0)) * count), 0), count - 1) :]
    guidance = positive[0][1].get("guidance", GUIDANCE)
    prompts = [with_values([prompt[0]], guidance=guidance) for prompt in (positive, negative)]
    prompts[1] = with_values(prompts[1], shows_none=True)
    for control in controls:
        prompts = with_control(prompts, _use(control, levels, count, height, width), to_others=False)
    noise = RandomNoise(run.seed).generate_noise({"samples": samples})
    guided = min(max(run.guided_from, 0), len(levels) - 1)
    stages: list[tuple[Guider, list[float]]] = [
        (BasicGuider(model, prompts[0]), levels[: guided + 1]),
        (CFGGuider(model, prompts[0], prompts[1], run.cfg), levels[guided:]),
    ]
    done, total = 0, len(levels) - 1
    for guider, part in stages:
        if len(part) < 2:
            continue
        told = None if callback is None else _shifted(callback, done, total)
        sigmas = torch.tensor(part)
        samples, _ = sample(guider, Sampler("euler"), sigmas, samples, noise, seed=run.seed, callback=told)
        noise, done = torch.zeros_like(noise), done + len(part) - 1
    if done and levels[-1] > 0:  # a noisy latent is left unchanged
        samples = latents.process_out(latents.process_in(samples) * (1 - levels[-1]))
    return {"samples": samples}


def xlabs_levels(steps: int, tokens: int) -> list[float]:
    """steps + 1 noise levels from 1 to 0, shifted by the number of image tokens."""
    side = 2 * latents.CELL  # pixels along one side of a token
    shifted: list[float] = FluxShift.for_size(side * tokens, side).sigma(torch.linspace(1, 0, steps + 1)).tolist()
    return shifted


def _use(control: ControlCondition, levels: Sequence[float], count: int, height: int, width: int) -> ControlUse:
    """The image stretched to the latent's size, and the range of steps as noise levels, including the last one."""
    size = width * latents.CELL, height * latents.CELL
    picture = resize(control.picture[..., :3].movedim(-1, 1), *size, "bicubic").movedim(1, -1)
    first, last = (int(share * count) for share in (control.start, control.end))
    bounds = (levels[first] if first < len(levels) else -1.0, levels[min(last, len(levels) - 1)])
    return ControlUse(control.network, picture, control.strength, levels=bounds)


def _shifted(callback: Callback, by: int, total: int) -> Callback:
    def told(step: int, D: Tensor, x: Tensor, _: int) -> Any:
        return callback(step + by, D, x, total)

    return told
