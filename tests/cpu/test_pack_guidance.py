"""Guidance functions that packs call, on predictions given by hand."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from flux_core.facade.guidance import Predictions, cfg_function, sampling_function
from flux_core.sampling.guider import Evaluation

POSITIVE, NEGATIVE = ["positive"], ["negative"]
X, SIGMA = torch.zeros(1, 2), torch.tensor([0.5])


class Given:
    """D of conditioning n is n + 1, everywhere; records the conditionings of all calls and their levels."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, list[int]]] = []

    def at(self, x: Tensor, sigma: float) -> Any:
        def evaluate(which: list[int]) -> list[Tensor]:
            self.asked.append((sigma, which))
            return [torch.full_like(x, number + 1.0) for number in which]

        return evaluate


def guided(given: Given, scale: float, **options: Any) -> list[float]:
    model = Predictions(cast(Evaluation, given), {"positive": POSITIVE, "negative": NEGATIVE}, None)
    made: list[float] = sampling_function(model, X, SIGMA, NEGATIVE, POSITIVE, scale, options).flatten().tolist()
    return made


def test_both_prompts_are_asked_for_and_extrapolated_from_the_negative_one() -> None:
    given = Given()
    assert guided(given, 3.0) == [-1.0, -1.0]  # 2 + (1 - 2) * 3
    assert given.asked == [(0.5, [0, 1])]


def test_a_scale_of_one_asks_for_the_prompt_only_unless_that_is_forbidden() -> None:
    given = Given()
    assert guided(given, 1.0) == guided(given, 1.0, disable_cfg1_optimization=True) == [1.0, 1.0]
    assert given.asked == [(0.5, [0]), (0.5, [0, 1])]


def test_functions_of_the_options_replace_guidance_and_follow_it() -> None:
    def half(told: dict[str, Any]) -> Any:
        return (told["cond"] + told["uncond"]) / 2  # of noise: what is subtracted from x

    def plus(told: dict[str, Any]) -> Any:
        return told["denoised"] + 10 * told["cond_scale"]

    assert guided(Given(), 3.0, sampler_cfg_function=half, sampler_post_cfg_function=[plus]) == [31.5, 31.5]


def test_cfg_function_takes_predictions_by_position() -> None:
    model = Predictions(cast(Evaluation, Given()), {}, None)
    assert cfg_function(model, X + 4, X + 2, 2.0, X, SIGMA).tolist() == [[6.0, 6.0]]
