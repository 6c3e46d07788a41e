"""A training step with streamed weights is the step of autograd over the resident model: bit for bit, in the budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.seeded import Fill
from doubles.simulated import SimulatedMemory
from safetensors.torch import save_file
from sluice.flux_core.bench.training import read_as_planned
from sluice.flux_core.checkpoint.detect import detect
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.convert.convert import steps_of, write
from sluice.flux_core.convert.targets import target
from sluice.flux_core.errors import BudgetTooSmall, InputError
from sluice.flux_core.memory import rates
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.memory.plan import smallest_budget
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models.copies import deep
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.runtime.handles import FluxModel, load_flux
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.training.lora.adapter import TrainedLora, chosen_layers
from sluice.flux_core.training.lora.kept import DEVICE, DISK, RAM
from sluice.flux_core.training.lora.ready import Pictures, ReadyStreamed, foreseen, observe_walk, ready
from torch import Tensor

SMALL = FluxConfig(
    in_channels=16, out_channels=16, hidden=256, heads=2, head_dim=128, mlp=512, depth=1, depth_single=5,
    context_dim=32, vec_dim=32, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
CPU = torch.device("cpu")
Files = Callable[[str], Path]


@pytest.fixture
def files(fill: Fill, tmp_path: Path) -> Files:
    """files(format): the model stored in it."""
    plain = tmp_path / "flux.safetensors"
    save_file({name: value.clone() for name, value in fill(Flux(SMALL)).state_dict().items()}, plain)

    def file(format: str) -> Path:
        if format == "F32":
            return plain
        wanted = target(format)
        path = tmp_path / f"{format}.{'gguf' if wanted.container == 'GGUF' else 'safetensors'}"
        write(path, "flux", steps_of("flux", detect(open_weights(plain)).parts["flux"], wanted), wanted, {})
        return path

    return file


def runtime_of(dtype: str, budget: int | None = None) -> Runtime:
    """budget: bytes beside what the workspace is thought to take; None for a model that is loaded whole."""
    runtime = Runtime(Settings("cpu", dtype))
    if budget is None:
        runtime.budget = Allowed(managed=False)
    else:
        runtime.budget = Allowed(ram=budget)
        manager = runtime.managers[CPU] = Manager(CPU, runtime.budget)
        manager.memory = SimulatedMemory(budget + 128 * MiB)
    return runtime


def lora_for(model: FluxModel, layers: str = "all", rank: int = 3) -> TrainedLora:
    """With an `up` that is not zero, so that every gradient counts."""
    with torch.device("meta"):
        shapes = chosen_layers(Flux(model.weights.config), layers)
    lora = TrainedLora(shapes, rank, 2.0, model.device, model.dtype)
    generator = torch.Generator().manual_seed(5)
    lora.load({name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in lora.state().items()})
    return lora


def pictures(batch: int, height: int = 8) -> Pictures:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, target = normal(batch, 16, height, 6), normal(batch, 16, height, 6)
    times, guidance = torch.linspace(0.8, 0.3, batch), torch.ones(batch)
    return Pictures(x, times, normal(batch, 7, 32), normal(batch, 32), guidance, target)


def by_autograd(model: FluxModel, lora: TrainedLora, given: Pictures) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients from one graph over the whole resident model."""
    flux = deep(lora.beside(model.weights.module(CPU, model.dtype))).train()
    dtype = model.dtype
    inputs = DenoiserInputs(given.x.to(dtype), given.timesteps, given.context.to(dtype), given.pooled, given.guidance)
    errors = (flux(inputs).float() - given.target).square()
    if given.weights is not None:
        errors = errors * given.weights
    losses = errors.flatten(1).mean(1)
    return losses.detach(), list(torch.autograd.grad(losses.mean(), lora.copies))


def by_walk(
    model: FluxModel, lora: TrainedLora, given: Pictures, place: str, folder: Path, steps: int = 2
) -> tuple[Tensor, list[Tensor]]:
    """The same by the walk, the second of two equal steps: the first one also fills what stays."""
    with ready(model, lora, given, place, folder) as steps_of_it:
        for _ in range(steps):
            found = steps_of_it.step(given)
        assert [id(tensor) for tensor in steps_of_it.walk.trained] == [id(copy) for copy in lora.copies]
    return found.losses, list(found.gradients)


