"""The plan: which weights stay on the device, which stream through it, how long a step takes, how much memory it needs.

Pure arithmetic, done before any byte is read: equal inputs give equal plans, and a plan can be printed, drawn and
compared with measurements. A model is a list of weights and a schedule of their uses (workload.py); a machine is a set
of rates (`cards.py` has some). This file imports no torch and reads no file.

    file ──disk──▶ RAM ──link──▶ ring of slots ──▶ kernels          group = weights that have one location
                                 resident slabs ──▶ kernels         V on the device · P pinned RAM · R RAM · D disk

Why a fixed resident set and a ring, and not a least-recently-used cache: the schedule repeats, so the least recently
used group is always the next one needed, and a cache of fewer than n groups never hits. A fixed set of c groups plus r
ring slots streams n - c groups a step; the optimal cache would save at most r of them and need all n in RAM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import BudgetTooSmall
from .pipeline import Timeline
from .workload import IN_RAM, PARTS, Budget, Group, Location, Machine, MiB, Workload, groups_of

SLOTS = 3  # one in use, one filled, one being filled: a copy may be late by one group's time without a stall
MOST_SLOTS = 6


@dataclass(frozen=True)
class Plan:
    """The locations of all groups, the ring, and the predicted time and memory."""

    workload: Workload
    machine: Machine
    groups: tuple[Group, ...]
    locations: tuple[Location, ...]  # of each group
    slots: int
    slot_bytes: int
    host_bytes: int  # RAM for weights and staging
    moved: tuple[tuple[Location, int], ...]  # bytes fetched per step, by the location they come from
    seconds: float  # predicted, per step, steady state
    limit: float  # lower bound with these locations: the largest of compute, link and disk time
    bound: str  # which of the three it is

    @property
    def resident_bytes(self) -> int:
        return sum(group.nbytes for group in self.at(Location.DEVICE))

    @property
    def streamed_bytes(self) -> int:
        """Bytes per step over the link (or from disk, without a link)."""
        return sum(nbytes for _, nbytes in self.moved)

    @property
    def disk_bytes(self) -> int:
        """Bytes per step from disk."""
        return dict(self.moved).get(Location.DISK, 0)

    @property
    def ring_bytes(self) -> int:
        return self.slots * self.slot_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of the device for resident groups and the ring."""
        return sum(group.room for group in self.at(Location.DEVICE)) + self.ring_bytes

    @property
    def peak_bytes(self) -> int:
        """Bytes of the device for everything."""
        return self.workload.fixed_bytes + self.weight_bytes

    @cached_property
    def compute_seconds(self) -> float:
        weights = self.workload.weights
        return sum(self.machine.seconds(use, weights[use.weight].nbytes) for use in self.workload.schedule)

    @property
    def parts(self) -> dict[str, float]:
        """The seconds of PARTS, whose sum is `compute_seconds`."""
        weights, uses = self.workload.weights, self.workload.schedule
        each = [self.machine.parts(use, weights[use.weight].nbytes) for use in uses]
        return dict(zip(PARTS, map(sum, zip(*each, strict=True)), strict=True))

    def at(self, *locations: Location) -> list[Group]:
        """The groups with one of these locations."""
        return [group for group, where in zip(self.groups, self.locations, strict=True) if where in locations]


def plan(workload: Workload, budget: Budget, machine: Machine, slots: int = SLOTS) -> Plan:
    """The fastest plan within the budget; of equally fast ones, that with `slots` slots and the fewest bytes to move.

    The candidates do not depend on the device budget, which only decides which of them are allowed; so a larger budget
    is never slower. Raises BudgetTooSmall with the smallest sufficient budget.
    """
    groups = groups_of(workload, machine)
    room = budget.device - workload.fixed_bytes
    timeline = Timeline(workload, machine, groups)
    if sum(group.room for group in groups) <= room:
        return _finished(timeline, (Location.DEVICE,) * len(groups), 0, timeline.compute)
    best: tuple[float, _Candidate] | None = None
    for candidate in _candidates(timeline, room, budget, slots):
        if best and candidate.limit >= best[0]:
            break
        seconds = max(candidate.limit, timeline.seconds(candidate.locations, candidate.slots, candidate.split))
        if best is None or seconds < best[0]:
            best = (seconds, candidate)
    if best is None:
        raise BudgetTooSmall(_too_small(timeline, budget.device))
    seconds, chosen = best
    locations = chosen.locations
    if chosen.split:
        divided, locations = _divide(workload, chosen.locations, chosen.split)
        timeline = Timeline(divided, machine, groups_of(divided, machine))
    return _finished(timeline, locations, chosen.slots, seconds)


