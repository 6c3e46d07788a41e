"""One image on several devices, as processes: the numbers of one, budgets kept, faults told by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from doubles import adapter_files
from doubles.seeded import fill_module, seeded_tensor
from safetensors.torch import save_file
from sluice.flux_core.cancel import cancellable
from sluice.flux_core.errors import InputError, SluiceError
from sluice.flux_core.memory import meter
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.parallel.split import Split
from sluice.flux_core.runtime.handles import FluxModel, load_flux
from sluice.flux_core.runtime.lora_files import read_lora
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.runtime.team import Team, TeamSettings
from sluice.flux_core.sampling.conditions import Condition
from sluice.flux_core.sampling.guider import Run
from torch import Tensor

CONFIG = replace(FluxConfig(**adapter_files.SIZES), hidden=256, heads=2, mlp=1024)
TIMES = (0.9, 0.5)
ROOM = 400 << 20  # bytes for models, beside what this process has in memory already


def allowed() -> Allowed:
    """A budget that the tests which ran before in this process have not used up."""
    return Allowed(None, meter.resident_bytes() + ROOM)


Made = Callable[..., Runtime]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer and, beside it, a LoRA."""
    folder = tmp_path_factory.mktemp("team")
    state = fill_module(Flux(CONFIG)).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "flux.safetensors")
    save_file(adapter_files.plain(state), folder / "lora.safetensors")
    return folder / "flux.safetensors"


@pytest.fixture
def team() -> Iterator[Made]:
    """team(split, budget, seconds): a runtime on as many processors as the split has, ended afterwards."""
    teams: list[Team] = []

    def make(
        split: Split, budget: Allowed | None = None, hand: Allowed | None = None, seconds: float = 30.0
    ) -> Runtime:
        budget = budget or allowed()
        runtime = Runtime(Settings("cpu", "fp32", budget))
        options: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "threads": 1, **(hand or budget).words}
        names = tuple(f"cpu:{number}" for number in range(split.size))
        shares = 2 if split.sp == 2 else 1
        runtime.team = Team(TeamSettings(names, (options,) * (split.size - 1), split, shares, seconds), runtime.device)
        teams.append(runtime.team)
        return runtime

    yield make
    for one in teams:
        one.close()


def model_of(runtime: Runtime, file: Path) -> FluxModel:
    model = load_flux(runtime, file)
    return read_lora(model, None, file.with_name("lora.safetensors")).added_to(model, None, 0.7)[0]


def look(model: FluxModel, between: Callable[[], object] = lambda: None) -> list[Tensor]:
    """The velocities of two steps."""
    x = seeded_tensor("x", (1, 16, 10, 6))
    condition = Condition(seeded_tensor("c", (1, 5, CONFIG.context_dim)), seeded_tensor("y", (1, CONFIG.vec_dim)), 4.0)
    found = []
    with torch.inference_mode(), model.open(Run(tuple(x.shape), TIMES, (condition,))) as network:
        for time in TIMES:
            found.append(network(condition.inputs(x, time, model.dtype)))
            between()
    return found


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "hand.py" in " ".join(child.cmdline())]


def distance(got: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("split", [Split(2, 1), Split(1, 2)], ids=["tokens", "rows"])
def test_two_processes_stream_the_velocity_of_one_with_a_lora(team: Made, file: Path, split: Split) -> None:
    """And two without a budget, which load it whole."""
    limit = allowed()
    alone, two = Runtime(Settings("cpu", "fp32", limit)), team(split, limit)
    plans: list[list[dict[str, Any]]] = [[], []]
    for heard, runtime in zip(plans, (alone, two), strict=True):
        runtime.events.listen(heard.append)
    expected, model = look(model_of(alone, file)), model_of(two, file)
    got, again = look(model), look(model)
    assert distance(got, expected) < 5e-6 and all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    first_plan, plan = (next(e["plan"] for e in heard if e["type"] == "memory.plan") for heard in plans)
    whole, part = (sum(unit["bytes"] for unit in one["units"]) for one in (first_plan, plan))
    assert part == whole if split.sp == 2 else part <= 0.51 * whole
    assert limit.ram is not None and plan["peak_bytes"] <= limit.ram
    free = team(split, Allowed(managed=False))
    assert distance(look(model_of(free, file)), expected) < 5e-6
    (first, second) = children()
    for one in (two, free):
        assert one.team is not None
        one.team.close()
    assert not first.is_running() and not second.is_running()


def test_a_device_that_dies_or_hangs_is_named_and_the_next_image_is_made(team: Made, file: Path) -> None:
    runtime = team(Split(2, 1), Allowed(managed=False), seconds=2.0)
    model = model_of(runtime, file)
    expected = look(model)
    (before,) = children()
    with pytest.raises(SluiceError, match=rf"device cpu:1 \(pid {before.pid}\) was killed by signal 9"):
        look(model, between=before.kill)
    assert not children() and distance(look(model), expected) == 0
    (other,) = children()
    with pytest.raises(SluiceError, match="cpu:1 did not answer for 2 seconds"):
        look(model, between=other.suspend)
    assert not other.is_running() and distance(look(model), expected) == 0

    class Stopped(Exception):
        pass

    asked: list[None] = []

    def ask() -> None:
        if asked:
            raise Stopped

    with pytest.raises(Stopped), cancellable(ask):
        look(model, between=lambda: asked.append(None))
    (third,) = children()
    assert distance(look(model), expected) == 0 and children() == [third]  # cancelling costs no restart


def test_what_another_device_refuses_is_told_with_its_name(team: Made, file: Path) -> None:
    runtime = team(Split(2, 1), hand=Allowed(None, 100 << 20))
    with pytest.raises(SluiceError, match="The device cpu:1: .*budget is 100 MiB"):
        look(model_of(runtime, file))
    with pytest.raises(InputError, match="2 heads, too few for 64 devices"):
        look(model_of(team(Split(64, 1)), file))
