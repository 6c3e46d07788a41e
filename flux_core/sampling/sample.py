"""A sampling run: noise in, a solver that evaluates a guider, latent out. ComfyUI's four sampling nodes as functions.

Latents on links have the autoencoder's scale; inside a run they are scaled. Uses no files, no progress bars and no
nodes; a callback is called at every step and may stop the run by raising.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..conditioning.entries import Conditioning
from ..errors import InputError, NotFinite
from ..images import masks
from ..images.latents import Latent
from ..images.resize import repeat_to_batch
from ..models import latents
from .conditions import Canvas, Condition, equal_areas, prepare
from .controls import fit_controls, share_with_others
from .finite import Diverged, FiniteCheck
from .flow import Denoise
from .guider import CFGGuider, Denoiser, Guider, Model, Run, cached_evaluations
from .inpaint import Inpaint
from .schedule import between_steps, ksampler_schedule
from .solvers import Method, solver

# (step, D, x, steps): after the first evaluation of each step; D and x are scaled latents on the device
Callback = Callable[[int, Tensor, Tensor, int], None]


class Noise(Protocol):
    """The value of a NOISE link."""

    @property
    def seed(self) -> int: ...
    def generate_noise(self, latent: Latent) -> Tensor: ...


@dataclass(frozen=True)
class RandomNoise:
    seed: int

    def generate_noise(self, latent: Latent) -> Tensor:
        """Standard normal, shaped like the samples; `batch_index` picks the draws."""
        return latents.noise(self.seed, latent["samples"].shape, latent.get("batch_index"))


@dataclass(frozen=True)
class DisableNoise:
    seed: int = 0

    def generate_noise(self, latent: Latent) -> Tensor:
        return torch.zeros(latent["samples"].shape)


@dataclass(frozen=True)
class Sampler:
    """The value of a SAMPLER link: a solver's name and its options. Raises InputError for an unknown name."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        solver(self.name)

    @property
    def method(self) -> Method:
        return solver(self.name)


