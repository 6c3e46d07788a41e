"""Schedules: ComfyUI 0.3.64's numbers (`sigmas.json`), and laws that hold for every model and length."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice.flux_core.errors import InputError, SluiceError
from sluice.flux_core.sampling import schedule
from sluice.flux_core.sampling.schedule import SCHEDULES, FluxShift, LinearFlow, Sampling

REFERENCE = json.loads((Path(__file__).parents[1] / "fixtures" / "sigmas.json").read_text())
NAMES: dict[str, Sampling] = {"dev": FluxShift(), "schnell": LinearFlow()}

samplings = st.one_of(
    st.builds(FluxShift, st.floats(0.0, 3.5)), st.builds(LinearFlow, st.sampled_from([1.0, 1.73, 3.0]))
)


def sampling_of(name: str) -> Sampling:
    kind, value = name.split()
    return FluxShift(float(value)) if kind == "flux" else LinearFlow(float(value))


def assert_levels(got: torch.Tensor, expected: list[float]) -> None:
    assert got.dtype == torch.float32 and len(got) == len(expected)
    assert all(abs(a - b) <= 2e-6 for a, b in zip(got.tolist(), expected, strict=True))


@pytest.mark.parametrize("key", REFERENCE["schedules"])
def test_schedules_equal_comfyui(key: str) -> None:
    model, name, steps = key.split("|")
    assert_levels(schedule.schedule(name, sampling_of(model), int(steps)), REFERENCE["schedules"][key])


@pytest.mark.parametrize("key", REFERENCE["denoise"])
def test_shortened_schedules_equal_comfyui(key: str) -> None:
    node, model, *sampler, name, steps, denoise = key.split("|")
    share = float(denoise.removeprefix("denoise="))
    if node == "KSampler":
        got = schedule.ksampler_schedule(sampler[0], name, NAMES[model], int(steps), share)
    else:
        got = schedule.basic_schedule(name, NAMES[model], int(steps), share)
    assert_levels(got, REFERENCE["denoise"][key])


@pytest.mark.parametrize("size", REFERENCE["mu"])
def test_the_shift_grows_with_the_picture(size: str) -> None:
    width, height = map(int, size.split("x"))
    assert FluxShift.for_size(width, height).mu == pytest.approx(REFERENCE["mu"][size], abs=1e-12)


@pytest.mark.parametrize(("model", "percents"), REFERENCE["percent"].items())
def test_percentages_of_the_way_are_levels(model: str, percents: dict[str, float]) -> None:
    for percent, level in percents.items():
        assert NAMES[model].percent_to_sigma(float(percent)) == pytest.approx(level, abs=1e-12)


def test_the_order_of_the_names_is_the_menus() -> None:
    assert list(SCHEDULES) == [
        "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform",
        "beta", "normal", "linear_quadratic", "kl_optimal",
    ]  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
@given(sampling=samplings, steps=st.integers(1, 60))
@settings(deadline=None, max_examples=25)
def test_every_schedule_falls_from_noise_to_picture(name: str, sampling: Sampling, steps: int) -> None:
    sigmas = schedule.schedule(name, sampling, steps)
    assert sigmas[-1] == 0 and sigmas[0] <= 1 + 1e-6
    assert (sigmas.diff() < 0).all()
    if name == "ddim_uniform":
        assert steps <= len(sigmas) - 1
    elif name == "beta":  # of equal levels one is used
        assert sigmas[0] == pytest.approx(1, abs=1e-6) and len(sigmas) - 1 <= steps
    else:
        assert sigmas[0] == pytest.approx(1, abs=1e-6) and len(sigmas) - 1 == steps


@given(sampling=samplings)
@settings(deadline=None, max_examples=20)
def test_a_table_rises_to_1_and_is_where_percentages_point(sampling: Sampling) -> None:
    table = sampling.table
    assert (table.diff() > 0).all() and sampling.sigma_max == pytest.approx(1, abs=1e-6)
    for percent in (0.1, 0.5, 0.9):
        entry = round((1 - percent) * sampling.entries) - 1
        assert sampling.percent_to_sigma(percent) == pytest.approx(table[entry].item(), abs=1e-6)


def test_a_square_megapixel_has_the_default_shift() -> None:
    assert FluxShift.for_size(1024, 1024).mu == pytest.approx(FluxShift().mu, abs=1e-12)


def test_guidance_distilled_models_are_shifted_and_schnell_is_not() -> None:
    assert schedule.default_sampling(guidance_embedded=True) == FluxShift(1.15)
    assert schedule.default_sampling(guidance_embedded=False) == LinearFlow(1.0)


@given(steps=st.integers(1, 40), denoise=st.floats(0.02, 1.0))
@settings(deadline=None, max_examples=50)
def test_denoise_keeps_the_number_of_steps_and_the_end(steps: int, denoise: float) -> None:
    whole = schedule.basic_schedule("simple", FluxShift(), steps)
    part = schedule.basic_schedule("simple", FluxShift(), steps, denoise)
    assert len(part) == len(whole) and part[-1] == 0 and part[0] <= whole[0]


def test_ksampler_keeps_the_extra_step_of_ddim_uniform_and_basic_scheduler_does_not() -> None:
    assert len(schedule.ksampler_schedule("euler", "ddim_uniform", FluxShift(), 30)) == 32
    assert len(schedule.basic_schedule("ddim_uniform", FluxShift(), 30)) == 31


@pytest.mark.parametrize("sampler", sorted(schedule.DROPS_PENULTIMATE))
def test_some_samplers_take_a_long_last_step(sampler: str) -> None:
    longer = schedule.schedule("simple", FluxShift(), 9)
    sigmas = schedule.ksampler_schedule(sampler, "simple", FluxShift(), 8)
    assert torch.equal(sigmas, torch.cat([longer[:-2], longer[-1:]]))


def test_steps_between_start_and_end() -> None:
    whole = schedule.schedule("simple", FluxShift(), 8)
    cut = schedule.between_steps
    assert torch.equal(cut(whole, 0, 10_000, leftover_noise=False), whole)
    assert torch.equal(cut(whole, 3, 6, leftover_noise=True), whole[3:7])
    assert torch.equal(cut(whole, 3, 6, leftover_noise=False), torch.cat([whole[3:6], torch.zeros(1)]))
    assert len(cut(whole, 8, 10_000, leftover_noise=False)) == 0
    assert len(cut(whole, 6, 6, leftover_noise=True)) == 0
    assert whole[-2] > 0, "the whole schedule is left as it was"


def test_split_parts_share_one_level() -> None:
    whole = schedule.schedule("simple", FluxShift(), 8)
    high, low = schedule.split(whole, 3)
    assert torch.equal(torch.cat([high, low[1:]]), whole) and high[-1] == low[0]
    high, low = schedule.split_denoise(whole, 0.25)
    assert len(low) == 3 and torch.equal(torch.cat([high, low[1:]]), whole)


def test_flipped_levels_rise_and_start_above_0() -> None:
    whole = schedule.schedule("simple", FluxShift(), 8)
    turned = schedule.flip(whole)
    assert turned[0] == pytest.approx(0.0001) and (turned.diff() > 0).all() and turned[-1] == whole[0]
    assert torch.equal(schedule.flip(turned)[:-1], whole[:-1])
    assert len(schedule.flip(torch.empty(0))) == 0


def test_setting_an_end_leaves_the_original_alone() -> None:
    whole = schedule.schedule("simple", FluxShift(), 4)
    assert schedule.set_first(whole, 7.5)[0] == 7.5 and whole[0] == 1
    assert torch.equal(schedule.set_first(whole, 7.5)[1:], whole[1:])


def test_generic_schedules_run_between_the_ends_given() -> None:
    for make in (schedule.karras_between, schedule.exponential_between):
        sigmas = make(10, 14.6, 0.03)
        assert sigmas[0] == pytest.approx(14.6, rel=1e-5) and sigmas[-2] == pytest.approx(0.03, rel=1e-5)
        assert sigmas[-1] == 0 and len(sigmas) == 11
    ratios = schedule.exponential_between(10, 14.6, 0.03)[:-1].log().diff()
    assert ratios.max() - ratios.min() < 1e-5


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, 0.5), (-1.0, 1.0)])
def test_an_exponential_schedule_cannot_reach_0(ends: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="cannot reach 0"):
        schedule.exponential_between(4, *ends)


def test_beta_takes_other_shapes() -> None:
    even = schedule.beta(FluxShift(), 10, alpha=1.0, beta=1.0)  # the uniform distribution
    strides = torch.searchsorted(FluxShift().table, even[:-1].contiguous()).diff()
    assert strides.abs().max() - strides.abs().min() <= 1


def test_shapes_without_meaning_are_refused() -> None:
    with pytest.raises(InputError, match="alpha and beta above 0"):
        schedule.beta(FluxShift(), 4, alpha=0.0)
    with pytest.raises(InputError, match="rho above 0"):
        schedule.karras_between(4, 1.0, 0.1, rho=0.0)


def test_unknown_names_and_empty_schedules_are_refused() -> None:
    with pytest.raises(InputError, match="'smple'.*simple, sgm_uniform"):
        schedule.schedule("smple", FluxShift(), 4)
    with pytest.raises(InputError, match="at least 1 step"):
        schedule.schedule("simple", FluxShift(), 0)


def test_a_missing_scipy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(SluiceError, match="pip install scipy"):
        schedule.schedule("beta", FluxShift(), 4)


def test_one_step_of_kl_optimal_is_a_number() -> None:
    """ComfyUI divides 0 by 0 here."""
    assert not any(map(math.isnan, schedule.schedule("kl_optimal", FluxShift(), 1).tolist()))
