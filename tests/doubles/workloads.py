"""Workloads for tests of the planner and the executor: each weight used once, or again and again in any order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from sluice.flux_core.memory.pipeline import Timeline
from sluice.flux_core.memory.plan import Plan
from sluice.flux_core.memory.workload import Location, Machine, Use, Weight, Workload, groups_of

Pair = tuple[Weight, Use]


def pair(name: str, group: int, nbytes: int, products: float = 0.0, attention: float = 0.0, traffic: int = 0) -> Pair:
    """A weight and its use."""
    return Weight(name, group, nbytes), Use(0, products, attention, traffic)


def once(name: str, pairs: Sequence[Pair], fixed: Mapping[str, int] | None = None) -> Workload:
    """Each weight used once, in this order."""
    uses = (Use(number, use.products, use.attention, use.traffic) for number, (_, use) in enumerate(pairs))
    return Workload(name, tuple(weight for weight, _ in pairs), tuple(uses), dict(fixed or {}))


def again(workload: Workload, order: Sequence[int], rng: random.Random) -> Workload:
    """The same weights used in this order, with some work each."""
    schedule = tuple(Use(weight, rng.random() * 1e12, 0.0, 0) for weight in order)
    return Workload(workload.name, workload.weights, schedule, workload.fixed)


def with_locations(workload: Workload, machine: Machine, locations: Sequence[Location], slots: int) -> Plan:
    """The plan with these locations and this ring, without regard to its time."""
    groups = groups_of(workload, machine)
    timeline = Timeline(workload, machine, groups)
    moved = timeline.moved(locations)
    limit, bound = timeline.limit(moved)
    streamed = [group.room for group, where in zip(groups, locations, strict=True) if where is not Location.DEVICE]
    return Plan(
        workload=workload,
        machine=machine,
        groups=groups,
        locations=tuple(locations),
        slots=slots,
        slot_bytes=max(streamed, default=0) if slots else 0,
        host_bytes=0,
        moved=tuple(moved.items()),
        seconds=max(limit, timeline.seconds(locations, slots)),
        limit=limit,
        bound=bound,
    )


def repeated_order(groups: Sequence[Sequence[int]], rng: random.Random) -> list[int]:
    """An order in which weights come more than once. groups: the weights of each group, in order.

    A training step: forward, then the groups backwards, each recomputed and then used in reverse. Or weights that are
    shared: after every few groups one of them comes again. Or anything at all.
    """
    forward = [weight for group in groups for weight in group]
    kind = rng.randrange(4)
    if kind == 0:
        turned = [weight for group in reversed(groups) for weight in (*group[:-1], *reversed(group))]
        return forward + turned
    if kind == 1:
        return forward + forward[::-1]
    if kind == 2:
        shared = rng.choice(groups)
        return [weight for group in groups for weight in (*group, *(shared if rng.random() < 0.6 else ()))]
    return forward + [rng.choice(forward) for _ in range(rng.randint(1, 2 * len(forward)))]
