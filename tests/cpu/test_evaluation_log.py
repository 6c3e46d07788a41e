"""A resumed run has the same bits as one that was not stopped, with solvers that use earlier steps too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sluice.flux_core.cancel import cancellable
from sluice.flux_core.conditioning.entries import Conditioning
from sluice.flux_core.errors import Interrupted
from sluice.flux_core.io.folders import TINY_MODELS
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.memory.usage import CpuMemory
from sluice.flux_core.runtime.evaluation_log import EvaluationLog
from sluice.flux_core.runtime.handles import FluxModel, load_flux
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.sampling.guider import CFGGuider
from sluice.flux_core.sampling.sample import Sampler, sample
from sluice.flux_core.sampling.schedule import simple
from sluice.flux_core.sampling.step_cache import PRESETS
from torch import Tensor

STEPS = 6
TINY = TINY_MODELS / "diffusion_models" / "sluice-tiny.safetensors"


@pytest.fixture(params=[False, True], ids=["loaded whole", "managed"])
def model(request: pytest.FixtureRequest) -> Iterator[FluxModel]:
    budget = Allowed(ram=8 << 30) if request.param else Allowed(managed=False)
    yield load_flux(Runtime(Settings("cpu", "bf16", budget)), TINY)


def conditioning(seed: int) -> Conditioning:
    made = torch.Generator().manual_seed(seed)
    context, pooled = torch.randn(1, 24, 128, generator=made), torch.randn(1, 128, generator=made)
    return [[context, {"pooled_output": pooled, "guidance": 3.5}]]


def run(
    model: FluxModel, name: str, log: EvaluationLog | None, stop: Callable[[int], bool] = lambda step: False
) -> Tensor:
    """The result of a sampler; Interrupted after the step for which `stop` returns true."""

    def callback(step: int, D: Tensor, x: Tensor, steps: int) -> None:
        if stop(step):
            raise Interrupted("stop")

    model.runtime.evaluations = log
    guider = CFGGuider(model, conditioning(1), conditioning(2), 2.0)
    sigmas = simple(model.sampling, STEPS)
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    result, _ = sample(guider, Sampler(name), sigmas, torch.zeros_like(noise), noise, seed=5, callback=callback)
    model.runtime.evaluations = None
    return result


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "dpmpp_2m_sde", "heun", "uni_pc"])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(model: FluxModel, tmp_path: Path, name: str) -> None:
    alone = run(model, name, None)
    for stop_at in (0, 3):
        folder = tmp_path / str(stop_at)
        with pytest.raises(Interrupted):
            run(model, name, EvaluationLog(folder, lambda: "7"), stop=lambda step: step == stop_at)  # noqa: B023
        log = EvaluationLog(folder, lambda: "7")
        assert torch.equal(run(model, name, log), alone)
        assert log.replayed > 0 and log.computed > 0
        again = EvaluationLog(folder, lambda: "7")
        assert torch.equal(run(model, name, again), alone) and again.computed == 0


def test_a_step_cache_reuses_the_same_steps(model: FluxModel, tmp_path: Path) -> None:
    preset = PRESETS["faster"]
    assert preset is not None
    cached = replace(model, own_step_cache=replace(preset, threshold=10.0, start_percent=0.0))
    alone = run(cached, "euler", None)
    assert not torch.equal(alone, run(model, "euler", None))
    with pytest.raises(Interrupted):
        run(cached, "euler", EvaluationLog(tmp_path, lambda: "7"), stop=lambda step: step == 3)
    log = EvaluationLog(tmp_path, lambda: "7")
    assert torch.equal(run(cached, "euler", log), alone) and log.replayed > 0


def test_a_run_with_another_style_uses_no_recorded_evaluation(model: FluxModel, tmp_path: Path) -> None:
    drawn = torch.Generator().manual_seed(3)
    hidden = model.weights.config.hidden
    styles = [model.styled(torch.randn(1, 4, hidden, generator=drawn)) for _ in range(2)]
    first = run(styles[0], "euler", EvaluationLog(tmp_path, lambda: "7"))
    log = EvaluationLog(tmp_path, lambda: "7")
    other = run(styles[1], "euler", log)
    assert log.replayed == 0 and not torch.equal(first, other) and torch.equal(other, run(styles[1], "euler", None))
    again = EvaluationLog(tmp_path, lambda: "7")
    assert torch.equal(run(styles[1], "euler", again), other) and again.computed == 0


def test_a_run_that_gives_way_to_another_program_goes_on_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The double is the other program: it takes 1 GiB after two steps, and then all that a run needs to begin."""
    opening: list[bool] = []

    def give_way(opens: bool) -> None:
        opening.append(opens)
        raise Interrupted("Another program has taken memory.")

    def fresh() -> FluxModel:
        model = load_flux(Runtime(Settings("cpu", "fp32", Allowed(ram=8 << 30))), TINY)
        model.runtime.give_way = give_way
        return model

    log = EvaluationLog(tmp_path, lambda: "7")
    alone = run(fresh(), "dpmpp_2m", None)
    taken = lambda manager, model, counted_on: (1 << 30) * (log.computed >= 2)  # noqa: E731
    with monkeypatch.context() as other, pytest.raises(Interrupted):
        other.setattr(Manager, "budget_drift", taken)
        run(fresh(), "dpmpp_2m", log)
    assert (opening, log.computed) == ([False], 2)
    with monkeypatch.context() as other, pytest.raises(Interrupted):
        other.setattr(CpuMemory, "allowed_bytes", lambda memory, allowed: 1 << 20)
        run(fresh(), "dpmpp_2m", EvaluationLog(tmp_path, lambda: "7"))
    assert opening == [False, True]
    again = EvaluationLog(tmp_path, lambda: "7")
    assert torch.equal(run(fresh(), "dpmpp_2m", again), alone) and again.replayed == 2


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "other"])
def test_what_is_damaged_is_computed_again(tmp_path: Path, harm: str) -> None:
    model = load_flux(Runtime(Settings("cpu", "fp32")), TINY)
    alone = run(model, "dpmpp_2m", EvaluationLog(tmp_path, lambda: "7"))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "cut": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "empty": b"",
            "other": b"another file",
        }[harm]
    )
    log = EvaluationLog(tmp_path, lambda: "7")
    assert torch.equal(run(model, "dpmpp_2m", log), alone)
    assert log.computed > 0 and (log.replayed > 0) == (harm in ("cut", "flipped"))
    assert file.read_bytes() == whole


