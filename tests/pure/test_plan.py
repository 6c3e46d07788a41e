"""Laws of the planner, over thousands of random models, budgets and rates. No torch, no files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sluice.flux_core.errors import BudgetTooSmall
from sluice.flux_core.memory.plan import plan, smallest_budget, spread
from sluice.flux_core.memory.workload import Budget, GiB, Machine, MiB, Piece, Workload, fewest_slots, units_of
from sluice.flux_core.runtime.flux_workload import Job, flux_workload, published

PLENTY = Budget(2**50, 2**50, 2**50)


def random_model(rng: random.Random) -> Workload:
    pieces: list[Piece] = []
    for unit in range(rng.randint(1, 24)):
        for _ in range(rng.randint(1, 4)):
            attention = rng.random() * 1e11 if rng.random() < 0.3 else 0.0
            size = rng.randint(1, 40) * MiB // rng.choice((1, 3, 4))
            traffic = rng.choice((0, 2 * size))
            pieces.append(Piece(f"{len(pieces)}", unit, size, rng.random() * 1e12, attention, traffic))
    fixed = {"activations": rng.randint(0, 200) * MiB, "LoRA": rng.randint(0, 9) * MiB}
    return Workload("random", tuple(pieces), fixed)


def random_machine(rng: random.Random) -> Machine:
    link = rng.choice((None, 10 ** rng.uniform(9, 11)))
    return Machine(10 ** rng.uniform(11, 14), 10 ** rng.uniform(11, 14), 4e11, 10 ** rng.uniform(8, 10), link)


def even_model(rng: random.Random) -> Workload:
    """Units of like size, as models have them."""
    base, pieces = rng.randint(20, 200) * MiB, []
    for unit in range(rng.randint(12, 40)):
        shares = [rng.uniform(0.5, 1) for _ in range(rng.randint(1, 4))]
        size = base * rng.uniform(0.7, 1)
        for share in shares:
            nbytes = int(size * share / sum(shares))
            pieces.append(Piece(f"{len(pieces)}", unit, nbytes, rng.uniform(0.3, 1) * 1e12 / len(shares)))
    return Workload("even", tuple(pieces))


def everything(workload: Workload, machine: Machine) -> int:
    return workload.fixed_bytes + sum(unit.room for unit in units_of(workload, machine))


def random_cases(count: int):
    for seed in range(count):
        rng = random.Random(seed)
        workload, machine = random_model(rng), random_machine(rng)
        low, high = smallest_budget(workload, machine), everything(workload, machine)
        yield rng, workload, machine, low, high


def test_no_plan_exceeds_its_budget_and_every_unit_has_one_home():
    for rng, workload, machine, low, high in random_cases(2000):
        budget = Budget(rng.randint(low, high + MiB), rng.randint(0, high), rng.randint(0, high))
        made = plan(workload, budget, machine)
        assert made.peak_bytes <= budget.device
        assert len(made.homes) == len(made.units) and set(made.homes) <= set("VPRD")
        assert made.resident_bytes + made.streamed_bytes == sum(piece.nbytes for piece in workload.pieces)
        assert [piece.name for piece in made.workload.pieces] == [piece.name for piece in workload.pieces]
        assert made.streamed_bytes == 0 or made.slots >= fewest_slots(made.units)
        assert machine.link or set(made.homes) <= set("VD")


def test_host_memory_stays_below_its_budget_unless_staging_alone_exceeds_it():
    for rng, workload, machine, low, _ in random_cases(500):
        budget = Budget(low, rng.randint(0, 2 * low), rng.randint(0, low))
        made = plan(workload, budget, replace(machine, link=1e10))
        assert made.host_bytes <= max(budget.host, machine.staging_buffers * machine.staging_bytes)
        spans = sorted((start, start + made.units[unit].room) for unit, start in made.host_map.items())
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
        pinned = sum(made.units[unit].room for unit in made.host_map if made.homes[unit] == "P")
        assert pinned <= budget.pinned
        assert all(start < pinned for unit, start in made.host_map.items() if made.homes[unit] == "P")


def test_more_memory_is_never_slower():
    for rng, workload, machine, low, high in random_cases(800):
        budgets = sorted(rng.randint(low, high) for _ in range(5))
        times = [plan(workload, Budget(budget, 2**50, GiB), machine).seconds for budget in budgets]
        assert all(later <= sooner * (1 + 1e-9) for sooner, later in zip(times, times[1:], strict=False))


def test_no_prediction_beats_physics():
    for rng, workload, machine, low, high in random_cases(1000):
        made = plan(workload, Budget(rng.randint(low, high), rng.randint(0, high), rng.randint(0, high)), machine)
        moved = made.streamed_bytes / (machine.link or machine.disk)
        assert made.seconds >= max(made.compute_seconds, moved, made.disk_bytes / machine.disk) * (1 - 1e-12)
        assert made.seconds >= made.limit * (1 - 1e-12)


def test_with_a_fifth_of_slack_the_prediction_is_within_two_percent_of_the_limit():
    checked = 0
    for seed in range(700):
        rng = random.Random(seed)
        workload = even_model(rng)
        flop, size = sum(piece.flop for piece in workload.pieces), sum(piece.nbytes for piece in workload.pieces)
        rate = size / (flop / 1e13) * 10 ** rng.uniform(-1, 1)
        machine = Machine(1e13, 1e13, 1e15, disk=1e12, link=rate, latency=0.0)
        if rng.random() < 0.5:
            machine = replace(machine, link=None, disk=rate)
        units = units_of(workload, machine)
        ring = 3 * max(unit.room for unit in units)
        made = plan(workload, replace(PLENTY, device=ring + int(rng.random() * 0.8 * size)), machine)
        less, more = sorted((made.compute_seconds, made.streamed_bytes / rate))
        if more > 1.2 * less:
            assert made.seconds <= 1.02 * made.limit
            checked += 1
    assert checked > 500


def test_the_same_question_has_the_same_answer():
    for rng, workload, machine, low, high in random_cases(200):
        budget = Budget(rng.randint(low, high), rng.randint(0, high), rng.randint(0, high))
        assert plan(workload, budget, machine) == plan(workload, budget, machine)


def test_one_byte_below_the_smallest_budget_is_refused_by_name_and_the_smallest_is_enough():
    for _, workload, machine, low, _ in random_cases(500):
        assert plan(workload, Budget(low), machine).peak_bytes <= low
        with pytest.raises(BudgetTooSmall, match="smaller picture"):
            plan(workload, Budget(low - 1), machine)


def test_everything_stays_when_everything_fits():
    for _, workload, machine, _, high in random_cases(200):
        made = plan(workload, Budget(high), machine)
        assert set(made.homes) == {"V"} and made.streamed_bytes == made.slots == 0
        assert made.seconds == pytest.approx(made.compute_seconds)


def test_streamed_bytes_follow_compute_time():
    rng = random.Random(1)
    for _ in range(300):
        count = rng.randint(2, 80)
        sizes, seconds = [10] * count, [rng.uniform(0.1, 1) for _ in range(count)]
        amount = rng.randint(1, 10 * count)
        chosen, streamed, time = spread(sizes, seconds, amount), 0, 0.0
        for size, span, taken in zip(sizes, seconds, chosen, strict=True):
            streamed, time = streamed + size * taken, time + span
            if max(seconds) / sum(seconds) * amount <= 10:  # else a unit cannot take what its time would allow
                assert abs(streamed - amount * time / sum(seconds)) <= 5 + 1e-6


POLICIES = json.loads((Path(__file__).parents[1] / "fixtures" / "memory_policies.json").read_text())["rows"]


def policy_plan(row, modulation: bool):
    machine = Machine(row["gemm"] * 1e12, row["attention"] * 1e12, row["memory"] * 1e9, 3e9, row["link"] * 1e9)
    model, job = published(row["model"]), Job(row["height"], row["width"])
    workload = flux_workload(row["model"], model.shape, model.nbytes, job, model.decoded, modulation=modulation)
    return plan(workload, replace(PLENTY, device=int(row["weights_gib"] * GiB - 64_124_992 * 2)), machine)


@pytest.mark.parametrize("row", POLICIES, ids=lambda row: f"{row['gemm']:g}TFLOPs-{row['model']}-{row['width']}")
def test_whole_units_and_a_few_slots_come_within_two_percent_of_the_idealised_pipeline(row):
    assert policy_plan(row, modulation=True).seconds == pytest.approx(row["modulation_streamed"], rel=0.02)
    assert policy_plan(row, modulation=False).seconds == pytest.approx(row["modulation_tabled"], rel=0.02)


def test_planning_needs_no_torch(prologue):
    code = prologue + "import sluice.flux_core.memory.plan, sluice.flux_core.runtime.flux_workload\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
