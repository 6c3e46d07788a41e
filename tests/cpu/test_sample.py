"""Whole runs: noise, schedule, guider, solver, mask and latent scale together.

The reference numbers in `sampling.safetensors` are what ComfyUI 0.3.64 makes of the same cases on a CPU, with the
small function `velocity` below in the place of the network.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.network import NetworkModel
from safetensors.torch import load_file
from sluice.flux_core.conditioning.entries import with_values
from sluice.flux_core.errors import InputError
from sluice.flux_core.models import latents
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.sampling import schedule
from sluice.flux_core.sampling.guider import BasicGuider, CFGGuider, DualCFGGuider
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
SEED = 42
HEIGHT, WIDTH = 8, 6  # latent cells


def velocity(inputs: DenoiserInputs) -> Tensor:
    """A smooth stand-in for the network that notices each of its inputs, their order and where its crop lies."""
    image, extra = inputs.x[:, :16], inputs.x[:, 16:]
    v = torch.tanh(0.8 * image + 0.3 * image.roll(1, -1) - 0.2 * image.roll(1, -2))
    v = v + 0.5 * _per_item(inputs.timesteps) * image
    v = v + _per_item(inputs.context.mean(dim=(1, 2)) + inputs.pooled.mean(dim=1))
    if inputs.guidance is not None:
        v = v + 0.1 * _per_item(inputs.guidance)
    if extra.shape[1]:
        weights = torch.cos(torch.arange(extra.shape[1])).reshape(1, -1, 1, 1)
        v = v + (extra * weights).mean(dim=1, keepdim=True)
    for number, reference in enumerate(inputs.references, start=1 if inputs.reference_method == "offset" else 3):
        v = v + number * _per_item(reference.mean(dim=(1, 2, 3)))
    if inputs.attention_mask is not None:
        mask = inputs.attention_mask
        places = torch.cos(torch.arange(mask.shape[-1]))
        v = v + _per_item((mask.exp() * places * places.roll(3)[:, None]).mean(dim=(1, 2)))
    return v


def _per_item(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def draw(name: str, *shape: int) -> Tensor:
    """The same random tensor for a name everywhere."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def shade(name: str, *shape: int) -> Tensor:
    """The same random mask, 0..1, for a name everywhere."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def prompt(name: str, length: int = 7, batch: int = 1, **values: Any) -> list:
    return [[draw(name, batch, length, 12), {"pooled_output": draw(name + "/pooled", batch, 9), **values}]]


def picture(name: str, batch: int = 1, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return draw(name, batch, 16, height, width)


@dataclass(frozen=True)
class Case:
    positive: list = field(default_factory=lambda: prompt("a", guidance=3.5))
    negative: list = field(default_factory=lambda: prompt("b", length=5))
    third: list | None = None  # the second prompt of DualCFGGuider
    cfg: float | tuple[float, float, str] | None = 1.0  # None: BasicGuider; a triple: DualCFGGuider
    sampler: str = "euler"
    scheduler: str = "simple"
    steps: int = 4
    denoise: float = 1.0
    latent: dict = field(default_factory=lambda: {"samples": torch.zeros(1, 4, HEIGHT, WIDTH)})
    seed: int = SEED
    channels: int = 16
    schnell: bool = False
    differential: float | None = None


def area(*size: float, strength: float = 1.0, percentage: bool = False) -> dict:
    return {"area": ("percentage", *size) if percentage else size, "strength": strength, "set_area_to_bounds": False}


HALF_MASK = {"samples": picture("latent"), "noise_mask": shade("noise mask", 1, 1, 50, 44)}
BIG = {"samples": torch.zeros(1, 16, 40, 36)}
A, B, C = prompt("a"), prompt("b", length=5), prompt("c")

CASES = {
    "text": Case(),
    "no_guidance": Case(positive=prompt("a", guidance=None)),
    "default_guidance": Case(positive=A, cfg=2.0),
    "cfg": Case(cfg=3.0, scheduler="beta"),
    "cfg_0": Case(cfg=0.0),
    "schnell": Case(schnell=True, sampler="sa_solver", steps=6),
    "from_picture": Case(latent={"samples": picture("latent")}, denoise=0.6, scheduler="normal"),
    "uneven_batch": Case(
        positive=prompt("a", batch=2),
        latent={"samples": torch.zeros(3, 16, HEIGHT, WIDTH), "batch_index": [4, 1, 1]},
        sampler="dpmpp_2m",
    ),
    "masked": Case(latent=HALF_MASK, denoise=0.8, cfg=2.0),
    "masked_batch": Case(latent={"samples": picture("latent", 3), "noise_mask": shade("two masks", 2, 20, 30)}),
    "masked_ddim": Case(latent=HALF_MASK, sampler="ddim"),
    "masked_sde": Case(latent=HALF_MASK, sampler="dpmpp_2m_sde", denoise=0.9),
    "masked_cfg_pp": Case(latent=HALF_MASK, sampler="dpmpp_2m_cfg_pp", cfg=2.5),
    "masked_uni_pc": Case(latent=HALF_MASK, sampler="uni_pc", steps=6),
    "differential": Case(latent=HALF_MASK, differential=1.0, steps=6),
    "differential_half": Case(latent=HALF_MASK, differential=0.5, steps=6, denoise=0.7),
    "cfg_pp_at_cfg_1": Case(sampler="euler_ancestral_cfg_pp"),
    "cfg_pp_without_negative": Case(sampler="euler_cfg_pp", cfg=None),
    "fill": Case(
        channels=96,
        positive=with_values(
            A, concat_latent_image=picture("concat", 2, 5, 9), concat_mask=shade("concat mask", 1, 1, 50, 70)
        ),
        latent={"samples": torch.zeros(3, 16, HEIGHT, WIDTH)},
    ),
    "fill_from_noise_mask": Case(channels=96, latent=HALF_MASK),
    "fill_without_picture": Case(channels=96, cfg=2.0),
    "depth": Case(channels=32, positive=with_values(A, concat_latent_image=picture("depth", 1))),
    "depth_batch": Case(
        channels=32,
        positive=with_values(A, concat_latent_image=picture("depths", 5)),
        latent={"samples": torch.zeros(2, 16, HEIGHT, WIDTH)},
    ),
    "depth_without_picture": Case(channels=32),
    "reference": Case(positive=with_values(A, reference_latents=[picture("ref", 1, 5, 9)]), cfg=2.0),
    "references_index": Case(
        positive=with_values(
            A, reference_latents=[picture("ref", 1, 5, 9), picture("ref 2")], reference_latents_method="index"
        ),
        latent={"samples": torch.zeros(2, 16, HEIGHT, WIDTH)},
    ),
    "attention_mask": Case(
        positive=with_values(A, attention_mask=draw("attn", 9, 9), attention_mask_img_shape=(1, 1)),
    ),
    "attention_mask_grid": Case(
        positive=with_values(A, attention_mask=draw("attn", 1, 13, 13), attention_mask_img_shape=(2, 3)),
        latent={"samples": torch.zeros(2, 16, 7, WIDTH)},
    ),
    "combined": Case(positive=A + C, cfg=2.0),
    "area": Case(positive=A + with_values(C, **area(5, 4, 2, 1)), cfg=2.0),
    "area_alone": Case(positive=with_values(A, **area(5, 4, 2, 1, strength=0.7))),
    "area_percentage": Case(positive=A + with_values(C, **area(0.4, 0.55, 0.3, 0.25, percentage=True)), cfg=2.0),
    "area_beyond_edge": Case(positive=A + with_values(C, **area(20, 20, 4, 3, strength=0.5)), cfg=2.0),
    "area_in_negative": Case(negative=B + with_values(C, **area(4, 4, 2, 2)), cfg=2.0),
    "area_nested": Case(
        positive=with_values(A, **area(7, 6, 0, 0)) + with_values(C, **area(4, 4, 2, 1)),
        negative=B + with_values(A, **area(6, 5, 1, 1)),
        cfg=2.0,
    ),
    "area_big": Case(positive=A + with_values(C, **area(34, 21, 6, 0, strength=2.0)), latent=BIG, steps=2),
    "mask": Case(positive=A + with_values(C, mask=shade("mask", 1, 30, 20), mask_strength=0.6), cfg=2.0),
    "mask_and_strength": Case(
        positive=with_values(A, mask=shade("masks", 2, 16, 12), mask_strength=0.6, strength=0.3) + C,
        latent={"samples": torch.zeros(2, 16, HEIGHT, WIDTH)},
    ),
    "mask_bounds": Case(
        positive=A
        + with_values(
            C,
            mask=torch.nn.functional.pad(shade("small", 1, 9, 12), (6, 18, 20, 11)),
            mask_strength=0.9,
            set_area_to_bounds=True,
        ),
        latent=BIG,
        steps=2,
        cfg=1.5,
    ),
    "mask_empty_bounds": Case(
        positive=A + with_values(C, mask=torch.zeros(1, 40, 36), set_area_to_bounds=True), latent=BIG, steps=2
    ),
    "ranges": Case(
        positive=with_values(A, start_percent=0.0, end_percent=0.3)
        + with_values(C, start_percent=0.3, end_percent=1.0),
        steps=20,
    ),
    "range_ends": Case(positive=with_values(A, start_percent=0.2, end_percent=0.7), steps=5),
    "dual": Case(third=C, cfg=(3.0, 2.0, "regular")),
    "dual_no_negative": Case(third=C, cfg=(3.0, 1.0, "regular")),
    "dual_plain": Case(third=C, cfg=(1.0, 1.0, "regular")),
    "dual_nested": Case(third=C, cfg=(3.0, 2.0, "nested")),
    "dual_cfg_pp": Case(third=C, cfg=(3.0, 1.0, "regular"), sampler="euler_cfg_pp"),
    "dual_nested_cfg_pp": Case(third=C, cfg=(3.0, 2.0, "nested"), sampler="euler_cfg_pp"),
}


def model_of(case: Case) -> NetworkModel:
    return NetworkModel(
        velocity,
        schedule.default_sampling(not case.schnell),
        case.channels,
        mask_function=None if case.differential is None else DifferentialDiffusion(case.differential),
    )


def guider_of(case: Case, model: NetworkModel):
    if case.cfg is None:
        return BasicGuider(model, case.positive)
    if isinstance(case.cfg, tuple):
        return DualCFGGuider(model, case.positive, case.third, case.negative, *case.cfg)
    return CFGGuider(model, case.positive, case.negative, case.cfg)


def run(case: Case) -> tuple[Tensor, Tensor]:
    model = model_of(case)
    sigmas = schedule.ksampler_schedule(case.sampler, case.scheduler, model.sampling, case.steps, case.denoise)
    latent = dict(case.latent)
    out, seen = sample_custom_advanced(
        RandomNoise(case.seed), guider_of(case, model), Sampler(case.sampler), sigmas, latent
    )
    assert latent.keys() == out.keys()
    return out["samples"], seen["samples"]


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
    seen: list[tuple] = []

    def network(inputs: DenoiserInputs) -> Tensor:
        kinds = (each.dtype for each in (inputs.x, inputs.timesteps, inputs.context, inputs.pooled, inputs.guidance))
        seen.append((*kinds, inputs.guidance.item()))
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
    model = NetworkModel(lambda inputs: seen.append(inputs.x) or torch.zeros_like(inputs.x), schedule.FluxShift())
    sigmas = torch.tensor([0.5, 0.0])
    sample_custom_advanced(
        DisableNoise(), BasicGuider(model, A), Sampler("euler"), sigmas, {"samples": torch.zeros(1, 4, 4, 4)}
    )
    assert seen[0].shape == (1, 16, 4, 4) and not seen[0].any()


def test_steps_may_be_run_in_two_parts() -> None:
    """Leaving the noise in and going on without new noise is the same as never having stopped."""
    model, empty = model_of(Case()), {"samples": torch.zeros(1, 16, HEIGHT, WIDTH)}
    settings = dict(steps=7, cfg=2.0, sampler_name="euler", scheduler="normal", positive=A, negative=B)
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
        def __enter__(self):
            events.append("open")
            return velocity

        def __exit__(self, *error):
            events.append("close")

    class Model(NetworkModel):
        def open(self, run):
            assert run.shape == (1, 16, 4, 4) and run.timesteps[0] == 1.0 and len(run.conditions) == 1
            return Opened()

    def callback(step, *rest):
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
def test_what_cannot_be_applied_is_said(values: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run_plain(positive=with_values(A, **values))


def test_a_video_latent_is_refused() -> None:
    with pytest.raises(InputError, match="batch, 16, height, width"):
        run_plain(latent={"samples": torch.zeros(1, 16, 1, 8, 6)})


def test_an_unknown_sampler_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'eulr'.*euler, euler_cfg_pp"):
        Sampler("eulr")
