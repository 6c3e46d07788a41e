"""comfy.samplers: names and objects of samplers and schedules, and denoising with them on our models.

A SAMPLER of a pack is a function of `model(x, sigma) -> image`. It also works on our models, since our own solvers need
nothing else from a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .....nodes.guiders import SAMPLERS as _SAMPLERS
from .....nodes.sigmas import SCHEDULERS as _SCHEDULERS
from ....sampling import sample as engine_sample
from ....sampling import schedule
from ....sampling.guider import CFGGuider as EngineGuider
from ....sampling.sample import Sampler as EngineSampler
from ...engine import current
from ...guidance import PackGuider, as_entries, calc_cond_batch, cfg_function, sampling_function
from ...offered_modules import NotOffered
from ...partly_offered import PartlyOffered
from ...sampler_functions import PackSampler, SolverFunction
from . import model_sampling

__all__ = [
    "CFGGuider",
    "KSAMPLER",
    "KSAMPLER_NAMES",
    "KSampler",
    "SAMPLER_NAMES",
    "SCHEDULER_HANDLERS",
    "SCHEDULER_NAMES",
    "Sampler",
    "SchedulerHandler",
    "beta_scheduler",
    "calc_cond_batch",
    "calculate_sigmas",
    "cfg_function",
    "ddim_scheduler",
    "kl_optimal_scheduler",
    "ksampler",
    "linear_quadratic_schedule",
    "normal_scheduler",
    "sample",
    "sampler_object",
    "sampling_function",
    "simple_scheduler",
]

COMPUTED = ("k_diffusion_sampling",)


def __getattr__(name: str) -> Any:
    """The module of sampler functions, to which packs add theirs."""
    if name == "k_diffusion_sampling":
        return current().absent("comfy.k_diffusion.sampling")
    raise AttributeError(name)


OWN_SAMPLERS, OWN_SCHEDULERS = frozenset(_SAMPLERS), frozenset(_SCHEDULERS)
SAMPLER_NAMES = list(_SAMPLERS)  # packs add to these lists
SCHEDULER_NAMES = list(_SCHEDULERS)
KSAMPLER_NAMES = [name for name in SAMPLER_NAMES if name not in ("ddim", "uni_pc", "uni_pc_bh2")]


# -- schedules ---------------------------------------------------------------------------------------------------------


def _by_name(name: str, sampling: Any, steps: int, **options: Any) -> Tensor:
    return schedule.schedule(name, model_sampling.engine_sampling(sampling), steps)


def simple_scheduler(model_sampling: Any, steps: int) -> Tensor:
    return _by_name("simple", model_sampling, steps)


def ddim_scheduler(model_sampling: Any, steps: int) -> Tensor:
    return _by_name("ddim_uniform", model_sampling, steps)


def normal_scheduler(model_sampling: Any, steps: int, sgm: bool = False, floor: bool = False) -> Tensor:
    return _by_name("sgm_uniform" if sgm else "normal", model_sampling, steps)


def beta_scheduler(sampling: Any, steps: int, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    return schedule.beta(model_sampling.engine_sampling(sampling), steps, alpha, beta)


def linear_quadratic_schedule(
    sampling: Any, steps: int, threshold_noise: float = 0.025, linear_steps: int | None = None
) -> Tensor:
    return schedule.linear_quadratic(model_sampling.engine_sampling(sampling), steps, threshold_noise)


def kl_optimal_scheduler(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Equal strides in the arc tangent of the level."""
    share = torch.arange(n, dtype=torch.float) / max(n - 1, 1)
    angles = share * torch.atan(torch.tensor(sigma_min)) + (1 - share) * torch.atan(torch.tensor(sigma_max))
    return torch.cat((angles.tan(), torch.zeros(1)))


class SchedulerHandler(NamedTuple):
    handler: Callable[..., Tensor]
    use_ms: bool = True  # called with (model_sampling, steps), else with (n, sigma_min, sigma_max)


SCHEDULER_HANDLERS = {name: SchedulerHandler(partial(_by_name, name)) for name in SCHEDULER_NAMES}


