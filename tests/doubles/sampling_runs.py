"""The cases of sampling_cases.py, run with our engine."""

from __future__ import annotations

from sluice.flux_core.sampling import schedule
from sluice.flux_core.sampling.guider import BasicGuider, CFGGuider, DualCFGGuider, Guider, Model
from sluice.flux_core.sampling.sample import RandomNoise, Sampler, sample_custom_advanced
from torch import Tensor

from .sampling_cases import Case


def guider_of(case: Case, model: Model) -> Guider:
    if case.cfg is None:
        return BasicGuider(model, case.positive)
    if isinstance(case.cfg, tuple):
        assert case.third is not None
        return DualCFGGuider(model, case.positive, case.third, case.negative, *case.cfg)
    return CFGGuider(model, case.positive, case.negative, case.cfg)


def run_case(case: Case, model: Model) -> tuple[Tensor, Tensor]:
    """The resulting latent, and the last step's estimate of the clean one."""
    sigmas = schedule.ksampler_schedule(case.sampler, case.scheduler, model.sampling, case.steps, case.denoise)
    latent, guider = dict(case.latent), guider_of(case, model)
    out, seen = sample_custom_advanced(RandomNoise(case.seed), guider, Sampler(case.sampler), sigmas, latent)
    assert latent.keys() == out.keys()
    return out["samples"], seen["samples"]
