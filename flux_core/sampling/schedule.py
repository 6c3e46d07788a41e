"""Noise schedules: a model's table of noise levels, nine ways to choose steps from it, and how to split the result.

A sigma is the share of noise in a latent, x = sigma * noise + (1 - sigma) * image, from 1 down to 0. Schedules are
1-D fp32 tensors on the CPU, one longer than the number of steps. Uses no latents, no solver and no network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError, SluiceError

PATCH_AREA = 256  # pixels under one token: (2 x 2 cells) x (8 x 8 pixels)
BASE_TOKENS, MAX_TOKENS = 256, 4096  # image sizes (in tokens) at which `base_shift` and `max_shift` hold

Time = TypeVar("Time", float, Tensor)


class _Flow:
    """The common part of both tables. `sigma(t)` maps an unshifted time in (0, 1] to the level used in training."""

    entries: int

    def sigma(self, t: Time) -> Time:
        raise NotImplementedError

    def timestep(self, sigma: float) -> float:
        """The network's timestep for a noise level."""
        return sigma

    @cached_property
    def table(self) -> Tensor:
        """All levels in rising order, fp32 [entries]; the last is 1."""
        return self.sigma(torch.arange(1, self.entries + 1) / self.entries)

    @property
    def sigma_min(self) -> float:
        return self.table[0].item()

    @property
    def sigma_max(self) -> float:
        return self.table[-1].item()

    def percent_to_sigma(self, percent: float) -> float:
        """The level at a share of the way from pure noise (0) to the image (1)."""
        if percent <= 0:
            return 1.0
        return 0.0 if percent >= 1 else self.sigma(1.0 - percent)


@dataclass(frozen=True)
class FluxShift(_Flow):
    """FLUX.1-dev and its variants: exp(mu) / (exp(mu) + 1/t - 1), 10 000 levels (Esser et al. 2024, section 5.3.2)."""

    mu: float = 1.15
    entries = 10_000

    @classmethod
    def for_size(cls, width: int, height: int, max_shift: float = 1.15, base_shift: float = 0.5) -> FluxShift:
        """mu grows linearly with the number of tokens of a width x height image (in pixels)."""
        slope = (max_shift - base_shift) / (MAX_TOKENS - BASE_TOKENS)
        return cls(width * height / PATCH_AREA * slope + base_shift - slope * BASE_TOKENS)

    def sigma(self, t: Time) -> Time:
        return math.exp(self.mu) / (math.exp(self.mu) + (1 / t - 1))


@dataclass(frozen=True)
class LinearFlow(_Flow):
    """FLUX.1-schnell: shift t / (1 + (shift - 1) t), 1000 levels; at shift 1 sigma is t itself.

    `multiplier`: the network's timestep is the level times this, 1 for FLUX.1, 1000 for Stable Diffusion 3.
    """

    shift: float = 1.0
    multiplier: float = 1.0
    entries = 1000

    def sigma(self, t: Time) -> Time:
        return t if self.shift == 1 else self.shift * t / (1 + (self.shift - 1) * t)

    def timestep(self, sigma: float) -> float:
        return sigma * self.multiplier


Sampling = FluxShift | LinearFlow


def default_sampling(guidance_embedded: bool) -> Sampling:
    """The sampling of a checkpoint unless a node changes it: models like dev have a guidance embedding, schnell has
    none.
    """
    return FluxShift() if guidance_embedded else LinearFlow()


# Nine schedules. Each takes the model's sampling and the number of steps.


def simple(sampling: Sampling, steps: int) -> Tensor:
    """Every (entries / steps)-th level of the table, from the top."""
    table, stride = sampling.table, len(sampling.table) / steps
    return torch.tensor([table[-(1 + int(j * stride))] for j in range(steps)] + [0.0])


def sgm_uniform(sampling: Sampling, steps: int) -> Tensor:
    """Equal strides in time, shifted once more; the smallest level is replaced by 0."""
    return _end(sampling.sigma(torch.linspace(sampling.sigma_max, sampling.sigma_min, steps + 1)[:-1]))


def normal(sampling: Sampling, steps: int) -> Tensor:
    """Equal strides in time, both ends included, shifted once more, then 0."""
    return _end(sampling.sigma(torch.linspace(sampling.sigma_max, sampling.sigma_min, steps)))


def karras(sampling: Sampling, steps: int) -> Tensor:
    return karras_between(steps, sampling.sigma_max, sampling.sigma_min)


def exponential(sampling: Sampling, steps: int) -> Tensor:
    return exponential_between(steps, sampling.sigma_max, sampling.sigma_min)


