"""The training loop, the same for every stage: steps, moving average, checkpoints, a progress bar, sample sheets.

A stage gives a loss for a step number; nothing else here depends on what is learned. A stopped run continues from its
last checkpoint and takes exactly the steps that it would have taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..io.saving import replace
from .optimise import average_into, optimisers, rate_at
from .recipe import FlowRecipe, Phase

LARGEST_GRADIENT = 1.0  # gradients are scaled down to this norm


class Stage(Protocol):
    """One stage of the training."""

    @property
    def name(self) -> str: ...

    @property
    def module(self) -> nn.Module: ...

    @property
    def phase(self) -> Phase: ...

    def loss(self, step: int) -> Tensor:
        """The loss of the step's own batch."""
        ...


def train(
    stage: Stage, recipe: FlowRecipe, folder: Path, on_sample: Callable[[int], None] | None = None, quiet: bool = False
) -> list[float]:
    """Train a stage to its end and leave the averaged weights in its module. Returns the losses of these steps.

    `folder` keeps the checkpoint `<stage>.pt`. `on_sample(step)` is called regularly with the averaged weights in the
    module.
    """
    stage.module.train()
    phase, weights = stage.phase, list(stage.module.parameters())
    averages = [weight.detach().clone() for weight in weights]
    engines = optimisers(stage.module, phase)
    path = folder / f"{stage.name}.pt"
    start = _resume(path, stage.module, averages, engines) if path.exists() else 0
    losses: list[float] = []
    steps = range(start, phase.steps)
    bar = tqdm(steps, initial=start, total=phase.steps, desc=stage.name, disable=quiet, mininterval=5)
    for step in bar:
        losses.append(_step(stage, step, weights, engines))
        average_into(averages, [weight.detach() for weight in weights], phase.average, step)
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}", refresh=False)
        done = step + 1
        if done % recipe.save_every == 0 or done == phase.steps:
            _save(path, done, stage.module, averages, engines)
        if on_sample and (done % recipe.sample_every == 0 or done == phase.steps):
            with_averages(weights, averages, partial(on_sample, done))
    with torch.no_grad():
        _copy_into(weights, averages)
    stage.module.eval()
    return losses


def _step(stage: Stage, step: int, weights: list[nn.Parameter], engines: list[torch.optim.Optimizer]) -> float:
    rate = rate_at(step, stage.phase)
    for engine in engines:
        for group in engine.param_groups:
            group["lr"] = group["peak"] * rate
    loss = stage.loss(step)
    loss.backward()
    nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
    for engine in engines:
        engine.step()
        engine.zero_grad(set_to_none=True)
    return loss.item()


@torch.no_grad()
def with_averages(weights: Sequence[Tensor], averages: list[Tensor], look: Callable[[], None]) -> None:
    """Call `look` while the module holds its averaged weights."""
    kept = [weight.detach().clone() for weight in weights]
    _copy_into(weights, averages)
    try:
        look()
    finally:
        _copy_into(weights, kept)


def _copy_into(weights: Sequence[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(list(weights), values)


def _save(
    path: Path, step: int, module: nn.Module, averages: list[Tensor], engines: list[torch.optim.Optimizer]
) -> None:
    """Write the checkpoint under a temporary name, then replace the old one: a stop at any moment leaves one complete
    file.
    """
    state = {
        "step": step,
        "module": module.state_dict(),
        "averages": averages,
        "engines": [engine.state_dict() for engine in engines],
    }
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    replace(fresh, path)


def _resume(path: Path, module: nn.Module, averages: list[Tensor], engines: list[torch.optim.Optimizer]) -> int:
    state: dict[str, Any] = torch.load(path, map_location=averages[0].device, weights_only=True)
    module.load_state_dict(state["module"])
    torch._foreach_copy_(averages, state["averages"])
    for engine, saved in zip(engines, state["engines"], strict=True):
        peaks = [group["peak"] for group in engine.param_groups]
        engine.load_state_dict(saved)
        for group, peak in zip(engine.param_groups, peaks, strict=True):
            group["peak"] = peak
    return int(state["step"])
