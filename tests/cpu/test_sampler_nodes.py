"""Sampler nodes with options, schedules and shifts: ComfyUI 0.3.64's numbers on a toy denoiser."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from doubles.network import NetworkModel
from safetensors import safe_open
from sluice.flux_core.errors import InputError
from sluice.flux_core.models import latents
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.sampling import fixed_schedules
from sluice.flux_core.sampling.guider import BasicGuider
from sluice.flux_core.sampling.sample import Sampler, sample
from sluice.flux_core.sampling.schedule import FluxShift, LinearFlow, basic_schedule
from sluice.nodes import NODE_CLASSES
from torch import Tensor

FIXTURE = Path(__file__).parents[1] / "fixtures" / "sampler_options.safetensors"
with safe_open(FIXTURE, "pt") as fixture:
    REFERENCE = {name: fixture.get_tensor(name) for name in fixture.keys()}  # noqa: SIM118
    CASES: dict[str, dict[str, Any]] = json.loads(fixture.metadata()["cases"])


def called(name: str, **values: Any) -> Any:
    """The value of the first output of a node."""
    node_class = NODE_CLASSES["Sluice" + name]
    return getattr(node_class(), node_class.FUNCTION)(**values)[0]


class Toy:
    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return 0.7 * torch.tanh(x) + 0.2 * sigma, 0.5 * torch.tanh(x) - 0.1 * sigma

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.with_uncond(x, sigma)[0]


@pytest.mark.parametrize("key", CASES)
def test_samplers_with_options_equal_comfyui(key: str) -> None:
    name, sampling = key.partition("/")[0], FluxShift()
    model = {"model": SimpleNamespace(sampling=sampling)} if name == "SamplerSASolver" else {}
    sampler = called(name, **CASES[key], **model)
    x = latents.noise(42, (1, 16, 4, 6))
    made = sampler.method(Toy(), x, REFERENCE["sigmas"], sampling=sampling, seed=42, **sampler.options)
    # ComfyUI integrates lms's polynomials numerically, which shows where they are long.
    tolerance = 1e-4 if CASES[key].get("order", 0) > 4 else 4e-6
    assert (made - REFERENCE[key]).abs().max() <= tolerance * max(1.0, REFERENCE[key].abs().max().item())


def test_an_order_or_share_that_is_no_step_is_refused() -> None:
    x, levels = torch.zeros(1, 16, 4, 4), [0.9, 0.5, 0.0]
    cases: list[tuple[str, dict[str, Any]]] = [("dpmpp_sde", {"r": 0.0}), ("dpm_adaptive", {"h_init": 0.0})]
    for name, options in cases:
        with pytest.raises(InputError, match="above 0"):
            Sampler(name).method(Toy(), x, levels, sampling=FluxShift(), seed=1, **options)


# Schedules. The numbers are ComfyUI 0.3.64's.


ENDS = {"sigma_max": 14.6, "sigma_min": 0.03}


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("PolyexponentialScheduler", {"steps": 4, **ENDS, "rho": 2.5},
         [14.6000023, 0.283324122, 0.0446177125, 0.03, 0]),
        ("LaplaceScheduler", {"steps": 5, **ENDS, "mu": 0.2, "beta": 0.5},
         [14.6, 1.72730708, 1.22140276, 0.863670826, 0.03]),
        ("VPScheduler", {"steps": 4, "beta_d": 19.9, "beta_min": 0.1, "eps_s": 0.001},
         [152.166977, 9.40319729, 1.46197176, 0.0104859937, 0]),
        ("AlignYourStepsScheduler", {"model_type": "SDXL", "steps": 4, "denoise": 1.0},
         [14.6146412, 2.86687231, 0.86207211, 0.297650456, 0]),
        ("OptimalStepsScheduler", {"model_type": "FLUX", "steps": 6, "denoise": 0.5},
         [0.947099984, 0.856771708, 0.440222085, 0]),
    ],
)  # fmt: skip
def test_schedules_equal_comfyui(name: str, values: dict[str, Any], expected: list[float]) -> None:
    torch.testing.assert_close(called(name, **values), torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_a_published_list_of_its_own_length_is_taken_as_it_is() -> None:
    levels = fixed_schedules.OPTIMAL_STEPS["FLUX"]
    assert fixed_schedules.published(levels, 10).tolist() == torch.tensor([*levels[:-1], 0.0]).tolist()
    assert len(fixed_schedules.published(levels, 10, 0.25)) == 3  # ComfyUI rounds 2.5 to the even number
    assert len(fixed_schedules.published(levels, 10, 0.0)) == 0


def test_steps_are_cut_into_steps_where_their_level_lies_in_the_range() -> None:
    sigmas = torch.tensor([1.0, 0.6, 0.2, 0.0])
    values = {"steps": 2, "start_at_sigma": 0.8, "end_at_sigma": 0.3, "spacing": "linear"}
    assert called("ExtendIntermediateSigmas", sigmas=sigmas, **values).tolist() == pytest.approx([1, 0.6, 0.4, 0.2, 0])
    everywhere = {**values, "start_at_sigma": -1.0, "end_at_sigma": 0.0}
    assert len(called("ExtendIntermediateSigmas", sigmas=sigmas, **everywhere)) == 7
    assert len(called("ExtendIntermediateSigmas", sigmas=sigmas[:0], **everywhere)) == 0


def test_levels_are_read_out_of_a_text() -> None:
    assert called("ManualSigmas", sigmas="1, 0.75; .5\n0").tolist() == [1, 0.75, 0.5, 0]
    assert called("ManualSigmas", sigmas="none").tolist() == []


# Shifts.


def test_the_network_is_told_the_time_that_the_shift_says() -> None:
    told = []

    def network(inputs: DenoiserInputs) -> Tensor:
        told.append(inputs.timesteps.item())
        return torch.zeros_like(inputs.x)

    latent = torch.zeros(1, 16, 4, 4)
    text = [[torch.zeros(1, 4, 8), {"pooled_output": torch.zeros(1, 8)}]]
    for sampling, factor in ((LinearFlow(3.0), 1), (LinearFlow(3.0, 1000.0), 1000), (FluxShift(), 1)):
        told.clear()
        sigmas = basic_schedule("simple", sampling, 3)
        guider = BasicGuider(NetworkModel(network, sampling), text)
        sample(guider, Sampler("euler"), sigmas, latent, latents.noise(1, latent.shape), seed=1)
        assert told == pytest.approx([factor * level for level in sigmas[:-1].tolist()])


def test_the_shift_of_stable_diffusion_3_and_auraflow_is_the_same() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Handle:
        sampling: Any = None

    third = called("ModelSamplingSD3", model=Handle(), shift=3.0).sampling
    aura = called("ModelSamplingAuraFlow", model=Handle(), shift=3.0).sampling
    assert torch.equal(third.table, aura.table) and len(aura.table) == 1000
    assert third.percent_to_sigma(0.5) == pytest.approx(0.75)
    assert (third.timestep(0.5), aura.timestep(0.5)) == (500, 0.5)