def ddim_uniform(sampling: Sampling, steps: int) -> Tensor:
    """A whole-numbered stride counted from the bottom: starts below 1, and may give one step more."""
    stride = max(len(sampling.table) // steps, 1)
    return _end(sampling.table[1::stride].flip(0))


def beta(sampling: Sampling, steps: int, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Quantiles of a Beta distribution: dense at both ends (Lee et al. 2024, arXiv 2407.12173).

    Equal levels are used once, so there may be fewer than `steps`. Needs scipy. Raises InputError for parameters
    without a distribution.
    """
    if alpha <= 0 or beta <= 0:
        raise InputError(f"A Beta distribution needs alpha and beta above 0; they are {alpha} and {beta}.")
    try:
        from scipy.stats import beta as distribution
    except ModuleNotFoundError as missing:
        raise SluiceError("The beta schedule needs the package scipy: pip install scipy") from missing
    last = len(sampling.table) - 1
    quantiles = distribution.ppf([1 - j / steps for j in range(steps)], alpha, beta)
    indices = dict.fromkeys(round(quantile * last) for quantile in quantiles.tolist())
    return _end(sampling.table[list(indices)])


def linear_quadratic(sampling: Sampling, steps: int, threshold: float = 0.025) -> Tensor:
    """Half of the steps linear down to 1 - threshold, then quadratic (Genmo's Mochi)."""
    if steps == 1:
        return torch.tensor([sampling.sigma_max, 0.0])
    line = steps // 2
    curve = steps - line
    excess = line - threshold * steps
    q = excess / (line * curve**2)
    slope = threshold / line - 2 * excess / curve**2
    done = [i * threshold / line for i in range(line)]
    done += [q * i**2 + slope * i + q * line**2 for i in range(line, steps)]
    return torch.tensor([1 - share for share in done] + [0.0]) * sampling.sigma_max


def kl_optimal(sampling: Sampling, steps: int) -> Tensor:
    """Equal strides in arctan(sigma) (Sabour et al. 2024, "Align Your Steps", appendix A)."""
    angles = torch.linspace(math.atan(sampling.sigma_max), math.atan(sampling.sigma_min), steps)
    return _end(angles.tan())


SCHEDULES: dict[str, Callable[[Sampling, int], Tensor]] = {
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "karras": karras,
    "exponential": exponential,
    "ddim_uniform": ddim_uniform,
    "beta": beta,
    "normal": normal,
    "linear_quadratic": linear_quadratic,
    "kl_optimal": kl_optimal,
}


def karras_between(steps: int, sigma_max: float, sigma_min: float, rho: float = 7.0) -> Tensor:
    """Equal strides in sigma^(1/rho), then 0 (Karras et al. 2022, equation 5). Raises InputError for rho 0."""
    if rho == 0:
        raise InputError("A Karras schedule needs a rho above 0; 7 is usual, 1 makes equal strides.")
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _end((top + torch.linspace(0, 1, steps) * (bottom - top)) ** rho)


def exponential_between(steps: int, sigma_max: float, sigma_min: float) -> Tensor:
    """Equal strides in log sigma, then 0. Raises InputError unless both ends are above 0."""
    if min(sigma_max, sigma_min) <= 0:
        raise InputError(f"An exponential schedule cannot reach 0: sigma_max {sigma_max}, sigma_min {sigma_min}.")
    return _end(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps).exp())


def _end(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


# Functions that nodes call for a schedule.


def schedule(name: str, sampling: Sampling, steps: int) -> Tensor:
    """The named schedule. Raises InputError for a name outside SCHEDULES, or for fewer than one step."""
    if name not in SCHEDULES:
        raise InputError(f"There is no scheduler named {name!r}. Choose one of: {', '.join(SCHEDULES)}.")
    if steps < 1:
        raise InputError(f"A schedule needs at least 1 step, but {steps} were requested.")
    return SCHEDULES[name](sampling, steps)


def basic_schedule(name: str, sampling: Sampling, steps: int, denoise: float = 1.0) -> Tensor:
    """BasicScheduler: the last `steps` steps of a schedule of steps / denoise. Empty for denoise 0."""
    if denoise <= 0:
        return torch.empty(0)
    whole = steps if denoise >= 1 else int(steps / denoise)
    return schedule(name, sampling, whole)[-(steps + 1) :]


# These work best with a long last step: one more step is planned, and the level before 0 is removed.
DROPS_PENULTIMATE = frozenset({"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"})


def ksampler_schedule(sampler_name: str, name: str, sampling: Sampling, steps: int, denoise: float = 1.0) -> Tensor:
    """KSampler: as BasicScheduler, but with ddim_uniform's extra step and DROPS_PENULTIMATE."""
    plan = partial(_without_penultimate if sampler_name in DROPS_PENULTIMATE else schedule, name, sampling)
    if denoise > 0.9999:
        return plan(steps)
    if denoise <= 0:
        return torch.empty(0)
    return plan(int(steps / denoise))[-(steps + 1) :]


def _without_penultimate(name: str, sampling: Sampling, steps: int) -> Tensor:
    sigmas = schedule(name, sampling, steps + 1)
    return torch.cat([sigmas[:-2], sigmas[-1:]])


def between_steps(sigmas: Tensor, start: int, end: int, leftover_noise: bool) -> Tensor:
    """KSamplerAdvanced: steps `start` to `end` of a schedule. Empty if `start` is not among them.

    Stopping early either leaves the noise in, so that another sampler can continue, or makes the last step end at 0.
    """
    if end < len(sigmas) - 1:
        sigmas = sigmas[: end + 1]
        if not leftover_noise:
            sigmas = set_last(sigmas, 0.0)
    return sigmas[start:] if start < len(sigmas) - 1 else sigmas[:0]


def split(sigmas: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The schedule up to `step` and from it on; the level at `step` is in both."""
    return sigmas[: step + 1], sigmas[step:]


def split_denoise(sigmas: Tensor, denoise: float) -> tuple[Tensor, Tensor]:
    """Split so that the second part holds the share `denoise` of the steps."""
    low = round(max(len(sigmas) - 1, 0) * denoise)
    return sigmas[:-low], sigmas[-(low + 1) :]


def flip(sigmas: Tensor) -> Tensor:
    """The schedule reversed, from image to noise. A schedule cannot start at 0, so 0 becomes 0.0001."""
    turned = sigmas.flip(0)
    return set_first(turned, 0.0001) if len(turned) and turned[0] == 0 else turned


def set_first(sigmas: Tensor, sigma: float) -> Tensor:
    return torch.cat([sigmas.new_tensor([sigma]), sigmas[1:]])


def set_last(sigmas: Tensor, sigma: float) -> Tensor:
    return torch.cat([sigmas[:-1], sigmas.new_tensor([sigma])])