def same(left: tuple[Tensor, list[Tensor]], right: tuple[Tensor, list[Tensor]]) -> bool:
    return torch.equal(left[0], right[0]) and all(map(torch.equal, left[1], right[1]))


@pytest.fixture(autouse=True)
def known_rates_and_no_feeder_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rates, "disk_rate", lambda pieces: 1e9)
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "sluice-feeder"]


WAYS = [
    ("F32", "fp32", 1, "blocks"), ("F32", "fp32", 2, "all"), ("bf16", "bf16", 2, "blocks"), ("fp8", "bf16", 1, "all"),
    ("fp8", "fp32", 2, "blocks"), ("Q8_0", "bf16", 2, "all"), ("Q4_K", "fp32", 1, "blocks"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "dtype", "batch", "layers"), WAYS)
def test_a_streamed_step_has_the_bits_of_autograd_over_the_resident_model(
    files: Files, tmp_path: Path, format: str, dtype: str, batch: int, layers: str
) -> None:
    path, given = files(format), pictures(batch)
    whole = load_flux(runtime_of(dtype), path)
    expected = by_autograd(whole, lora_for(whole, layers), given)
    assert all(gradient.isfinite().all() and gradient.count_nonzero() for gradient in expected[1])
    assert same(by_walk(whole, lora_for(whole, layers), given, DEVICE, tmp_path), expected)
    least = max(smallest_for(path, dtype, given, layers), table_bytes(path, dtype))
    ways = [(0, DISK), (300_000, RAM), (1 << 30, DEVICE)]
    for extra, place in ways if format == "F32" else ways[batch - 1 :: 2][:1]:
        tight = load_flux(runtime_of(dtype, least + extra), path)
        assert same(by_walk(tight, lora_for(tight, layers), given, place, tmp_path), expected)
        report = tight.weights.managed(tight.runtime.managers[CPU], tight.dtype).report
        assert (report.plan.slots == 0) == (extra == 1 << 30)
        assert report.restarts == 1, "once for each plan: the order of use is the one foreseen"


def smallest_for(path: Path, dtype: str, given: Pictures, layers: str, place: str = DEVICE) -> int:
    """Bytes below which there is no plan for steps."""
    model = load_flux(runtime_of(dtype, 1 << 40), path)
    managed, lora = model.weights.managed(model.runtime.managers[CPU], model.dtype), lora_for(model, layers)
    run = observe_walk(lora.beside(managed.module), given, place, model.dtype)
    plan = managed.foreseen(run, place, 16)
    return smallest_budget(plan.workload, plan.machine) - 128 * MiB


def table_bytes(path: Path, dtype: str) -> int:
    """What the pass over the adaLN matrices needs; of a model as small as this one it may be more than steps need."""
    model = load_flux(runtime_of(dtype, 1 << 40), path)
    managed = model.weights.managed(model.runtime.managers[CPU], model.dtype)
    nbytes: int = sum(weight.nbytes + 8192 for weight in managed.modulation.weights)
    return nbytes + MiB


def test_a_block_that_runs_out_of_memory_going_backwards_is_run_again(files: Files, tmp_path: Path) -> None:
    path, given = files("fp8"), replace(pictures(1), weights=torch.rand(1, 1, 8, 6))
    whole = load_flux(runtime_of("fp32"), path)
    expected = by_autograd(whole, lora_for(whole), given)
    tight = load_flux(
        runtime_of("fp32", max(smallest_for(path, "fp32", given, "all"), table_bytes(path, "fp32"))), path
    )
    lora = lora_for(tight)
    with ready(tight, lora, given, DEVICE, tmp_path) as steps:
        block: Any = steps.walk.blocks[1]
        forward, failures = block.forward, iter((True, True))

        def failing(*args: Any) -> object:
            result = forward(*args)
            if next(failures, False):
                raise torch.OutOfMemoryError("made up")
            return result

        block.forward = failing
        first, second = steps.step(given), steps.step(given)
        assert next(failures, None) is None
    assert same((first.losses, list(first.gradients)), expected)
    assert same((second.losses, list(second.gradients)), expected)
    told = tight.weights.managed(tight.runtime.managers[CPU], tight.dtype).report.steps
    assert told[1].fetched_bytes == told[1].planned_bytes


