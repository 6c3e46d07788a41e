"""Step caches: the pattern of skipped evaluations, what they return, and that no state survives a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from doubles.network import NetworkModel
from sluice.flux_core.errors import Interrupted
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.sampling.guider import BasicGuider, CFGGuider
from sluice.flux_core.sampling.sample import Sampler, sample
from sluice.flux_core.sampling.schedule import LinearFlow, simple
from sluice.flux_core.sampling.step_cache import CachedEvaluations, StepCache
from torch import Tensor

FLOW = LinearFlow(1.0)


def velocity(x: Tensor, t: float, prompt: float) -> Tensor:
    """A smooth network of its own: cheap, not linear, different for each prompt."""
    return torch.tanh(x * (1.3 - t)) * (1 + 0.3 * prompt) + 0.2 * math.sin(5 * t) * x


class Counted:
    """The network, and at which times it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float]] = []

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        t, prompt = float(inputs.timesteps[0]), float(inputs.context.mean())
        self.calls.append((t, prompt))
        return velocity(inputs.x, t, prompt)


def entry(prompt: float) -> list[Any]:
    return [[torch.full((1, 2, 4), prompt), {"pooled_output": torch.zeros(1, 3)}]]


def run(cache: StepCache | None, *, steps: int = 20, cfg: float | None = None, sampler: str = "euler") -> Any:
    network = Counted()
    model = NetworkModel(network, FLOW, step_cache=cache)
    guider: Any = BasicGuider(model, entry(1)) if cfg is None else CFGGuider(model, entry(1), entry(-1), cfg)
    noise = torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(3))
    out, _ = sample(guider, Sampler(sampler), simple(FLOW, steps), torch.zeros_like(noise), noise, seed=1)
    return out, network.calls


@pytest.mark.parametrize("keeps", ["velocity", "difference", "denoised"])
@pytest.mark.parametrize(("sampler", "cfg"), [("euler", None), ("heun", 3.0), ("dpmpp_2m_sde", None)])
def test_threshold_0_changes_no_bit(keeps: str, sampler: str, cfg: float | None) -> None:
    exact, calls = run(None, cfg=cfg, sampler=sampler)
    cached, same = run(StepCache(0.0, keeps=keeps, every=8), cfg=cfg, sampler=sampler)
    assert torch.equal(exact, cached) and calls == same


def euler_by_the_rule(threshold: float, every: int, reuse: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
    """The rule stated once more, step by step, for Euler and one condition. reuse: (x, x_i, v_i) -> the reused v."""
    sigmas = simple(FLOW, 20).tolist()
    start, end = (torch.tensor(FLOW.percent_to_sigma(share)).item() for share in (0.15, 0.95))  # fp32, as in ComfyUI
    x = sigmas[0] * torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(3))
    last: tuple[Tensor, Tensor] | None = None  # of the last full evaluation at or below `start`
    before: tuple[Tensor, Tensor] | None = None
    e, calls = 0.0, []
    for s, s_next in zip(sigmas, sigmas[1:], strict=False):
        v = None
        if end < s <= start and last is not None and before is not None:

            def sub(y: Tensor) -> Tensor:
                return y[..., ::every, ::every]

            k = (sub(last[1]) - sub(before[1])).abs().mean() / (sub(last[0]) - sub(before[0])).abs().mean()
            e += float(k * (sub(x) - sub(last[0])).abs().mean() / last[1].abs().mean())
            if e < threshold:
                v = reuse(x, *last)
            else:
                e = 0.0
        if v is None:
            v = velocity(x, torch.tensor(s).item(), 1.0)
            calls.append(torch.tensor(s).item())
            if end < s <= start:
                before, last = last, (x, v)
        x = x + (s_next - s) * v
    return x, calls


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.3])
@pytest.mark.parametrize(
    ("keeps", "reuse"), [("velocity", lambda x, x_i, v_i: v_i), ("difference", lambda x, x_i, v_i: x + (v_i - x_i))]
)
def test_skips_and_results_follow_the_rule(threshold: float, keeps: str, reuse: Any) -> None:
    expected, calls = euler_by_the_rule(threshold, 8, reuse)
    out, made = run(StepCache(threshold, keeps=keeps, every=8))
    assert [t for t, _ in made] == calls and 6 < len(calls) < 20
    torch.testing.assert_close(out, expected / FLUX_SCALE + FLUX_SHIFT, rtol=1e-4, atol=1e-4)


FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159  # of FLUX's latents: what `sample` returns is in the autoencoder's scale


def test_all_conditions_of_a_step_are_skipped_together() -> None:
    _, calls = run(StepCache(0.1), cfg=3.0)
    times = {prompt: [t for t, of in calls if of == prompt] for prompt in (1.0, -1.0)}
    assert times[1.0] == times[-1.0] and len(times[1.0]) < 20


def test_lazy_cache_skips_the_whole_guider_and_stays_close() -> None:
    exact, _ = run(None, cfg=2.0)
    out, calls = run(StepCache(0.03, keeps="denoised"), cfg=2.0)
    assert len(calls) % 2 == 0 and len(calls) < 40
    assert (out - exact).abs().mean() < 0.15 * exact.abs().mean()


def test_a_run_takes_nothing_from_the_run_before() -> None:
    cache = StepCache(0.1)
    first, again = run(cache), run(cache)
    assert torch.equal(first[0], again[0]) and first[1] == again[1]


def test_a_run_that_ends_early_and_other_weights_leave_nothing_to_the_next_run() -> None:
    """The result is that of a new cache, independent of earlier runs with the same setting."""
    cache = StepCache(0.1)
    fresh, calls = run(StepCache(0.1))

    class Ends(Counted):
        def __call__(self, inputs: DenoiserInputs) -> Tensor:
            if len(self.calls) == 6:
                raise Interrupted
            return 1.5 * super().__call__(inputs)  # as a LoRA changes it

    model = NetworkModel(Ends(), FLOW, step_cache=cache)
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))  # another size as well
    with pytest.raises(Interrupted):
        sample(BasicGuider(model, entry(1)), Sampler("euler"), simple(FLOW, 20), torch.zeros_like(noise), noise, seed=1)
    again, made = run(cache)
    assert torch.equal(again, fresh) and made == calls


def test_a_rising_noise_level_and_another_size_start_anew() -> None:
    cached = CachedEvaluations(StepCache(1e9), start=1.0, end=0.0)
    made: list[float] = []

    def at(sigma: float, size: int = 4) -> None:
        x = torch.full((1, 1, size, size), sigma)
        cached.begin(sigma)
        cached.evaluate("c", x, lambda: made.append(sigma) or 2 * x)  # type: ignore[func-returns-value]

    for sigma in (0.9, 0.8, 0.7, 0.6):
        at(sigma)
    assert made == [0.9, 0.8]  # two full evaluations give the rate; all later ones are skipped
    at(0.95)
    assert made == [0.9, 0.8, 0.95]
    at(0.5)
    at(0.4)
    at(0.3, size=8)
    assert made == [0.9, 0.8, 0.95, 0.5, 0.3] and (cached.computed, cached.reused) == (5, 3)


def test_the_drift_is_the_error_of_one_more_skip() -> None:
    cached = CachedEvaluations(StepCache(0.5), start=1.0, end=0.0)
    inputs, outputs = (1.0, 0.9, 0.89, 0.3), (1.0, 1.1, 5.0, 2.0)
    for sigma, x, v in zip((0.9, 0.8, 0.7, 0.6), inputs, outputs, strict=True):
        cached.begin(sigma)
        cached.evaluate("c", torch.full((1, 1, 2, 2), x), partial(torch.full, (1, 1, 2, 2), v))
    assert cached.reused == 1  # the third; the fourth would have returned 1.1 instead of 2
    assert cached.largest_drift == pytest.approx(0.9 / 2.0, rel=1e-5)