def smallest_budget(workload: Workload, machine: Machine) -> int:
    """The fewest bytes of device memory for which there is a plan."""
    return workload.fixed_bytes + _least_weights(Timeline(workload, machine, groups_of(workload, machine)))


def spread(sizes: Sequence[int], seconds: Sequence[float], amount: float) -> list[bool]:
    """Choose groups of about `amount` bytes, spread evenly over compute time, by error diffusion.

    Even in time, not by index: a text half of a FLUX block has as many bytes as an image half but an eighth of its
    compute time, and it is compute time that hides a copy.
    """
    total = sum(seconds) or 1.0
    chosen, owed = [], 0.0
    for size, time in zip(sizes, seconds, strict=True):
        owed += amount * time / total
        take = owed >= size / 2
        owed -= size if take else 0
        chosen.append(take)
    return chosen


@dataclass(frozen=True)
class _Candidate:
    limit: float
    locations: tuple[Location, ...]
    slots: int
    split: frozenset[int]  # weights of one streamed group that are resident, in what whole groups leave of the budget
    moved: int  # bytes a step


def _candidates(timeline: Timeline, room: int, budget: Budget, wanted: int) -> list[_Candidate]:
    """The allowed candidates, the most promising first."""
    found: list[_Candidate] = []
    for streamed in _streamed_sets(timeline):
        found += _with_rings(timeline, streamed, room, budget, wanted)
    return sorted(found, key=lambda c: (c.limit, abs(c.slots - wanted), c.moved, len(c.split)))


def _with_rings(
    timeline: Timeline, streamed: tuple[bool, ...], room: int, budget: Budget, wanted: int
) -> Iterator[_Candidate]:
    """The candidates that stream these groups, with each ring and each split that fits."""
    groups, machine, weights = timeline.groups, timeline.machine, timeline.workload.weights
    resident = sum(group.room for group, moves in zip(groups, streamed, strict=True) if not moves)
    slot = max(group.room for group, moves in zip(groups, streamed, strict=True) if moves)
    fewest = timeline.fewest if timeline.once else timeline.slots_needed(streamed)
    if resident + fewest * slot > room:
        return
    counts = range(max(2, fewest), max(MOST_SLOTS, wanted, fewest) + 1)  # one slot only if no more fit
    locations = _host_locations(timeline, streamed, budget)
    moved, times = timeline.moved(locations), {} if timeline.once else timeline.fetches(streamed)
    for split in _splits(groups, streamed):
        kept = resident + sum(machine.room(weights[weight].nbytes) for weight in split)
        allowed = [count for count in counts if kept + count * slot <= room and count <= sum(streamed)]
        if all(streamed) and not split:
            allowed = allowed or [fewest]
        left = dict(moved)
        for weight in split:
            left[locations[weights[weight].group]] -= times.get(weight, 1) * weights[weight].nbytes
        limit, _ = timeline.limit(left)
        for count in allowed:
            yield _Candidate(limit, locations, count, split, sum(left.values()))