def test_another_run_in_the_same_place_is_not_answered_from_it(tmp_path: Path) -> None:
    model = load_flux(Runtime(Settings("cpu", "fp32")), TINY)
    run(model, "euler", EvaluationLog(tmp_path, lambda: "7"))
    other = replace(model, compute_dtype=torch.bfloat16)
    log = EvaluationLog(tmp_path, lambda: "7")
    assert torch.equal(run(other, "euler", log), run(other, "euler", None)) and log.replayed == 0


def test_a_full_disk_ends_the_recording_and_not_the_run(tmp_path: Path) -> None:
    model = load_flux(Runtime(Settings("cpu", "fp32")), TINY)
    in_the_way = tmp_path / "file"
    in_the_way.write_bytes(b"")
    log = EvaluationLog(in_the_way, lambda: "7")
    assert torch.equal(run(model, "euler", log), run(model, "euler", None)) and log.replayed == 0


def test_a_cancel_within_a_step_keeps_the_steps_before(tmp_path: Path) -> None:
    model = load_flux(Runtime(Settings("cpu", "fp32")), TINY)
    first = EvaluationLog(tmp_path, lambda: "7")

    def interrupted() -> None:
        if first.computed == 3:
            raise Interrupted("stop")

    with pytest.raises(Interrupted), cancellable(interrupted):
        run(model, "euler", first)
    log = EvaluationLog(tmp_path, lambda: "7")
    assert torch.equal(run(model, "euler", log), run(model, "euler", None)) and log.replayed > 0
