"""Which models free memory for which: decisions are data, and these laws hold for all numbers."""

from __future__ import annotations

import random

import pytest
from doubles.random_cases import seeds
from doubles.workloads import once, pair
from sluice.flux_core.memory.eviction import (
    Eviction,
    Holder,
    all_below,
    all_bytes,
    evictions,
    evictions_for,
    room_for,
    shrunk,
    weight_bytes,
)
from sluice.flux_core.memory.plan import plan, smallest_budget
from sluice.flux_core.memory.workload import Budget, Location, Machine, MiB, Workload

MACHINE = Machine(1e12, 1e12, 1e11, disk=1e9, alignment=4096)
SEEDS = seeds(200)


def workload(rng: random.Random) -> Workload:
    pairs = [pair(f"w{n}", n, rng.randint(1, 40) * MiB, 1e9) for n in range(rng.randint(2, 12))]
    return once("random", pairs, {"activations": rng.randint(0, 100) * MiB})


def holders(rng: random.Random) -> list[Holder]:
    return [Holder(rng.randint(0, 2), rng.choice((0, rng.randint(1, 300))) * MiB) for _ in range(rng.randint(0, 5))]


def after(held: list[Holder], decided: list[Eviction]) -> list[int]:
    left = [each.nbytes for each in held]
    for each in decided:
        left[each.holder] -= each.nbytes
    return left


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_needed_is_freed_and_no_more_the_lowest_priority_first(seed: int) -> None:
    rng = random.Random(seed)
    held, needed = holders(rng), rng.randint(-50, 700) * MiB
    left = after(held, evictions(held, needed))
    total = sum(each.nbytes for each in held)
    assert sum(left) == total - min(max(0, needed), total) and min(left, default=0) >= 0
    for n, one in enumerate(held):
        if left[n] < one.nbytes:
            assert all(left[m] == 0 for m, other in enumerate(held) if other.priority < one.priority)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_that_runs_gets_what_it_must_have_and_spares_those_above_it_otherwise(seed: int) -> None:
    rng = random.Random(seed)
    held, wanted, priority = holders(rng), workload(rng), rng.randint(0, 2)
    limit = rng.randint(50, 1200) * MiB
    decided = evictions_for(wanted, MACHINE, priority, held, limit)
    left, least = after(held, decided), smallest_budget(wanted, MACHINE)
    assert min(left, default=0) >= 0
    if all_bytes(wanted, MACHINE) <= limit - sum(each.nbytes for each in held):
        assert decided == []
        return
    below = [n for n, each in enumerate(held) if each.priority < priority]
    assert all(left[n] == 0 for n in below)
    freed_above = sum(each.nbytes for each in held) - sum(left) - sum(held[n].nbytes for n in below)
    room = limit - sum(left)
    assert room >= min(least, limit)
    assert freed_above == 0 or room == min(least, limit), "no more than the model must have"


def test_the_lowest_priority_is_no_higher_than_the_others() -> None:
    held = [Holder(2, 5), Holder(0, 7), Holder(1, 0), Holder(1, 3)]
    assert all_below(held, 2) == [Eviction(1, 7), Eviction(3, 3)]
    assert all_below(held, 0) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_granted_is_not_exceeded_but_by_what_must_be(seed: int) -> None:
    rng = random.Random(seed)
    wanted, free = workload(rng), rng.randint(1, 1500) * MiB
    granted = rng.randint(0, 600) * MiB
    room, least = room_for(wanted, MACHINE, free, granted), smallest_budget(wanted, MACHINE)
    assert room <= free and room_for(wanted, MACHINE, free, None) == free
    assert room - wanted.fixed_bytes <= max(granted, least - wanted.fixed_bytes)
    assert room >= min(free, least)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_shrinks_by_what_is_asked_or_as_far_as_it_can(seed: int) -> None:
    rng = random.Random(seed)
    wanted = workload(rng)
    least = smallest_budget(wanted, MACHINE)
    current = plan(wanted, Budget(rng.randint(least, least + weight_bytes(wanted, MACHINE))), MACHINE)
    asked = rng.randint(1, 300) * MiB
    smaller = shrunk(current, asked)
    if smaller is None:
        largest = max(group.room for group in current.groups)
        assert Location.DEVICE not in current.locations or current.peak_bytes <= least + largest
    else:
        assert smaller.weight_bytes < current.weight_bytes
        assert smaller.peak_bytes <= max(least, current.peak_bytes - asked)
