"""All 42 samplers by ComfyUI's names, in its order, and the needs of each besides the denoiser.

A name is one algorithm with fixed options. Every entry has the same signature (`Method.__call__`); this file decides
which noise a solver gets and whether it can start from pure noise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from . import cfg_plus_plus, dpm_solver, exponential, multistep, one_step, step_noise, stochastic_adams, unipc
from .flow import Denoise, Levels, OnStep, Sigmas, StepNoise, each_step, ignore
from .schedule import Sampling

FIRST_PERCENT = 1e-4  # where solvers in lambda start instead of at pure noise


@dataclass(frozen=True)
class Method:
    """A solver and its needs.

    levels       the noise levels at which it evaluates
    noise        how it draws the noise that it adds, if it adds any
    below_one    it uses lambda, which is infinite at s = 1: such levels are moved down
    sampling     it needs the model's sampling for its levels
    fresh_mask_noise  outside an inpainting mask it adds independent noise, not the initial noise
    """

    function: Callable[..., Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    noise: Callable[[Tensor, int, Sigmas], StepNoise] | None = None
    levels: Levels = each_step
    below_one: bool = False
    sampling: bool = False
    fresh_mask_noise: bool = False

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Sequence[float] | Tensor,
        *,
        sampling: Sampling,
        seed: int,
        on_step: OnStep = ignore,
        noise: StepNoise | None = None,
        **options: Any,
    ) -> Tensor:
        """Solve from sigmas[0] to sigmas[-1]: x is the state at the first level, the result that at the last.

        `noise` replaces the draws from `seed`. Raises InputError for an option that the algorithm does not have.
        """
        unknown = options.keys() - inspect.signature(self.function).parameters
        if unknown:
            raise InputError(f"The sampler {self.function.__name__} has no option named {', '.join(sorted(unknown))}.")
        if len(sigmas) < 2:
            return x
        levels = self._levels(sigmas, sampling)
        needs: dict[str, Any] = {"on_step": on_step}
        if self.noise is not None:
            needs["noise"] = noise or self.noise(x, seed, [float(s) for s in sigmas])
        if self.sampling:
            needs["sampling"] = sampling
        return self.function(denoise, x, levels, **{**self.options, **options, **needs})

    def evaluated(self, sigmas: Sequence[float] | Tensor, sampling: Sampling, **options: Any) -> tuple[float, ...]:
        """The noise levels at which a run evaluates `denoise`, each once, in fp32, as far as they are known in
        advance.
        """
        if len(sigmas) < 2:
            return ()
        levels = self.levels(self._levels(sigmas, sampling), **{**self.options, **options})
        return tuple(dict.fromkeys(torch.tensor(level).item() for level in levels))

    def _levels(self, sigmas: Sequence[float] | Tensor, sampling: Sampling) -> list[float]:
        """The levels for the function: without steps of length zero, and below 1 where required."""
        levels = [float(s) for s in sigmas]
        if self.below_one:
            top = torch.tensor(sampling.percent_to_sigma(FIRST_PERCENT)).item()  # fp32, like all levels
            levels = [top if s >= 1 else s for s in levels]
        return _distinct(levels)


def _distinct(levels: Sequence[float]) -> list[float]:
    """The levels without steps of length zero: formulas divide by the length of a step."""
    return [*levels[:1]] + [s for before, s in zip(levels, levels[1:], strict=False) if s != before]


_PLAIN, _PATH, _DEVICE_PATH = step_noise.plain, step_noise.brownian, step_noise.brownian_on_device

SOLVERS: dict[str, Method] = {
    "euler": Method(one_step.euler),
    "euler_cfg_pp": Method(cfg_plus_plus.euler_ancestral_cfg_pp),
    "euler_ancestral": Method(one_step.euler_ancestral, noise=_PLAIN),
    "euler_ancestral_cfg_pp": Method(cfg_plus_plus.euler_ancestral_cfg_pp, noise=_PLAIN),
    "heun": Method(one_step.heun, levels=one_step.heun_levels),
    "heunpp2": Method(one_step.heunpp2),
    "dpm_2": Method(one_step.dpm_2, levels=one_step.dpm_2_levels),
    "dpm_2_ancestral": Method(one_step.dpm_2_ancestral, noise=_PLAIN, levels=one_step.dpm_2_ancestral_levels),
    "lms": Method(multistep.lms),
    "dpm_fast": Method(dpm_solver.dpm_fast, levels=dpm_solver.dpm_fast_levels),
    "dpm_adaptive": Method(dpm_solver.dpm_adaptive, levels=dpm_solver.dpm_adaptive_levels),
    "dpmpp_2s_ancestral": Method(one_step.dpmpp_2s_ancestral, noise=_PLAIN, levels=one_step.dpmpp_2s_levels),
    "dpmpp_2s_ancestral_cfg_pp": Method(
        cfg_plus_plus.dpmpp_2s_ancestral_cfg_pp, noise=_PLAIN, levels=cfg_plus_plus.dpmpp_2s_levels
    ),
    "dpmpp_sde": Method(exponential.dpmpp_sde, noise=_PATH, below_one=True, levels=exponential.dpmpp_sde_levels),
    "dpmpp_sde_gpu": Method(
        exponential.dpmpp_sde, noise=_DEVICE_PATH, below_one=True, levels=exponential.dpmpp_sde_levels
    ),
    "dpmpp_2m": Method(multistep.dpmpp_2m),
    "dpmpp_2m_cfg_pp": Method(cfg_plus_plus.dpmpp_2m_cfg_pp),
    "dpmpp_2m_sde": Method(exponential.dpmpp_2m_sde, noise=_PATH, below_one=True),
    "dpmpp_2m_sde_gpu": Method(exponential.dpmpp_2m_sde, noise=_DEVICE_PATH, below_one=True),
    "dpmpp_2m_sde_heun": Method(exponential.dpmpp_2m_sde, {"heun": True}, _PATH, below_one=True),
    "dpmpp_2m_sde_heun_gpu": Method(exponential.dpmpp_2m_sde, {"heun": True}, _DEVICE_PATH, below_one=True),
    "dpmpp_3m_sde": Method(exponential.dpmpp_3m_sde, noise=_PATH, below_one=True),
    "dpmpp_3m_sde_gpu": Method(exponential.dpmpp_3m_sde, noise=_DEVICE_PATH, below_one=True),
    "ddpm": Method(one_step.ddpm, noise=_PLAIN),
    "lcm": Method(one_step.lcm, noise=_PLAIN),
    "ipndm": Method(multistep.ipndm),
    "ipndm_v": Method(multistep.ipndm_v),
    "deis": Method(multistep.deis),
    "res_multistep": Method(multistep.res_multistep),
    "res_multistep_cfg_pp": Method(cfg_plus_plus.res_multistep_cfg_pp),
    "res_multistep_ancestral": Method(multistep.res_multistep, {"eta": 1.0}, _PLAIN),
    "res_multistep_ancestral_cfg_pp": Method(cfg_plus_plus.res_multistep_cfg_pp, {"eta": 1.0}, _PLAIN),
    "gradient_estimation": Method(multistep.gradient_estimation),
    "gradient_estimation_cfg_pp": Method(cfg_plus_plus.gradient_estimation_cfg_pp),
    "er_sde": Method(exponential.er_sde, noise=_PLAIN, below_one=True),
    "seeds_2": Method(exponential.seeds_2, noise=_PLAIN, below_one=True, levels=exponential.seeds_2_levels),
    "seeds_3": Method(exponential.seeds_3, noise=_PLAIN, below_one=True, levels=exponential.seeds_3_levels),
    "sa_solver": Method(stochastic_adams.sa_solver, noise=_PLAIN, below_one=True, sampling=True),
    "sa_solver_pece": Method(stochastic_adams.sa_solver, {"pece": True}, _PLAIN, below_one=True, sampling=True),
    "ddim": Method(one_step.euler, fresh_mask_noise=True),
    "uni_pc": Method(unipc.uni_pc),
    "uni_pc_bh2": Method(unipc.uni_pc, {"bh2": True}),
}


# Available through separate nodes and not in the list of sampler names.
UNLISTED: dict[str, Method] = {
    "dpm_adaptive_ancestral": Method(dpm_solver.dpm_adaptive, noise=_PLAIN, levels=dpm_solver.dpm_adaptive_levels),
    "euler_cfg_pp_alternative": Method(cfg_plus_plus.euler_cfg_pp_alternative),
}


def solver(name: str) -> Method:
    """The named method. Raises InputError for an unknown name."""
    if name not in SOLVERS and name not in UNLISTED:
        raise InputError(f"There is no sampler named {name!r}. Choose one of: {', '.join(SOLVERS)}.")
    return SOLVERS.get(name) or UNLISTED[name]
