"""Solvers: ComfyUI 0.3.64's numbers on a toy denoiser (`samplers.safetensors`), and laws on flows solved by hand."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from sluice.flux_core.errors import InputError, SluiceError
from sluice.flux_core.models import latents
from sluice.flux_core.sampling import schedule, step_noise
from sluice.flux_core.sampling.flow import Sigmas, StepNoise
from sluice.flux_core.sampling.multistep import lagrange_integrals
from sluice.flux_core.sampling.schedule import FluxShift, LinearFlow
from sluice.flux_core.sampling.solvers import SOLVERS, UNLISTED, solver
from torch import Tensor

FIXTURE = Path(__file__).parents[1] / "fixtures" / "samplers.safetensors"
SHAPE = (1, 16, 4, 6)


class Field:
    """A Denoise made from a function (x, sigma) -> (D, U); `calls` are the sigmas of its calls."""

    def __init__(self, function: Callable[[Tensor, float], tuple[Tensor, Tensor]]) -> None:
        self.function = function
        self.calls: list[float] = []

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        self.calls.append(sigma)
        return self.function(x, sigma)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.with_uncond(x, sigma)[0]


SCHEDULES = {
    "whole": [1.0, 0.9, 0.7, 0.45, 0.2, 0.0],
    "ends in noise": [1.0, 0.8, 0.5, 0.25],
    "from an image": [0.6, 0.4, 0.15, 0.0],
    "one step": [0.7, 0.0],
    "levels twice": [1.0, 0.8, 0.8, 0.3, 0.0],
}


@pytest.mark.parametrize("levels", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", [*SOLVERS, *UNLISTED])
def test_solvers_evaluate_at_the_levels_they_declare(name: str, levels: list[float]) -> None:
    method = solver(name)
    known = inspect.signature(method.function).parameters.keys() - method.options.keys()
    tried: list[dict[str, Any]] = [{}, {"eta": 0.6}, {"r": 0.4}, {"order": 2, "h_init": 0.1}]
    for options in tried:
        if not options.keys() <= known:
            continue
        field = Field(lambda x, sigma: (0.5 * x, 0.25 * x))
        method(field, torch.ones(SHAPE), levels, sampling=FluxShift(), seed=1, **options)
        asked = tuple(dict.fromkeys(torch.tensor(level).item() for level in field.calls))
        declared = method.evaluated(levels, FluxShift(), **options)
        if name == "dpm_adaptive" and "eta" in options:
            continue  # without noise eta is not used, although the declaration lists it
        known_before = asked[: len(declared)] if "adaptive" in name else asked
        assert declared == known_before and bool(declared) == bool(asked), options
    assert method.evaluated(levels[:1], FluxShift()) == ()


# The reference runs.

with safe_open(FIXTURE, "pt") as fixture:
    REFERENCE = {name: fixture.get_tensor(name) for name in fixture.keys()}  # noqa: SIM118
    CALLS: dict[str, int] = json.loads(fixture.metadata()["calls"])


def reference_run(name: str, case: str) -> tuple[Tensor, Field]:
    """A as KSampler plans it, B the plain schedule, C from a latent, D stopped early, E masked, F schnell."""
    sampling = LinearFlow() if case == "F" else FluxShift()
    seed = 7 if case == "F" else 42
    sigmas = schedule.schedule("simple", sampling, 4 if case == "F" else 8)
    if case == "A":
        sigmas = schedule.ksampler_schedule(name, "simple", sampling, 8)
    sigmas = {"C": sigmas[3:], "D": sigmas[:6]}.get(case, sigmas)
    latent = REFERENCE["latent"] if case in "CE" else torch.zeros(SHAPE)
    noise = latents.noise(seed, SHAPE)
    outside = latents.noise(seed + 1, SHAPE) if solver(name).fresh_mask_noise else noise
    mask = REFERENCE["mask"] if case == "E" else torch.ones(1, 1, 4, 6)

    def toy(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        x = x * mask + (sigma * outside + (1 - sigma) * latent) * (1 - mask)
        D, U = 0.7 * torch.tanh(x) + 0.2 * sigma, 0.5 * torch.tanh(x) - 0.1 * sigma
        return D * mask + latent * (1 - mask), U

    field = Field(toy)
    first, last = sigmas[0].item(), sigmas[-1].item()
    x = first * noise + (1 - first) * latent
    return solver(name)(field, x, sigmas, sampling=sampling, seed=seed) / (1 - last), field


@pytest.mark.parametrize("key", CALLS)
def test_solvers_equal_comfyui(key: str) -> None:
    out, field = reference_run(*key.split("/"))
    expected = REFERENCE[key]
    # ComfyUI's uni_pc loses digits on its way through ln(alpha) towards its last level, 0.001.
    tolerance = 1e-4 if key.startswith("uni_pc") else 2e-6
    assert (out - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())
    assert len(field.calls) == CALLS[key]


def test_the_names_are_comfyuis_in_its_order() -> None:
    assert list(SOLVERS) == [
        "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2",
        "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp",
        "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu",
        "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm",
        "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
        "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2",
        "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
    ]  # fmt: skip


# Gaussian pictures with mean M and deviation C: their flow is known in closed form.

M, C = 0.4, 0.6
NOT_OF_A_FLOW = {"ddpm", "res_multistep_ancestral"}  # they count noise as diffusion models do
FORGETFUL = {"lcm"}  # takes the mean of all pictures for the picture
CFG_PP = {name for name in SOLVERS if name.endswith("_cfg_pp")}
STOCHASTIC = {name for name, method in SOLVERS.items() if method.noise is not None} - CFG_PP
STOPS_ABOVE_0 = {"dpm_fast", "dpm_adaptive"}
SETTINGS: dict[str, Any] = {"sampling": FluxShift(), "seed": 42}


def deviation(s: float) -> float:
    return math.sqrt(((1 - s) * C) ** 2 + s**2)


def gaussian(x: Tensor, s: float) -> tuple[Tensor, Tensor]:
    """E[picture | x] for x = s noise + (1 - s) picture."""
    D = M + (1 - s) * C**2 / deviation(s) ** 2 * (x - (1 - s) * M)
    return D, D


def flown(x: Tensor, s: float, s_to: float) -> Tensor:
    """The exact solution of dx/ds = (x - D) / s."""
    return (1 - s_to) * M + deviation(s_to) / deviation(s) * (x - (1 - s) * M)


def levels(steps: int, first: float = 0.95, last: float = 0.15) -> Tensor:
    """Equal steps in lambda."""
    start, end = torch.tensor([first, last], dtype=torch.float64).logit().tolist()
    return torch.linspace(start, end, steps + 1, dtype=torch.float64).sigmoid()


def error(name: str, steps: int) -> float:
    x = torch.linspace(-3, 3, 64, dtype=torch.float64).reshape(1, 16, 2, 2)
    sigmas = levels(steps)
    out = solver(name)(Field(gaussian), x, sigmas, **SETTINGS)
    return (out - flown(x, sigmas[0].item(), sigmas[-1].item())).abs().max().item()


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("euler", 1), ("ddim", 1), ("gradient_estimation", 1), ("heunpp2", 1),
        ("heun", 2), ("dpm_2", 2), ("dpmpp_2m", 2), ("res_multistep", 2), ("lms", 2), ("ipndm", 2), ("ipndm_v", 2),
        ("dpm_fast", 2), ("uni_pc", 2), ("uni_pc_bh2", 2),  # higher inside; their last steps are of lower order
        ("deis", 3),
    ],
)  # fmt: skip
def test_the_error_falls_with_the_order_of_the_solver(name: str, order: int) -> None:
    few, many = 48, 96
    measured = math.log2(error(name, few) / error(name, many))
    assert measured > order - 0.25
    assert error(name, many) < 0.02


def test_the_adaptive_solver_keeps_its_tolerance() -> None:
    x = torch.linspace(-3, 3, 64, dtype=torch.float64).reshape(1, 16, 2, 2)
    exact, errors, calls = flown(x, 0.95, 0.15), [], []
    for tolerance in (0.1, 0.01, 0.001):
        field = Field(gaussian)
        out = solver("dpm_adaptive")(field, x, [0.95, 0.15], **SETTINGS, rtol=tolerance, atol=tolerance / 10)
        errors.append((out - exact).abs().max().item())
        calls.append(len(field.calls))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3
    assert calls == sorted(calls)


@pytest.mark.parametrize("name", sorted(STOCHASTIC - NOT_OF_A_FLOW - FORGETFUL))
def test_added_noise_keeps_the_distribution(name: str) -> None:
    """Whatever a stochastic solver takes away and adds, x at level s stays (1 - s) picture + s noise."""
    first, last = 0.9, 0.3
    x = (1 - first) * M + deviation(first) * latents.noise(1, (1, 16, 32, 32))
    sigmas = levels(60, first, last)
    out = solver(name)(Field(gaussian), x, sigmas, **SETTINGS)
    s = sigmas[-2 if name.startswith("sa_solver") else -1].item()  # it returns the last state it has corrected
    assert out.mean().item() == pytest.approx((1 - s) * M, abs=0.02)
    assert out.std().item() == pytest.approx(deviation(s), rel=0.03)


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - STOPS_ABOVE_0))
def test_a_schedule_that_ends_in_0_ends_in_the_picture(name: str) -> None:
    """Where only one picture is possible, every solver finds it."""
    picture = torch.linspace(-1, 1, 384).reshape(SHAPE)
    field = Field(lambda x, s: (picture, picture))
    sigmas = schedule.schedule("simple", FluxShift(), 6)
    out = solver(name)(field, latents.noise(42, SHAPE), sigmas, **SETTINGS)
    tolerance = 2e-3 if name.startswith("uni_pc") else 1e-5  # which stops at s = 0.001
    assert (out - picture).abs().max() <= tolerance * 4


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_and_none_are_schedules_too(name: str) -> None:
    x = latents.noise(42, SHAPE)
    one = solver(name)(Field(gaussian), x, torch.tensor([1.0, 0.0]), **SETTINGS)
    assert one.isfinite().all()
    assert torch.equal(solver(name)(Field(gaussian), x, torch.tensor([0.5]), **SETTINGS), x)


@pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2"])
def test_a_single_step_of_unipc_only_scales_as_comfyuis_does(name: str) -> None:
    x, field = latents.noise(42, SHAPE), Field(gaussian)
    out = solver(name)(field, x, [0.8, 0.3], **SETTINGS)
    torch.testing.assert_close(out, x * math.sqrt((1 + 0.3**2) / (1 + 0.8**2)))
    assert len(field.calls) == 1


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_that_goes_nowhere_changes_nothing(name: str) -> None:
    x = latents.noise(42, SHAPE)
    whole = solver(name)(Field(gaussian), x, [0.9, 0.7, 0.5, 0.3, 0.0], **SETTINGS)
    padded = solver(name)(Field(gaussian), x, [0.9, 0.9, 0.7, 0.5, 0.5, 0.3, 0.0, 0.0], **SETTINGS)
    assert torch.equal(whole, padded)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("sigmas", [[0.0001, 0.2, 0.5, 0.8, 1.0], [14.6, 3.0, 1.0, 0.5, 0.0], [1.0, 1.0, 0.0, 0.0]])
def test_unusual_levels_stay_finite(name: str, sigmas: list[float]) -> None:
    """Flipped schedules, and those of other kinds of models."""
    assert solver(name)(Field(gaussian), latents.noise(1, SHAPE), sigmas, **SETTINGS).isfinite().all()


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "dpmpp_2m", "euler_cfg_pp"])
def test_rising_levels_turn_a_picture_back_into_its_noise(name: str) -> None:
    x = M + C * latents.noise(1, SHAPE)
    sigmas = levels(200, 0.001, 0.999)
    out = solver(name)(Field(gaussian), x, sigmas, **SETTINGS)
    assert (out - flown(x, sigmas[0].item(), sigmas[-1].item())).abs().max() < 0.1


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_the_seed_decides_and_nothing_else(name: str) -> None:
    x, sigmas = latents.noise(1, SHAPE), schedule.schedule("simple", FluxShift(), 5)
    outs = [solver(name)(Field(gaussian), x, sigmas, sampling=FluxShift(), seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - STOCHASTIC - CFG_PP))
def test_other_solvers_know_no_chance(name: str) -> None:
    x, sigmas = latents.noise(1, SHAPE), schedule.schedule("simple", FluxShift(), 5)
    outs = [solver(name)(Field(gaussian), x, sigmas, sampling=FluxShift(), seed=seed) for seed in (3, 4)]
    assert torch.equal(*outs)


@pytest.mark.parametrize(
    ("name", "options", "plain"),
    [
        ("euler_ancestral", {"eta": 0.0}, "euler"),
        ("dpm_2_ancestral", {"eta": 0.0}, "dpm_2"),
        ("res_multistep_ancestral", {"eta": 0.0}, "res_multistep"),
        ("gradient_estimation", {"gamma": 1.0}, "euler"),
        ("lms", {"order": 1}, "euler"),
        ("ipndm", {"order": 1}, "euler"),
        ("ipndm_v", {"order": 1}, "euler"),
        ("ipndm", {"order": 2}, "ipndm_v"),
        ("euler_ancestral_cfg_pp", {"eta": 0.0}, "euler_cfg_pp"),
        ("euler_cfg_pp", {}, "euler"),
        ("ddim", {}, "euler"),
    ],
)
def test_solvers_without_their_speciality_are_simpler_ones(name: str, options: dict[str, Any], plain: str) -> None:
    x, sigmas = latents.noise(1, SHAPE), torch.linspace(0.9, 0.1, 5)  # even steps, for ipndm
    extra: dict[str, Any] = {"order": 2} if plain == "ipndm_v" else {}
    got = solver(name)(Field(gaussian), x, sigmas, **SETTINGS, **options)
    expected = solver(plain)(Field(gaussian), x, sigmas, **SETTINGS, **extra)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def note_mean(steps: list[tuple[int, float]], i: int, D: Tensor, x: Tensor) -> None:
    steps.append((i, D.mean().item()))


def test_every_step_is_reported_once_with_what_was_seen() -> None:
    sigmas = schedule.schedule("simple", FluxShift(), 6)
    for name in SOLVERS.keys() - STOPS_ABOVE_0:
        steps: list[tuple[int, float]] = []
        field = Field(lambda x, s: (x * 0 + s, x * 0))
        method = solver(name)
        method(
            field,
            latents.noise(1, SHAPE),
            sigmas,
            **SETTINGS,
            on_step=partial(note_mean, steps),
        )
        seen = [
            s if s < 1 or not method.below_one else FluxShift().percent_to_sigma(1e-4) for s in sigmas[:-1].tolist()
        ]
        assert [i for i, _ in steps] == list(range(6)), name
        assert [s for _, s in steps] == pytest.approx(seen, abs=1e-6), name


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_lagrange_integrals_are_exact(count: int) -> None:
    nodes = [0.9, 0.75, 0.6, 0.2, 0.5, 0.1, 0.05][:count]
    weights = lagrange_integrals(nodes, 0.2, -0.1)
    for power in range(count):
        exact = ((-0.1) ** (power + 1) - 0.2 ** (power + 1)) / (power + 1)
        assert sum(w * u**power for w, u in zip(weights, nodes, strict=True)) == pytest.approx(exact, abs=1e-12)


# The noise on the way.


def test_plain_draws_begin_with_the_initial_noise() -> None:
    x = latents.noise(42, (1, 16, 8, 8))
    draw = step_noise.plain(x, 42, [1.0, 0.0])
    assert torch.equal(draw(1.0, 0.9), x)
    second = [-1.2247875928878784, 0.962885856628418, -1.5785412788391113, 0.6715953946113586]  # ComfyUI's
    assert draw(0.9, 0.7).flatten()[:4].tolist() == second


def test_a_brownian_path_is_comfyuis() -> None:
    x = torch.zeros(1, 16, 8, 8)
    draw = step_noise.brownian(x, 42, [1.0, 0.1425, 0.0])
    first = [-1.1919975280761719, -0.4421345889568329, -0.11322934925556183, 0.49034634232521057]
    then = [-1.1377787590026855, 1.3456323146820068, 0.9514867067337036, -0.028466055169701576]
    assert draw(1.0, 0.9).flatten()[:4].tolist() == pytest.approx(first, rel=1e-6)
    assert draw(0.9, 0.7).flatten()[:4].tolist() == pytest.approx(then, rel=1e-6)


@pytest.mark.parametrize("kind", [step_noise.brownian, step_noise.brownian_on_device])
def test_increments_of_a_path_add_up(kind: Callable[[Tensor, int, Sigmas], StepNoise]) -> None:
    draw = kind(torch.zeros(1, 16, 16, 16), 7, [1.0, 0.1, 0.0])
    stops = [0.95, 0.6, 0.35, 0.2]
    parts = sum(draw(a, b) * math.sqrt(a - b) for a, b in pairwise(stops))
    whole = draw(stops[0], stops[-1]) * math.sqrt(stops[0] - stops[-1])
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-3)  # the tree resolves times to 1e-6
    torch.testing.assert_close(draw(0.35, 0.6), -draw(0.6, 0.35))
    assert whole.std().item() == pytest.approx(math.sqrt(0.75), rel=0.05)


def test_a_path_does_not_depend_on_the_number_of_steps() -> None:
    x = torch.zeros(1, 16, 8, 8)
    few = step_noise.brownian(x, 7, [1.0, 0.1, 0.0])
    many = step_noise.brownian(x, 7, [1.0, 0.8, 0.6, 0.4, 0.1, 0.0])
    many(1.0, 0.8)
    assert torch.equal(few(0.8, 0.6), many(0.8, 0.6))


def test_a_missing_torchsde_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchsde", None)
    with pytest.raises(SluiceError, match="pip install torchsde"):
        solver("dpmpp_sde")(Field(gaussian), latents.noise(1, SHAPE), [0.9, 0.5, 0.0], **SETTINGS)


def test_noise_may_be_handed_in() -> None:
    asked: list[tuple[float, float]] = []

    def draw(s: float, s_next: float) -> Tensor:
        asked.append((s, s_next))
        return torch.ones(SHAPE)

    solver("lcm")(Field(gaussian), torch.zeros(SHAPE), [0.9, 0.5, 0.2, 0.0], **SETTINGS, noise=draw)
    assert asked == [(0.9, 0.5), (0.5, 0.2)]


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(InputError, match="'dpmpp'.*euler, euler_cfg_pp"):
        solver("dpmpp")
    with pytest.raises(InputError, match="lms has no option named eta"):
        solver("lms")(Field(gaussian), latents.noise(1, SHAPE), [0.9, 0.0], **SETTINGS, eta=0.5)