def calculate_sigmas(model_sampling: Any, scheduler_name: str, steps: int) -> Tensor:
    """The levels of a schedule [steps + 1]. Names that packs have added to SCHEDULER_HANDLERS are supported."""
    if scheduler_name not in SCHEDULER_HANDLERS:
        return _by_name(scheduler_name, model_sampling, steps)  # its error lists the names
    handler = SCHEDULER_HANDLERS[scheduler_name]
    if handler.use_ms:
        return handler.handler(model_sampling, steps)
    bounds = {"sigma_min": float(model_sampling.sigma_min), "sigma_max": float(model_sampling.sigma_max)}
    return handler.handler(n=steps, **bounds)


# -- samplers ----------------------------------------------------------------------------------------------------------


class Sampler(metaclass=PartlyOffered):
    """The base of the value of a SAMPLER link."""

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        raise NotOffered(f"{type(self).__name__}.sample")

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        return bool(sigmas[0] >= float(model_wrap.inner_model.model_sampling.sigma_max))


class KSAMPLER(Sampler):
    """A sampler as a function: sampler_function(model, x, sigmas, extra_args, callback, disable, **extra_options)."""

    def __init__(
        self,
        sampler_function: Callable[..., Tensor],
        extra_options: Mapping[str, Any] | None = None,
        inpaint_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.sampler_function = sampler_function
        self.extra_options = dict(extra_options or {})
        self.inpaint_options = dict(inpaint_options or {})

    def engine_sampler(self) -> Any:
        """The sampler for our engine: one of our own, or the pack's function on our models."""
        own = self.sampler_function
        if isinstance(own, SolverFunction) and not self.inpaint_options:
            return EngineSampler(own.name, {**own.options, **self.extra_options})
        name = getattr(own, "__name__", type(own).__name__)
        return PackSampler(name, {}, self)


def sampler_object(name: str) -> KSAMPLER:
    """One of ours by its name, or one that a pack has added. Raises InputError for an unknown name."""
    return ksampler(name)


def ksampler(sampler_name: str, extra_options: Any = None, inpaint_options: Any = None) -> KSAMPLER:
    """`sampler_object`, with options for its function."""
    added = vars(current().absent("comfy.k_diffusion.sampling")).get(f"sample_{sampler_name}")
    function = added or SolverFunction(EngineSampler(sampler_name))
    return KSAMPLER(function, extra_options, inpaint_options)


# -- denoising ---------------------------------------------------------------------------------------------------------


class CFGGuider(metaclass=PartlyOffered):
    """A model with a prompt and a negative prompt. Packs with other guidance override `predict_noise`."""

    inner_model: Any = None  # while a prediction is computed

    def __init__(self, model_patcher: Any) -> None:
        self.model_patcher = model_patcher
        self.model_options = model_patcher.model_options
        self.original_conds: dict[str, Any] = {}
        self.conds: dict[str, Any] = {}
        self.cfg = 1.0

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.inner_set_conds({"positive": positive, "negative": negative})

    def inner_set_conds(self, conds: Mapping[str, Any]) -> None:
        self.original_conds = {name: as_entries(cond) for name, cond in conds.items()}

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def predict_noise(self, x: Tensor, timestep: Any, model_options: Any = None, seed: int | None = None) -> Tensor:
        """The denoised latent. Packs override this method; this one uses cfg."""
        positive, negative = self.conds.get("positive"), self.conds.get("negative")
        options = self.model_options if model_options is None else model_options
        return sampling_function(self.inner_model, x, timestep, negative, positive, self.cfg, options, seed)

    def engine_guider(self) -> EngineGuider | PackGuider:
        """The guider for our engine. Raises NotOffered for a guider that overrides the whole sampling."""
        for name in ("inner_sample", "outer_sample"):
            if hasattr(type(self), name):
                raise NotOffered(f"{type(self).__name__}.{name} (a guider that calls ComfyUI's own network)")
        if type(self).predict_noise is not CFGGuider.predict_noise:
            handle, conds = self.model_patcher.handle(), self.original_conds
            levels = model_sampling.sampling_object(handle.sampling)
            return PackGuider(handle, tuple(conds), tuple(conds.values()), self, levels)
        positive = self.original_conds.get("positive", [])
        negative = self.original_conds.get("negative", positive)
        return EngineGuider(self.model_patcher.handle(), positive, negative, self.cfg)

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        """The latent at the last level."""
        guider = self.engine_guider()
        return _run(guider, noise, latent_image, sampler, sigmas, denoise_mask, callback, seed)


class BasicGuider(CFGGuider):
    """comfy_extras.nodes_custom_sampler.Guider_Basic: one conditioning, without cfg."""

    def set_conds(self, positive: Any, negative: Any = None) -> None:
        self.inner_set_conds({"positive": positive})


def _run(
    guider: EngineGuider | PackGuider,
    noise: Tensor,
    latent: Tensor,
    sampler: Any,
    sigmas: Tensor,
    mask: Tensor | None,
    callback: Any,
    seed: int | None,
) -> Tensor:
    sampler = sampler.engine_sampler() if isinstance(sampler, KSAMPLER) else sampler
    watch = callback or _report
    return engine_sample.sample(
        guider, sampler, sigmas.cpu(), latent, noise, seed=int(seed or 0), noise_mask=mask, callback=watch
    )[0]


def _report(step: int, D: Tensor, x: Tensor, steps: int) -> None:
    from ..latent_preview import LatentPreviewer

    current().progress(step + 1, steps, lambda: LatentPreviewer().decode_latent_to_preview(D))


def sample(
    model: Any,
    noise: Tensor,
    positive: Any,
    negative: Any,
    cfg: float,
    device: Any,
    sampler: Any,
    sigmas: Tensor,
    model_options: Any = None,
    latent_image: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    callback: Any = None,
    disable_pbar: bool = False,
    seed: int | None = None,
) -> Tensor:
    """Denoise with a sampler along levels."""
    latent = torch.zeros_like(noise) if latent_image is None else latent_image
    guider = EngineGuider(model.handle(), as_entries(positive), as_entries(negative), cfg)
    return _run(guider, noise, latent, sampler, sigmas, denoise_mask, callback, seed)


class KSampler(metaclass=PartlyOffered):
    """Sampler and schedule by their names, for a number of steps of one model."""

    SAMPLERS = SAMPLER_NAMES
    SCHEDULERS = SCHEDULER_NAMES
    DISCARD_PENULTIMATE_SIGMA_SAMPLERS = {"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"}

    def __init__(
        self,
        model: Any,
        steps: int,
        device: Any = None,
        sampler: str | None = None,
        scheduler: str | None = None,
        denoise: float | None = None,
        model_options: Any = None,
    ) -> None:
        self.model, self.device = model, device
        self.sampler = sampler or "euler"
        self.scheduler = scheduler or "simple"
        self.model_options = model_options or {}
        self.set_steps(steps, denoise)

    def calculate_sigmas(self, steps: int) -> Tensor:
        sampling = self.model.get_model_object("model_sampling")
        if self.scheduler not in OWN_SCHEDULERS:
            return calculate_sigmas(sampling, self.scheduler, steps)
        return schedule.ksampler_schedule(self.sampler, self.scheduler, model_sampling.engine_sampling(sampling), steps)

    def set_steps(self, steps: int, denoise: float | None = None) -> None:
        """`denoise` below 1 uses the last steps of a longer schedule."""
        self.steps, self.denoise = steps, denoise
        if denoise is None or denoise > 0.9999:
            self.sigmas = self.calculate_sigmas(steps)
        elif denoise <= 0.0:
            self.sigmas = torch.FloatTensor([])
        else:
            self.sigmas = self.calculate_sigmas(int(steps / denoise))[-(steps + 1) :]

    def sample(
        self,
        noise: Tensor,
        positive: Any,
        negative: Any,
        cfg: float,
        latent_image: Tensor | None = None,
        start_step: int | None = None,
        last_step: int | None = None,
        force_full_denoise: bool = False,
        denoise_mask: Tensor | None = None,
        sigmas: Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        """The latent after the steps from `start_step` to `last_step`."""
        levels = self.sigmas if sigmas is None else sigmas
        end = 10_000 if last_step is None else last_step
        levels = schedule.between_steps(levels, start_step or 0, end, not force_full_denoise)
        latent = torch.zeros_like(noise) if latent_image is None else latent_image
        if len(levels) == 0:
            return latent
        sampler = sampler_object(self.sampler)
        return sample(
            self.model, noise, positive, negative, cfg, self.device, sampler, levels, self.model_options, latent,
            denoise_mask, callback, disable_pbar, seed,
        )  # fmt: skip