@torch.no_grad()
def sample(
    guider: Guider,
    sampler: Sampler,
    sigmas: Tensor,
    latent: Tensor,
    noise: Tensor,
    *,
    seed: int,
    noise_mask: Tensor | None = None,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One run. latent and noise [B, 16, h, w], fp32 on the CPU; noise_mask of any size, 1 = paint.

    Returns the latent at the last level and the last D seen, both in the autoencoder's scale on the CPU; (latent,
    None) when there are no levels. Raises what the callback raises, and NotFinite if numbers become NaN or infinite.
    """
    if len(sigmas) == 0:
        return latent, None
    if not (torch.isfinite(latent).all() and torch.isfinite(noise).all()):
        raise NotFinite("The latent that sampling starts from contains numbers that are not finite (NaN or infinity).")
    model, levels = guider.model, tuple(sigmas.tolist())
    latent, noise = latent.to(model.device, torch.float32), noise.to(model.device, torch.float32)
    if latent.any():  # an empty latent is not shifted
        latent = latents.process_in(latent)
    mask = None if noise_mask is None else _fit_mask(noise_mask, latent)

    batch, _, height, width = latent.shape
    given = model.device, model.dtype, mask, model.latent_channels
    canvas = Canvas(batch, height, width, model.in_channels, *given)
    conditions = [prepare(conditioning, canvas, model.sampling) for conditioning in guider.conditionings]
    _check_text(guider, model.dtype)
    equal_areas(conditions)
    share_with_others(conditions)
    conditions = fit_controls(conditions, canvas, model.sampling)
    watch = _Watch(callback, steps=len(levels) - 1)
    evaluated = sampler.method.evaluated(levels, model.sampling, **sampler.options)
    timesteps = tuple(model.sampling.timestep(level) for level in evaluated)
    run = Run(tuple(latent.shape), timesteps, tuple(c for each in conditions for c in each))
    try:
        with model.open(run) as network:
            cache = cached_evaluations(model)
            denoise: Denoise = Denoiser(guider, network, conditions, model.dtype, cache)
            if mask is not None:
                outside = _fresh_noise(noise, seed) if sampler.method.fresh_mask_noise else noise
                denoise = Inpaint(denoise, mask, outside, latent, levels, model.sampling, model.mask_function)
            x = levels[0] * noise + (1 - levels[0]) * latent
            x = sampler.method(denoise, x, levels, sampling=model.sampling, seed=seed, on_step=watch, **sampler.options)
            watch.finite.finish(x)
            if cache is not None:
                model.emit(cache.event())
    except Diverged as error:
        raise NotFinite(_why(error.step, watch.steps, model, conditions)) from None
    if levels[-1] < 1:  # at 1 there is no image to scale up
        x = x / (1 - levels[-1])
    seen = None if watch.seen is None else latents.process_out(watch.seen).cpu()
    return latents.process_out(x).cpu(), seen


class _Watch:
    """Passes steps to the callback, checks their numbers and keeps the last image."""

    def __init__(self, callback: Callback | None, steps: int) -> None:
        self.callback, self.steps = callback, steps
        self.finite = FiniteCheck()
        self.seen: Tensor | None = None

    def __call__(self, step: int, D: Tensor, x: Tensor) -> None:
        self.seen = D
        self.finite(D)
        if self.callback is not None:
            self.callback(min(step, self.steps - 1), D, x, self.steps)


LARGE = 1e5  # values of encoded text are below 1000 for all sensible prompt weights


def _check_text(guider: Guider, dtype: torch.dtype) -> None:
    """Raises NotFinite for encoded text with values that the number type has no room for.

    In float16 the blocks replace what is not finite, as ComfyUI's do; the image would be noise, without a message.
    """
    most = torch.finfo(dtype).max
    for conditioning in guider.conditionings:
        for tokens, values in conditioning:
            largest = max(float(text.abs().max()) for text in (tokens, values["pooled_output"]))
            if largest > most:
                raise NotFinite(
                    f"Before step 1: the encoded text has values up to {largest:.3g}, and {str(dtype)[6:]} ends at "
                    f"{most:.5g}. Remove very large weights from the prompt, or compute in another number type "
                    "(--dtype bf16, fp32)."
                )


def _why(step: int, steps: int, model: Model, conditions: Sequence[Sequence[Condition]]) -> str:
    """The probable cause of a run whose numbers are no longer finite."""
    what = f"At step {step} of {steps} the image's numbers stopped being finite (NaN or infinity); it would be black."
    text = max((float(c.context.abs().max()) for each in conditions for c in each), default=0.0)
    if not text < LARGE:
        return f"{what} The encoded text has values up to {text:.3g}: remove very large weights from the prompt."
    if (found := model.unsound()) is not None:
        return f"{what} {found}"
    if model.dtype is torch.float16:
        return f"{what} float16 ends at 65504: compute in bfloat16 or float32 (--dtype bf16, fp32)."
    return f"{what} Look for extreme values in the workflow: strengths of LoRAs, cfg, guidance, sampler options."


def _fit_mask(mask: Tensor, latent: Tensor) -> Tensor:
    fitted = masks.resize(mask.to(latent.device, torch.float32), *latent.shape[-2:])
    return repeat_to_batch(fitted, len(latent))


def _fresh_noise(noise: Tensor, seed: int) -> Tensor:
    return latents.noise((seed + 1) % 2**64, noise.shape).to(noise.device)


def sample_custom_advanced(
    noise: Noise,
    guider: Guider,
    sampler: Sampler,
    sigmas: Tensor,
    latent: Latent,
    callback: Callback | None = None,
) -> tuple[Latent, Latent]:
    """SamplerCustomAdvanced: (output, denoised_output), with the other keys of the latent."""
    latent = _start(latent, guider.model.latent_channels)
    samples, seen = sample(
        guider,
        sampler,
        sigmas,
        latent["samples"],
        noise.generate_noise(latent),
        seed=noise.seed,
        noise_mask=latent.get("noise_mask"),
        callback=callback,
    )
    output = {**latent, "samples": samples}
    return output, output if seen is None else {**latent, "samples": seen}


def sample_custom(
    model: Model,
    add_noise: bool,
    noise_seed: int,
    cfg: float,
    positive: Conditioning,
    negative: Conditioning,
    sampler: Sampler,
    sigmas: Tensor,
    latent: Latent,
    callback: Callback | None = None,
) -> tuple[Latent, Latent]:
    """SamplerCustom. Without added noise the seed still determines the noise that the sampler adds."""
    noise: Noise = RandomNoise(noise_seed) if add_noise else DisableNoise(noise_seed)
    guider = CFGGuider(model, positive, negative, cfg)
    return sample_custom_advanced(noise, guider, sampler, sigmas, latent, callback)


def ksampler(
    model: Model,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    denoise: float = 1.0,
    callback: Callback | None = None,
) -> Latent:
    """KSampler: schedule, noise and run in one."""
    sigmas = ksampler_schedule(sampler_name, scheduler, model.sampling, steps, denoise)
    sampler = Sampler(sampler_name)
    return sample_custom(model, True, seed, cfg, positive, negative, sampler, sigmas, latent, callback)[0]


def ksampler_advanced(
    model: Model,
    add_noise: bool,
    noise_seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    start_at_step: int = 0,
    end_at_step: int = 10_000,
    return_with_leftover_noise: bool = False,
    callback: Callback | None = None,
) -> Latent:
    """KSamplerAdvanced: some of the steps, with or without noise at the start and at the end."""
    sigmas = ksampler_schedule(sampler_name, scheduler, model.sampling, steps)
    sigmas = between_steps(sigmas, start_at_step, end_at_step, return_with_leftover_noise)
    sampler = Sampler(sampler_name)
    return sample_custom(model, add_noise, noise_seed, cfg, positive, negative, sampler, sigmas, latent, callback)[0]


def add_noise(noise: Noise, sigmas: Tensor, latent: Latent) -> Latent:
    """AddNoise: the latent at the level that lies |first - last| of `sigmas` above 0; unchanged without levels."""
    if len(sigmas) == 0:
        return latent
    level = abs(sigmas[0] - sigmas[-1]).item() if len(sigmas) > 1 else sigmas[0].item()
    latent = _start(latent)
    samples = latent["samples"]
    scaled = latents.process_in(samples) if samples.any() else samples
    noisy = latents.process_out(level * noise.generate_noise(latent) + (1 - level) * scaled)
    return {**latent, "samples": noisy}


def _start(latent: Latent, channels: int = latents.CHANNELS) -> Latent:
    samples = latent["samples"]
    if samples.ndim != 4:
        raise InputError(f"The latent is {tuple(samples.shape)}; FLUX samples pictures: [batch, 16, height, width].")
    return {**latent, "samples": latents.fix_channels(samples, channels).float()}
