"""Whole runs: noise, schedule, guider, solver, mask and latent scale together.

The reference numbers in `sampling.safetensors` are what ComfyUI 0.3.64 makes of the same cases on a CPU, with the
small function `velocity` in the place of the network (fixtures/record/sampling.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.network import NetworkModel
from doubles.sampling_cases import CASES, HEIGHT, SEED, WIDTH, A, B, Case, picture, prompt, velocity
from doubles.sampling_runs import run_case
from doubles.typed import present
from safetensors.torch import load_file
from sluice.flux_core.conditioning.entries import with_values
from sluice.flux_core.errors import InputError
from sluice.flux_core.models import latents
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.sampling import schedule
from sluice.flux_core.sampling.guider import BasicGuider, Network, Run
from sluice.flux_core.sampling.inpaint import DifferentialDiffusion
from sluice.flux_core.sampling.sample import (
    DisableNoise,
    RandomNoise,
    Sampler,
    add_noise,
    ksampler,
    ksampler_advanced,
    sample_custom,
    sample_custom_advanced,
)
from torch import Tensor

FIXTURES = Path(__file__).parents[1] / "fixtures"


def model_of(case: Case) -> NetworkModel:
    return NetworkModel(
        velocity,
        schedule.default_sampling(not case.schnell),
        case.channels,
        mask_function=None if case.differential is None else DifferentialDiffusion(case.differential),
    )


def run(case: Case) -> tuple[Tensor, Tensor]:
    return run_case(case, model_of(case))


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return load_file(FIXTURES / "sampling.safetensors")


def assert_close(got: Tensor, expected: Tensor, relative: float = 2e-6) -> None:
    if got.shape != expected.shape:
        got = got[:, ::8]  # of large latents the fixture has every eighth channel
    assert (got - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_runs_equal_comfyui(name: str, reference: dict[str, Tensor]) -> None:
    out, seen = run(CASES[name])
    # ComfyUI's uni_pc loses digits on its way through ln(alpha).
    assert_close(out, reference[name], 1e-4 if CASES[name].sampler == "uni_pc" else 2e-6)
    if name + "/denoised" in reference:
        assert_close(seen, reference[name + "/denoised"], 1e-4)


def run_plain(**changes: Any) -> Tensor:
    return run(replace(Case(), **changes))[0]


def counted(model: NetworkModel) -> tuple[NetworkModel, list[float]]:
    """The model, and the sigmas of its calls as they come."""
    calls: list[float] = []

    def network(inputs: DenoiserInputs) -> Tensor:
        calls.append(inputs.timesteps[0].item())
        return velocity(inputs)

    return replace(model, network=network), calls


@pytest.mark.parametrize(("cfg", "calls"), [(1.0, 4), (1.0000000001, 4), (1.001, 8), (0.0, 8)])
def test_at_cfg_1_the_negative_is_never_asked(cfg: float, calls: int) -> None:
    model, made = counted(model_of(Case()))
    ksampler(model, 1, 4, cfg, "euler", "simple", A, B, {"samples": torch.zeros(1, 16, 4, 4)})
    assert len(made) == calls


def test_guidance_is_rounded_to_the_compute_dtype_and_time_is_not() -> None:
    seen: list[tuple[Any, ...]] = []

    def network(inputs: DenoiserInputs) -> Tensor:
        guidance = present(inputs.guidance)
        kinds = (each.dtype for each in (inputs.x, inputs.timesteps, inputs.context, inputs.pooled, guidance))
        seen.append((*kinds, guidance.item()))
        return torch.zeros_like(inputs.x)

    model = NetworkModel(network, schedule.FluxShift(), dtype=torch.bfloat16)
    guider = BasicGuider(model, prompt("a", guidance=2.71))
    sigmas = torch.tensor([0.7, 0.0])
    out, _ = sample_custom_advanced(
        RandomNoise(0), guider, Sampler("euler"), sigmas, {"samples": torch.zeros(1, 16, 4, 4)}
    )
    low = torch.bfloat16
    assert seen == [(low, torch.float32, low, low, low, torch.tensor(2.71, dtype=low).item())]
    assert out["samples"].dtype == torch.float32


def test_a_mask_keeps_what_is_outside() -> None:
    original = picture("latent")
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 2:5, 1:4] = 1
    out = run_plain(latent={"samples": original, "noise_mask": mask})
    outside = (mask == 0).expand_as(out)
    torch.testing.assert_close(out[outside], original[outside], rtol=0, atol=1e-5)
    assert (out - original)[~outside].abs().min() > 1e-3


def test_an_all_painting_mask_changes_nothing() -> None:
    latent = {"samples": picture("latent")}
    masked = {**latent, "noise_mask": torch.ones(1, 64, 48)}
    assert_close(run_plain(latent=masked), run_plain(latent=latent))


def test_a_picture_does_not_depend_on_what_else_is_in_the_batch() -> None:
    batch = run_plain(latent={"samples": torch.zeros(4, 16, HEIGHT, WIDTH)})
    alone = run_plain(latent={"samples": torch.zeros(1, 16, HEIGHT, WIDTH), "batch_index": [2]})
    assert_close(batch[2:3], alone)


def test_an_empty_latent_is_not_shifted_and_four_channels_are_widened() -> None:
    seen: list[Tensor] = []

    def network(inputs: DenoiserInputs) -> Tensor:
        seen.append(inputs.x)
        return torch.zeros_like(inputs.x)

    model = NetworkModel(network, schedule.FluxShift())
    sigmas = torch.tensor([0.5, 0.0])
    sample_custom_advanced(
        DisableNoise(), BasicGuider(model, A), Sampler("euler"), sigmas, {"samples": torch.zeros(1, 4, 4, 4)}
    )
    assert seen[0].shape == (1, 16, 4, 4) and not seen[0].any()


def test_steps_may_be_run_in_two_parts() -> None:
    """Leaving the noise in and going on without new noise is the same as never having stopped."""
    model, empty = model_of(Case()), {"samples": torch.zeros(1, 16, HEIGHT, WIDTH)}
    settings: dict[str, Any] = dict(steps=7, cfg=2.0, sampler_name="euler", scheduler="normal", positive=A, negative=B)
    whole = ksampler_advanced(model, True, SEED, latent=empty, **settings)
    first = ksampler_advanced(
        model, True, SEED, latent=empty, end_at_step=3, return_with_leftover_noise=True, **settings
    )
    second = ksampler_advanced(model, False, SEED, latent=first, start_at_step=3, **settings)
    assert_close(second["samples"], whole["samples"], 1e-5)
    assert (first["samples"] - whole["samples"]).abs().max() > 0.1


def test_starting_after_the_last_step_returns_the_latent() -> None:
    latent = {"samples": picture("latent")}
    out = ksampler_advanced(model_of(Case()), True, 1, 4, 1.0, "euler", "simple", A, B, latent, start_at_step=4)
    assert torch.equal(out["samples"], latent["samples"])


def test_denoise_0_returns_the_latent() -> None:
    latent = {"samples": picture("latent")}
    out = ksampler(model_of(Case()), 1, 4, 1.0, "euler", "simple", A, B, latent, denoise=0.0)
    assert torch.equal(out["samples"], latent["samples"])


def test_ksampler_is_sample_custom_with_its_own_schedule() -> None:
    model, latent = model_of(Case()), {"samples": torch.zeros(1, 16, HEIGHT, WIDTH)}
    one = ksampler(model, 3, 6, 2.0, "heun", "beta", A, B, latent)
    sigmas = schedule.basic_schedule("beta", model.sampling, 6)
    two, seen = sample_custom(model, True, 3, 2.0, A, B, Sampler("heun"), sigmas, latent)
    assert torch.equal(one["samples"], two["samples"])
    assert torch.equal(
        two["samples"], sample_custom(model, True, 3, 2.0, A, B, Sampler("heun"), sigmas, latent)[0]["samples"]
    )


def test_without_added_noise_the_seed_still_drives_the_sampler() -> None:
    model, latent = model_of(Case()), {"samples": picture("latent")}
    sigmas = schedule.basic_schedule("simple", model.sampling, 4, 0.5)
    outs = [
        sample_custom(model, False, seed, 1.0, A, B, Sampler("euler_ancestral"), sigmas, latent)[0]["samples"]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("sampler", ["euler", "heun", "uni_pc", "dpm_adaptive", "sa_solver_pece"])
def test_the_callback_sees_every_step_and_the_last_is_the_denoised_output(sampler: str) -> None:
    seen: list[tuple[int, int]] = []
    last: list[Tensor] = []
    model = model_of(Case())

    def callback(step: int, D: Tensor, x: Tensor, steps: int) -> None:
        seen.append((step, steps))
        last[:] = [D]

    sigmas = schedule.basic_schedule("simple", model.sampling, 5)
    _, denoised = sample_custom(
        model, True, 1, 1.0, A, B, Sampler(sampler), sigmas, {"samples": torch.zeros(1, 16, 4, 4)}, callback
    )
    assert all(steps == 5 for _, steps in seen)
    if sampler == "dpm_adaptive":  # chooses its own number of steps
        assert [step for step, _ in seen] == sorted(step for step, _ in seen) and seen[-1][0] <= 4
    else:
        assert [step for step, _ in seen] == list(range(5))
    assert torch.equal(denoised["samples"], latents.process_out(last[0]))


class Stop(Exception):
    pass


def test_a_run_stops_when_the_callback_raises_and_the_network_is_let_go() -> None:
    events: list[str] = []

    class Opened:
        def __enter__(self) -> Network:
            events.append("open")
            return velocity

        def __exit__(self, *error: object) -> None:
            events.append("close")

    class Model(NetworkModel):
        def open(self, run: Run) -> AbstractContextManager[Network]:
            assert run.shape == (1, 16, 4, 4) and run.timesteps[0] == 1.0 and len(run.conditions) == 1
            return Opened()

    def callback(step: int, *rest: object) -> None:
        events.append(f"step {step}")
        if step == 2:
            raise Stop

    model = Model(velocity, schedule.FluxShift())
    sigmas = schedule.basic_schedule("simple", model.sampling, 9)
    with pytest.raises(Stop):
        sample_custom_advanced(
            RandomNoise(0),
            BasicGuider(model, A),
            Sampler("euler"),
            sigmas,
            {"samples": torch.zeros(1, 16, 4, 4)},
            callback,
        )
    assert events == ["open", "step 0", "step 1", "step 2", "close"]


def test_add_noise_puts_a_latent_at_a_level() -> None:
    latent = {"samples": picture("latent"), "noise_mask": torch.ones(1, 8, 8)}
    noisy = add_noise(RandomNoise(3), torch.tensor([0.8, 0.5, 0.2]), latent)
    noise = latents.noise(3, latent["samples"].shape)
    level = 0.8 - 0.2
    expected = latents.process_out(level * noise + (1 - level) * latents.process_in(latent["samples"]))
    torch.testing.assert_close(noisy["samples"], expected)
    assert noisy["noise_mask"] is latent["noise_mask"]
    assert add_noise(RandomNoise(3), torch.empty(0), latent) is latent


def test_flipped_levels_turn_a_picture_into_finite_noise() -> None:
    model = model_of(Case())
    sigmas = schedule.flip(schedule.basic_schedule("simple", model.sampling, 6))
    out, _ = sample_custom(model, False, 0, 1.0, A, B, Sampler("euler"), sigmas, {"samples": picture("latent")})
    assert out["samples"].isfinite().all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"control": object()}, "ControlNet"),
        ({"gligen": ("position",)}, "GLIGEN"),
        ({"hooks": object()}, "hooks"),
        ({"default": True}, "default"),
        ({"pooled_output": None}, "CLIP-L"),
        ({"area": (4, 4, 40, 0)}, "y=320"),
    ],
)
def test_what_cannot_be_applied_is_said(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run_plain(positive=with_values(A, **values))


def test_a_video_latent_is_refused() -> None:
    with pytest.raises(InputError, match="batch, 16, height, width"):
        run_plain(latent={"samples": torch.zeros(1, 16, 1, 8, 6)})


def test_an_unknown_sampler_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'eulr'.*euler, euler_cfg_pp"):
        Sampler("eulr")