def test_each_step_fetches_what_the_plan_in_force_says(files: Files, tmp_path: Path) -> None:
    """Also the step after a change of the plan, which brings other weights to stay, and with what was read ahead."""
    path, given = files("F32"), pictures(1)
    least = max(smallest_for(path, "fp32", given, "blocks"), table_bytes(path, "fp32"))
    model = load_flux(runtime_of("fp32", least + 4 * MiB), path)
    managed = model.weights.managed(model.runtime.managers[CPU], model.dtype)
    with ready(model, lora_for(model, "blocks"), given, DEVICE, tmp_path) as steps:
        steps.step(given)
        before, source = managed.report.plan, managed.blocks.source
        assert isinstance(steps, ReadyStreamed)
        running = steps.running
        running.demand.activations[running.demand.key] += 3 * MiB
        running.replan()
        after = managed.report.plan
        steps.step(given)
        steps.step(given)
    told = managed.report.steps
    assert 0 < after.resident_bytes < before.resident_bytes and before.streamed_bytes < after.streamed_bytes
    assert told[0].planned_bytes == before.streamed_bytes + before.resident_bytes
    assert after.streamed_bytes <= told[1].planned_bytes and told[2].planned_bytes == after.streamed_bytes
    record = {
        "fetched_bytes": [step.fetched_bytes for step in told],
        "planned_bytes": [step.planned_bytes for step in told],
        "read_bytes": [source.bytes_read],
        "most_ahead_bytes": 2 * max(before.ring_bytes, after.ring_bytes),
    }
    assert managed.report.restarts == 2 and read_as_planned(record)
    assert not read_as_planned(record | {"planned_bytes": [step.planned_bytes - 1 for step in told]})
    assert not read_as_planned(record | {"most_ahead_bytes": source.bytes_read - sum(record["fetched_bytes"]) - 1})


def test_only_what_is_trained_is_walked_back_to(files: Files, tmp_path: Path) -> None:
    """With one late layer, blocks below it are neither kept nor run again, and the gradients are the same."""
    patterns = tmp_path / "layers.txt"
    patterns.write_text("# the last block\nsingle_blocks.4.linear2\n")
    model, given = load_flux(runtime_of("fp32"), files("F32")), pictures(1)
    expected = by_autograd(model, lora_for(model, str(patterns)), given)
    lora = lora_for(model, str(patterns))
    with ready(model, lora, given, DEVICE, tmp_path) as steps:
        for block in steps.walk.blocks[:5]:
            block.forward = lambda *args: pytest.fail("nothing here is trained")  # type: ignore[method-assign]
        assert same((lambda found: (found.losses, list(found.gradients)))(steps.step(given)), expected)
    with pytest.raises(InputError, match=r"No layer .* single_blocks\.7\.linear2"):
        patterns.write_text("double_blocks.9.*")
        lora_for(model, str(patterns))


def test_the_plan_says_where_block_inputs_wait_and_what_would_do(files: Files) -> None:
    path, given = files("F32"), pictures(2, 64)
    least = smallest_for(path, "fp32", given, "blocks")
    kept = load_flux(runtime_of("fp32", 1 << 40), path)
    plan = foreseen(kept, lora_for(kept, "blocks"), given)
    assert plan is not None and plan.place == DEVICE and plan.plan.slots == 0
    assert plan.kept_bytes == 6 * 2 * (7 + 32 * 3) * 256 * 4
    needed = {place: smallest_for(path, "fp32", given, "blocks", place) for place in (DEVICE, DISK)}
    assert needed[DISK] + plan.kept_bytes // 4 < needed[DEVICE] < needed[DISK] + plan.kept_bytes
    tight = load_flux(runtime_of("fp32", (needed[DISK] + needed[DEVICE]) // 2), path)
    moved = foreseen(tight, lora_for(tight, "blocks"), given)
    assert moved is not None and moved.place == DISK and moved.plan.workload.repeats
    streams = moved.plan.streamed_bytes, sum(group.nbytes for group in moved.plan.groups)
    assert streams[1] < streams[0] < 2 * streams[1], "most is fetched twice, what is at the turns once"
    none = load_flux(runtime_of("fp32", least // 4), path)
    with pytest.raises(BudgetTooSmall, match=r"needs at least \d+ MiB"):
        foreseen(none, lora_for(none, "blocks"), given)