def _splits(groups: Sequence[Group], streamed: Sequence[bool]) -> Iterator[frozenset[int]]:
    """No split; then each prefix and each suffix of one streamed group in the middle of the step."""
    yield frozenset()
    moving = [group for group, moves in zip(groups, streamed, strict=True) if moves]
    weights = moving[len(moving) // 2].weights
    for cut in range(1, len(weights)):
        yield frozenset(weights[:cut])
        yield frozenset(weights[cut:])


def _divide(
    workload: Workload, locations: Sequence[Location], split: frozenset[int]
) -> tuple[Workload, tuple[Location, ...]]:
    """The workload in which the split group is two groups, one of them resident."""
    numbers: dict[tuple[int, bool], int] = {}
    weights, where = [], []
    for number, weight in enumerate(workload.weights):
        key = (weight.group, number in split)
        if key not in numbers:
            numbers[key] = len(numbers)
            where.append(Location.DEVICE if number in split else locations[weight.group])
        weights.append(replace(weight, group=numbers[key]))
    return replace(workload, weights=tuple(weights)), tuple(where)


def _streamed_sets(timeline: Timeline) -> Iterator[tuple[bool, ...]]:
    """Sets of groups to stream, from all to almost none, each spread evenly in time. They do not depend on the budget.

    A group that is fetched several times in a step saves more if it is resident, so there are also sets without the
    most frequent groups.
    """
    seen: set[tuple[bool, ...]] = set()
    for often in sorted(set(timeline.visited), reverse=True):
        may = [times <= often for times in timeline.visited]
        sizes = [group.nbytes if allowed else 0 for group, allowed in zip(timeline.groups, may, strict=True)]
        seconds = [time if allowed else 0.0 for time, allowed in zip(timeline.group_seconds, may, strict=True)]
        total, steps = sum(sizes), 4 * sum(may)
        for part in range(steps, 0, -1):
            taken = spread(sizes, seconds, total * part / steps)
            chosen = tuple(take and allowed for take, allowed in zip(taken, may, strict=True))
            if any(chosen) and chosen not in seen:
                seen.add(chosen)
                yield chosen
        if tuple(may) not in seen:
            seen.add(tuple(may))
            yield tuple(may)


def _host_locations(timeline: Timeline, streamed: Sequence[bool], budget: Budget) -> tuple[Location, ...]:
    """The locations of streamed groups: all in RAM if they fit, else as few as possible on disk.

    Those on disk are spread evenly in time, like the resident ones. Pinned RAM is used first: it saves a copy by the
    CPU.
    """
    machine, groups = timeline.machine, timeline.groups
    if machine.link is None:
        return tuple(Location.DISK if moves else Location.DEVICE for moves in streamed)
    moving = [group for group, moves in zip(groups, streamed, strict=True) if moves]
    sizes = [group.room for group in moving]
    seconds = _time_until_next(timeline.group_seconds, streamed)
    for part in range(len(moving) + 1):
        from_disk = spread(sizes, seconds, sum(sizes) * part / len(moving)) if part else [False] * len(moving)
        arena = sum(size for size, away in zip(sizes, from_disk, strict=True) if not away)
        if arena + machine.staging_buffers * machine.staging_bytes <= budget.host or part == len(moving):
            break
    found, locked = [Location.DEVICE] * len(groups), 0
    for group, away in zip(moving, from_disk, strict=True):
        if away or part == len(moving):
            found[group.number] = Location.DISK
        elif locked + group.room <= budget.pinned:
            found[group.number] = Location.PINNED
            locked += group.room
        else:
            found[group.number] = Location.PAGEABLE
    return tuple(found)


def _time_until_next(seconds: Sequence[float], streamed: Sequence[bool]) -> list[float]:
    """The compute time from each streamed group to the next one, which can hide a copy."""
    starts = [number for number, moves in enumerate(streamed) if moves]
    ends = [*starts[1:], len(seconds)]
    times = [sum(seconds[start:end]) for start, end in zip(starts, ends, strict=True)]
    if times:
        times[-1] += sum(seconds[: starts[0]])
    return times


def _finished(timeline: Timeline, locations: tuple[Location, ...], slots: int, seconds: float) -> Plan:
    groups, machine = timeline.groups, timeline.machine
    moved = timeline.moved(locations)
    limit, bound = timeline.limit(moved)
    placed = list(zip(groups, locations, strict=True))
    streamed = [group.room for group, where in placed if where is not Location.DEVICE]
    in_ram = sum(group.room for group, where in placed if where in IN_RAM)
    return Plan(
        workload=timeline.workload,
        machine=machine,
        groups=groups,
        locations=locations,
        slots=slots,
        slot_bytes=max(streamed, default=0) if slots else 0,
        host_bytes=in_ram + (machine.staging_buffers * machine.staging_bytes if machine.link is not None else 0),
        moved=tuple((location, nbytes) for location, nbytes in moved.items() if nbytes),
        seconds=max(seconds, limit),
        limit=limit,
        bound=bound,
    )


def _least_weights(timeline: Timeline) -> int:
    """Bytes of the device for weights if all are streamed (or all resident, if that is less)."""
    rooms = [group.room for group in timeline.groups]
    return min(timeline.fewest * max(rooms, default=0), sum(rooms))


def _too_small(timeline: Timeline, budget: int) -> str:
    workload, fewest = timeline.workload, timeline.fewest
    slot = max(group.room for group in timeline.groups)
    needed = workload.fixed_bytes + _least_weights(timeline)
    largest = sorted(workload.fixed.items(), key=lambda item: -item[1])[:3]
    slots = f"{fewest} slot{'s' if fewest > 1 else ''} of {max(slot, MiB) / MiB:.0f} MiB"
    parts = ", ".join([slots, *(f"{purpose} {size / MiB:.0f} MiB" for purpose, size in largest if size >= MiB)])
    least = -(-needed // MiB)  # rounded up, so that a budget of it suffices
    return (
        f"{workload.name} needs at least {least} MiB with every weight streamed, and the budget is "
        f"{budget // MiB} MiB. Allow {least} MiB or more, or reduce the need: a smaller image or batch "
        f"(fewer activations), a more strongly quantised file (smaller slots), fewer or smaller LoRAs. "
        f"The {least} MiB are: {parts}."
    )
