"""One measurement of a model's steps: its setup, its runtime, and Euler steps without a workflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..memory.budget import AUTO
from ..memory.manager import Manager
from ..runtime.runtime import Runtime
from ..runtime.settings import Settings


@dataclass(frozen=True)
class Setup:
    """One measurement. file: a name for `files.path_of`. tokens: of text."""

    folder: str
    file: str
    device: str
    vram: str
    ram: str
    width: int
    height: int
    tokens: int
    steps: int
    batch: int
    cache: str = "off"  # a word of settings.CACHES
    compute: str = AUTO  # a word of settings.COMPUTES


def runtime_of(setup: Setup) -> Runtime:
    """A runtime with the device, budgets, cache and products of a setup."""
    return Runtime(Settings.parse(setup.device, AUTO, setup.vram, setup.ram, setup.cache, setup.compute))


def condition_of(setup: Setup, device: torch.device, prompt: int = 0) -> Any:
    """Random numbers in place of an encoded prompt."""
    from ..sampling.conditions import Condition

    generator = torch.Generator().manual_seed(prompt)
    context, pooled = torch.randn(1, setup.tokens, 4096, generator=generator), torch.randn(1, 768, generator=generator)
    return Condition(context=context.to(device), pooled=pooled, guidance=3.5)


class SlowlyChanging:
    """Makes velocities of random weights change between steps as slowly as those of a model that was trained.

    Random weights give another velocity at each step, and a step cache would skip nothing. So the velocity is a
    constant plus a small multiple of the network's. CHANGE: mean|v_i - v_(i-1)| / mean|v| of the shipped model in 20
    steps, its median over the noise levels at which steps may be skipped.
    """

    CHANGE = 0.03

    def __init__(self) -> None:
        self._constant: Tensor | None = None
        self._first: Tensor | None = None
        self._factor: float | None = None

    def __call__(self, velocity: Tensor) -> Tensor:
        """The velocity [B, 16, h, w] that is used. The second call determines the multiple."""
        if self._constant is None or self._first is None:
            generator = torch.Generator().manual_seed(0)
            self._constant = torch.randn(velocity.shape, generator=generator).to(velocity.device)
            self._first = velocity
            return self._constant
        if self._factor is None:
            change = float((velocity - self._first).abs().mean())
            self._factor = self.CHANGE * float(self._constant.abs().mean()) / change if change else 0.0
        return self._constant + self._factor * velocity


@torch.inference_mode()
def sample(
    model: Any, setup: Setup, condition: Any, seed: int, on_step: Callable[[int], object] = lambda number: None,
    on_velocity: Callable[[Tensor], object] = lambda velocity: None,
    adjust: Callable[[Tensor], Tensor] = lambda velocity: velocity,
) -> tuple[Tensor, int]:  # fmt: skip
    """Euler steps without the sampling nodes: the calls of the network alone, with a step cache if one is set.

    adjust is called for each computed velocity and returns the one that is used. on_step and on_velocity are called
    after each step with its number, and with its velocity [B, 16, h, w] in float32.
    Returns the latent and the number of evaluations that were computed.
    """
    from ..sampling.guider import Run
    from ..sampling.step_cache import CachedEvaluations

    shape = (setup.batch, 16, setup.height // 8, setup.width // 8)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
    sigmas = torch.linspace(1, 0, setup.steps + 1).tolist()
    setting = model.step_cache
    cache = setting and CachedEvaluations(setting, 1 - setting.start_percent, 1 - setting.end_percent)
    computed = 0
    with model.open(Run(shape, tuple(sigmas[:-1]), (condition,))) as network:
        for number, (level, following) in enumerate(zip(sigmas, sigmas[1:], strict=False), start=1):

            def compute(x: Tensor = x, level: float = level) -> Tensor:
                nonlocal computed
                computed += 1
                return adjust(network(condition.inputs(x, level, model.dtype)).float())

            if cache:
                cache.begin(level)
            velocity = cache.evaluate("condition", x, compute) if cache else compute()
            x = x + (following - level) * velocity
            on_velocity(velocity)
            on_step(number)
    return x, computed


def manager_of(runtime: Runtime) -> Manager:
    """The manager of its models. Ends the program without one."""
    made = runtime.manager(runtime.device, 1 << 62)
    if made is None:
        raise SystemExit("--vram off leaves nothing to measure")
    return made
