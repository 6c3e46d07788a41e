"""XLabs' sampler: their schedule, guidance from a step on, ControlNets by steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from doubles.network import NetworkModel
from sluice.flux_core.models import latents
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.sampling.schedule import FluxShift
from sluice.flux_core.sampling.xlabs import ControlCondition, XlabsRun, sample_xlabs, xlabs_levels
from torch import Tensor
from torch.testing import assert_close

Seeded = Callable[[str, Sequence[int]], Tensor]


class Net:
    """A ControlNet that is shown pixels."""

    class Weights:
        key = "net"

    weights = Weights()
    modes = ()

    def hint(self, picture: Tensor, mask: Any, autoencoder: Any, height: int, width: int) -> Tensor:
        assert picture.shape[1:3] == (8 * height, 8 * width)
        return picture.movedim(-1, 1)


@pytest.fixture
def given() -> list[DenoiserInputs]:
    return []


@pytest.fixture
def model(given: list[DenoiserInputs]) -> NetworkModel:
    def velocity(inputs: DenoiserInputs) -> Tensor:
        given.append(inputs)
        return torch.tanh(inputs.x) + inputs.context.mean() * inputs.timesteps[0]

    return NetworkModel(velocity, FluxShift())


def prompt(name: str, seeded: Seeded, **values: Any) -> list[Any]:
    return [[seeded(name, (1, 5, 12)), {"pooled_output": seeded(f"{name} y", (1, 9)), **values}]]


def test_the_schedule_is_shifted_by_the_number_of_tokens() -> None:
    levels = xlabs_levels(4, 4096)
    assert levels[0] == 1 and levels[-1] == 0
    assert_close(levels[2], math.exp(1.15) / (math.exp(1.15) + 1), rtol=1e-6, atol=0)
    assert_close(xlabs_levels(2, 256)[1], math.exp(0.5) / (math.exp(0.5) + 1), rtol=1e-6, atol=0)


def test_steps_are_eulers_and_guided_from_a_step_on(
    model: NetworkModel, given: list[DenoiserInputs], seeded: Seeded
) -> None:
    positive, negative = prompt("p", seeded, guidance=4.0), prompt("n", seeded)
    steps: list[tuple[int, int]] = []
    run = XlabsRun(seed=3, steps=4, guided_from=2, cfg=2.5)
    made = sample_xlabs(model, positive, negative, {"samples": torch.zeros(1, 4, 8, 6)}, run,
                        callback=lambda step, D, x, total: steps.append((step, total)))  # fmt: skip
    levels, x = xlabs_levels(4, 12), latents.noise(3, (1, 16, 8, 6), None)
    for number, (now, then) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        ahead, away = (torch.tanh(x) + text[0][0].mean() * now for text in (positive, negative))
        x = x + (then - now) * (away + 2.5 * (ahead - away) if number >= 2 else ahead)
    assert_close(made["samples"], latents.process_out(x), rtol=1e-4, atol=1e-5)
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4)] and len(given) == 6
    assert all(each.guidance is not None and each.guidance.item() == 4.0 for each in given)


def test_a_picture_is_changed_by_its_share_of_the_steps_and_some_steps_may_be_left_out(
    model: NetworkModel, given: list[DenoiserInputs], seeded: Seeded
) -> None:
    positive, negative = prompt("p", seeded), prompt("n", seeded)
    picture = {"samples": seeded("picture", (1, 16, 8, 6))}
    kept = sample_xlabs(model, positive, negative, picture, XlabsRun(3, 4, 9, 1.0, picture_strength=0.0))
    assert torch.equal(kept["samples"], picture["samples"]) and not given
    sample_xlabs(model, positive, negative, picture, XlabsRun(3, 4, 9, 1.0, picture_strength=0.5))
    levels, noise = xlabs_levels(4, 12), latents.noise(3, (1, 16, 8, 6), None)
    start = levels[2] * noise + (1 - levels[2]) * latents.process_in(picture["samples"])
    assert_close(given[0].x, start, rtol=1e-5, atol=1e-5)
    given.clear()
    sample_xlabs(model, positive, negative, {"samples": torch.zeros(1, 16, 8, 6)}, XlabsRun(3, 9, 9, 1.0, share=0.5))
    assert len(given) == 4


def test_controlnets_follow_pictures_in_their_steps(
    model: NetworkModel, given: list[DenoiserInputs], seeded: Seeded
) -> None:
    control = ControlCondition(Net(), seeded("control", (1, 30, 20, 3)).sigmoid(), 0.7, start=0.2, end=0.4)
    empty = {"samples": torch.zeros(1, 16, 8, 6)}
    sample_xlabs(model, prompt("p", seeded), prompt("n", seeded), empty, XlabsRun(3, 5, 9, 1.0), [control])
    assert [[each.strength for each in inputs.controls] for inputs in given] == [[], [0.7], [0.7], [], []]
