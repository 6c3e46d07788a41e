"""Laws of the planner, over thousands of random models, budgets and rates. No torch, no files."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles.published_flux import flux_workload
from doubles.random_cases import seeds
from doubles.workloads import Pair, again, once, pair, repeated_order
from sluice.flux_core.errors import BudgetTooSmall
from sluice.flux_core.memory.budget import format_least, parse_size
from sluice.flux_core.memory.plan import Plan, plan, smallest_budget, spread
from sluice.flux_core.memory.schedule import fetched, fewest_slots, last_uses, turns_from
from sluice.flux_core.memory.workload import IN_RAM, Budget, GiB, Location, Machine, MiB, Use, Workload, groups_of
from sluice.flux_core.runtime.flux_needs import Job

PLENTY = Budget(2**50, 2**50, 2**50)


def random_model(rng: random.Random) -> Workload:
    pairs: list[Pair] = []
    for group in range(rng.randint(1, 24)):
        for _ in range(rng.randint(1, 4)):
            attention = rng.random() * 1e11 if rng.random() < 0.3 else 0.0
            size = rng.randint(1, 40) * MiB // rng.choice((1, 3, 4))
            traffic = rng.choice((0, 2 * size))
            pairs.append(pair(f"{len(pairs)}", group, size, rng.random() * 1e12, attention, traffic))
    fixed = {"activations": rng.randint(0, 200) * MiB, "LoRA": rng.randint(0, 9) * MiB}
    return once("random", pairs, fixed)


def random_machine(rng: random.Random) -> Machine:
    link = rng.choice((None, 10 ** rng.uniform(9, 11)))
    return Machine(10 ** rng.uniform(11, 14), 10 ** rng.uniform(11, 14), 4e11, 10 ** rng.uniform(8, 10), link)


def even_model(rng: random.Random) -> Workload:
    """Groups of like size, as models have them."""
    base, pairs = rng.randint(20, 200) * MiB, list[Pair]()
    for group in range(rng.randint(12, 40)):
        shares = [rng.uniform(0.5, 1) for _ in range(rng.randint(1, 4))]
        size = base * rng.uniform(0.7, 1)
        for share in shares:
            nbytes = int(size * share / sum(shares))
            pairs.append(pair(f"{len(pairs)}", group, nbytes, rng.uniform(0.3, 1) * 1e12 / len(shares)))
    return once("even", pairs)


def everything(workload: Workload, machine: Machine) -> int:
    return workload.fixed_bytes + sum(group.room for group in groups_of(workload, machine))


def slots_needed(made: Plan) -> int:
    """By the groups that stream in this plan."""
    streamed = [where is not Location.DEVICE for where in made.locations]
    groups = [made.workload.weights[use.weight].group for use in made.workload.schedule]
    moving = [group if streamed[group] else None for group in groups]
    return fewest_slots(moving, last_uses(moving))


def repeated_model(rng: random.Random) -> Workload:
    """A random model whose weights are used more than once in a step."""
    workload = random_model(rng)
    groups: dict[int, list[int]] = {}
    for number, weight in enumerate(workload.weights):
        groups.setdefault(weight.group, []).append(number)
    return again(workload, repeated_order(list(groups.values()), rng), rng)


def random_cases(
    count: int, model: Callable[[random.Random], Workload] = random_model
) -> Iterator[tuple[random.Random, Workload, Machine, int, int]]:
    for seed in seeds(count):
        rng = random.Random(seed)
        workload, machine = model(rng), random_machine(rng)
        low, high = smallest_budget(workload, machine), everything(workload, machine)
        yield rng, workload, machine, low, high


@pytest.mark.slow
def test_no_plan_exceeds_its_budget_and_every_unit_has_one_home() -> None:
    for rng, workload, machine, low, high in random_cases(2000):
        budget = Budget(rng.randint(low, high + MiB), rng.randint(0, high), rng.randint(0, high))
        made = plan(workload, budget, machine)
        assert made.peak_bytes <= budget.device
        assert len(made.locations) == len(made.groups)
        assert made.resident_bytes + made.streamed_bytes == sum(weight.nbytes for weight in workload.weights)
        assert [weight.name for weight in made.workload.weights] == [weight.name for weight in workload.weights]
        assert made.streamed_bytes == 0 or made.slots >= slots_needed(made)
        assert machine.link or set(made.locations) <= {Location.DEVICE, Location.DISK}


def test_host_memory_stays_below_its_budget_unless_staging_alone_exceeds_it() -> None:
    for rng, workload, machine, low, _ in random_cases(500):
        budget = Budget(low, rng.randint(0, 2 * low), rng.randint(0, low))
        made = plan(workload, budget, replace(machine, link=1e10))
        assert made.host_bytes <= max(budget.host, machine.staging_buffers * machine.staging_bytes)
        in_ram, pinned = (sum(group.room for group in made.at(*where)) for where in (IN_RAM, (Location.PINNED,)))
        assert made.host_bytes == in_ram + machine.staging_buffers * machine.staging_bytes
        assert pinned <= budget.pinned


@pytest.mark.slow
def test_more_memory_is_never_slower() -> None:
    for rng, workload, machine, low, high in random_cases(800):
        budgets = sorted(rng.randint(low, high) for _ in range(5))
        times = [plan(workload, Budget(budget, 2**50, GiB), machine).seconds for budget in budgets]
        assert all(later <= sooner * (1 + 1e-9) for sooner, later in zip(times, times[1:], strict=False))


@pytest.mark.slow
def test_no_prediction_beats_physics() -> None:
    for rng, workload, machine, low, high in random_cases(1000):
        made = plan(workload, Budget(rng.randint(low, high), rng.randint(0, high), rng.randint(0, high)), machine)
        moved = made.streamed_bytes / (machine.link or machine.disk)
        assert made.seconds >= max(made.compute_seconds, moved, made.disk_bytes / machine.disk) * (1 - 1e-12)
        assert made.seconds >= made.limit * (1 - 1e-12)


@pytest.mark.slow
def test_with_a_fifth_of_slack_the_prediction_is_within_two_percent_of_the_limit() -> None:
    checked = 0
    for seed in seeds(700):
        rng = random.Random(seed)
        workload = even_model(rng)
        flop, size = sum(use.products for use in workload.schedule), sum(weight.nbytes for weight in workload.weights)
        rate = size / (flop / 1e13) * 10 ** rng.uniform(-1, 1)
        machine = Machine(1e13, 1e13, 1e15, disk=1e12, link=rate, latency=0.0)
        if rng.random() < 0.5:
            machine = replace(machine, link=None, disk=rate)
        ring = 3 * max(group.room for group in groups_of(workload, machine))
        made = plan(workload, replace(PLENTY, device=ring + int(rng.random() * 0.8 * size)), machine)
        less, more = sorted((made.compute_seconds, made.streamed_bytes / rate))
        if more > 1.2 * less:
            assert made.seconds <= 1.02 * made.limit
            checked += 1
    assert checked > len(seeds(500))


def test_the_same_question_has_the_same_answer() -> None:
    for rng, workload, machine, low, high in random_cases(200):
        budget = Budget(rng.randint(low, high), rng.randint(0, high), rng.randint(0, high))
        assert plan(workload, budget, machine) == plan(workload, budget, machine)


def test_one_byte_below_the_smallest_budget_is_refused_by_name_and_the_smallest_is_enough() -> None:
    for _, workload, machine, low, _ in random_cases(500):
        assert plan(workload, Budget(low), machine).peak_bytes <= low
        with pytest.raises(BudgetTooSmall, match="smaller image") as refused:
            plan(workload, Budget(low - 1), machine)
        asked = re.search(r"Allow (\d+ MiB) or more", str(refused.value))
        assert asked and low <= parse_size(asked[1]) < low + MiB


@pytest.mark.parametrize("nbytes", [1, 480 * MiB + 1, GiB - 1, GiB, 7 * GiB + 3, 64 * GiB])
def test_the_size_that_an_error_asks_for_suffices(nbytes: int) -> None:
    assert nbytes <= parse_size(format_least(nbytes)) <= nbytes + max(MiB, GiB // 100)


def test_everything_stays_when_everything_fits() -> None:
    for _, workload, machine, _, high in random_cases(200):
        made = plan(workload, Budget(high), machine)
        assert set(made.locations) == {Location.DEVICE} and made.streamed_bytes == made.slots == 0
        assert made.seconds == pytest.approx(made.compute_seconds)


def test_streamed_bytes_follow_compute_time() -> None:
    rng = random.Random(1)
    for _ in seeds(300):
        count = rng.randint(2, 80)
        sizes, seconds = [10] * count, [rng.uniform(0.1, 1) for _ in range(count)]
        amount = rng.randint(1, 10 * count)
        chosen, streamed, time = spread(sizes, seconds, amount), 0, 0.0
        for size, span, taken in zip(sizes, seconds, chosen, strict=True):
            streamed, time = streamed + size * taken, time + span
            if max(seconds) / sum(seconds) * amount <= 10:  # else a unit cannot take what its time would allow
                assert abs(streamed - amount * time / sum(seconds)) <= 5 + 1e-6


# --- weights that are used more than once in a step -------------------------------------------------------------


@pytest.mark.slow
def test_with_repeats_a_plan_holds_its_budget_and_says_what_it_moves() -> None:
    for rng, workload, machine, low, high in random_cases(300, repeated_model):
        budget = Budget(rng.randint(low, high + MiB), rng.randint(0, high), rng.randint(0, high))
        made = plan(workload, budget, machine)
        assert made.peak_bytes <= budget.device
        assert made.streamed_bytes == 0 or made.slots >= slots_needed(made)
        moved = made.streamed_bytes / (machine.link or machine.disk)
        assert made.seconds >= max(made.compute_seconds, moved, made.disk_bytes / machine.disk) * (1 - 1e-12)
        once_each = sum(group.nbytes for group in made.at(Location.PINNED, Location.PAGEABLE, Location.DISK))
        assert once_each <= made.streamed_bytes


@pytest.mark.slow
def test_with_repeats_more_memory_is_never_slower_and_the_smallest_budget_is_enough() -> None:
    for rng, workload, machine, low, high in random_cases(100, repeated_model):
        budgets = sorted([low, *(rng.randint(low, high) for _ in range(3))])
        times = [plan(workload, Budget(budget, 2**50, GiB), machine).seconds for budget in budgets]
        assert all(later <= sooner * (1 + 1e-9) for sooner, later in zip(times, times[1:], strict=False))


def test_an_itinerary_brings_what_is_used_and_visits_end_in_time_for_their_slots() -> None:
    """What the executor rests on: when a visit begins, the one that had its slot before has ended. From any start."""
    for seed in seeds(3000):
        rng = random.Random(seed)
        workload = repeated_model(rng) if seed % 3 else random_model(rng)
        weights = [use.weight for use in workload.schedule]
        groups = [workload.weights[weight].group for weight in weights]
        stays = {group for group in groups if rng.random() < 0.3}
        moving = [None if group in stays else group for group in groups]
        if moving.count(None) == len(moving):
            continue
        slots, start = rng.randint(1, 4), rng.randrange(len(weights))
        ends = last_uses(moving, min(2, slots))
        assert fewest_slots(moving, ends) <= slots
        turns, brought, ended = turns_from(weights, moving, min(2, slots), start=start), list[set[int]](), set()
        for begin in (start, 0):
            before = len(brought)
            for place in range(begin, len(weights)):
                if moving[place] is None:
                    continue
                turn = next(turns)
                assert (turn.use, turn.weight) == (place, weights[place])
                if turn.opens:
                    assert turn.visit == len(brought) and all(v in ended for v in range(len(brought) - slots + 1))
                    brought.append(set())
                assert turn.visit is not None
                assert turn.brings == (turn.weight not in brought[turn.visit]) and turn.visit not in ended
                brought[turn.visit].add(turn.weight)
                if turn.closes:
                    ended.add(turn.visit)
            assert len(ended) == len(brought), "nothing is left open at the end of a step"
        assert sum(map(len, brought[before:])) == sum(fetched(weights, moving, ends).values())


def test_going_forward_and_then_backward_everything_but_the_turn_is_fetched_twice() -> None:
    groups = [[2 * n, 2 * n + 1] for n in range(12)]
    forward = [weight for group in groups for weight in group]
    weights = forward + forward[::-1]
    moving = [weight // 2 for weight in weights]
    times = fetched(weights, moving, last_uses(moving))
    assert [times[weight] for weight in forward] == [2] * 20 + [1] * 4


def test_a_weight_that_many_layers_share_stays_first() -> None:
    pairs = [pair(f"{n}", n, 100 * MiB, 1e12) for n in range(12)]
    order = [0, *(weight for n in range(1, 12) for weight in (n, 0))]
    workload = again(once("shared", pairs), order, random.Random(0))
    machine = Machine(1e14, 1e14, 4e11, disk=3e9, link=5e9)
    made = plan(workload, Budget(500 * MiB, 2**40, 2**40), machine)
    assert made.locations[0] is Location.DEVICE


POLICIES = json.loads((Path(__file__).parents[1] / "fixtures" / "memory_policies.json").read_text())["rows"]


def policy_plan(row: dict[str, Any], modulation: bool) -> Plan:
    machine = Machine(row["gemm"] * 1e12, row["attention"] * 1e12, row["memory"] * 1e9, 3e9, row["link"] * 1e9)
    workload = flux_workload(row["model"], Job(row["height"], row["width"]), modulation=modulation)
    return plan(workload, replace(PLENTY, device=int(row["weights_gib"] * GiB - 64_124_992 * 2)), machine)


@pytest.mark.parametrize("row", POLICIES, ids=lambda row: f"{row['gemm']:g}TFLOPs-{row['model']}-{row['width']}")
def test_whole_units_and_a_few_slots_come_within_two_percent_of_the_idealised_pipeline(row: dict[str, Any]) -> None:
    assert policy_plan(row, modulation=True).seconds == pytest.approx(row["modulation_streamed"], rel=0.02)
    assert policy_plan(row, modulation=False).seconds == pytest.approx(row["modulation_tabled"], rel=0.02)


def test_planning_needs_no_torch(prologue: str) -> None:
    code = prologue + "import sluice.flux_core.memory.plan, sluice.flux_core.runtime.published\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_products_with_a_transposed_matrix_have_a_rate_of_their_own() -> None:
    machine, use = Machine(1e12, 1e12, 1e12, disk=1e9), Use(0, 3e12, 0.0, 10**12, transposed=2e12)
    assert machine.seconds(use, 0) == 3 + 2 + 1, "the rate of other products where it was not measured"
    assert replace(machine, transposed=5e11).seconds(use, 0) == 3 + 4 + 1
