"""The plan: which weights stay on the device, which stream through it, how long a step takes, how much memory it needs.

Pure arithmetic, made before a byte moves: the same question has the same answer, and the answer can be printed, drawn
and compared with what is measured later. Knows no torch, no file, no thread and no model: a model is a list of weights
and a schedule of their uses (workload.py), a machine is a handful of rates (`cards.py` has some).

    file ──disk──▶ RAM ──link──▶ ring of slots ──▶ kernels          group = weights that move and rest together
                                 resident slabs ──▶ kernels         V on the device · P pinned RAM · R RAM · D disk

Why a fixed set and a ring, and never least-recently-used: a schedule is repeated, and so the least recently used group
is always the next one needed: n groups in fewer than n places hit zero times. A fixed set of c plus r ring slots
streams n - c groups a step; the offline optimum would save at most r of them and need all n in RAM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import BudgetTooSmall
from .pipeline import Timeline
from .workload import IN_RAM, Budget, Group, Location, Machine, MiB, Workload, groups_of

SLOTS = 3  # one computes, one waits filled, one fills: a stalled copy of one group's time costs nothing
MOST_SLOTS = 6


@dataclass(frozen=True)
class Plan:
    """Locations of all groups, the ring, and what to expect of them."""

    workload: Workload
    machine: Machine
    groups: tuple[Group, ...]
    locations: tuple[Location, ...]  # of each group
    slots: int
    slot_bytes: int
    host_bytes: int  # RAM for weights and staging
    moved: tuple[tuple[Location, int], ...]  # bytes brought per step, by where they come from
    seconds: float  # predicted, per step, steady state
    limit: float  # what physics allows these locations: the largest of compute, link and disk time
    bound: str  # which of the three it is

    @property
    def resident_bytes(self) -> int:
        return sum(group.nbytes for group in self.at(Location.DEVICE))

    @property
    def streamed_bytes(self) -> int:
        """Per step, over the link (or from disk, where there is no link)."""
        return sum(nbytes for _, nbytes in self.moved)

    @property
    def disk_bytes(self) -> int:
        """Per step, from disk."""
        return dict(self.moved).get(Location.DISK, 0)

    @property
    def ring_bytes(self) -> int:
        return self.slots * self.slot_bytes

    @property
    def weight_bytes(self) -> int:
        """Of the device, for resident groups and the ring."""
        return sum(group.room for group in self.at(Location.DEVICE)) + self.ring_bytes

    @property
    def peak_bytes(self) -> int:
        """Of the device, everything included."""
        return self.workload.fixed_bytes + self.weight_bytes

    @cached_property
    def compute_seconds(self) -> float:
        weights = self.workload.weights
        return sum(self.machine.seconds(use, weights[use.weight].nbytes) for use in self.workload.schedule)

    def at(self, *locations: Location) -> list[Group]:
        """The groups that are there."""
        return [group for group, where in zip(self.groups, self.locations, strict=True) if where in locations]


def plan(workload: Workload, budget: Budget, machine: Machine, slots: int = SLOTS) -> Plan:
    """The fastest plan within the budget; of equally fast ones, that with `slots` slots and the fewest bytes to move.

    Candidates do not depend on the device budget, which only says which of them are allowed: so more memory is never
    slower. Raises BudgetTooSmall with the smallest budget that would do.
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
    """Bytes of device memory below which there is no plan."""
    return workload.fixed_bytes + _least_weights(Timeline(workload, machine, groups_of(workload, machine)))


def spread(sizes: Sequence[int], seconds: Sequence[float], amount: float) -> list[bool]:
    """Choose about `amount` bytes of the groups so that the chosen bytes follow the time: error diffusion.

    Evenness counts in time, not in index: the text halves of FLUX have the bytes of the image halves and an eighth of
    their compute time, and a copy hides only behind time.
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
    split: frozenset[int]  # weights of one streamed group that stay: what is left of the budget after whole groups
    moved: int  # bytes a step


def _candidates(timeline: Timeline, room: int, budget: Budget, wanted: int) -> list[_Candidate]:
    """What is allowed, the most promising first."""
    found: list[_Candidate] = []
    for streamed in _streamed_sets(timeline):
        found += _with_rings(timeline, streamed, room, budget, wanted)
    return sorted(found, key=lambda c: (c.limit, abs(c.slots - wanted), c.moved, len(c.split)))


def _with_rings(
    timeline: Timeline, streamed: tuple[bool, ...], room: int, budget: Budget, wanted: int
) -> Iterator[_Candidate]:
    """These groups streamed, with every ring and every split that there is room for."""
    groups, machine, weights = timeline.groups, timeline.machine, timeline.workload.weights
    resident = sum(group.room for group, moves in zip(groups, streamed, strict=True) if not moves)
    slot = max(group.room for group, moves in zip(groups, streamed, strict=True) if moves)
    fewest = timeline.fewest if timeline.once else timeline.slots_needed(streamed)
    if resident + fewest * slot > room:
        return
    counts = range(max(2, fewest), max(MOST_SLOTS, wanted, fewest) + 1)  # one slot only if there is room for no more
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
    """No weight; then the first and the last few of one streamed group in the middle of the step."""
    yield frozenset()
    moving = [group for group, moves in zip(groups, streamed, strict=True) if moves]
    weights = moving[len(moving) // 2].weights
    for cut in range(1, len(weights)):
        yield frozenset(weights[:cut])
        yield frozenset(weights[cut:])


def _divide(
    workload: Workload, locations: Sequence[Location], split: frozenset[int]
) -> tuple[Workload, tuple[Location, ...]]:
    """The workload with the split group as two groups, one of them resident."""
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
    """Sets of groups to stream, from all to almost none, each spread evenly in time; they depend on no budget.

    A group that comes more often in a step than others saves more for the same room by staying: so there are sets
    without the most frequent ones too.
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
    """Where the streamed groups wait: all in RAM if they fit, else the fewest from disk that make the rest fit.

    Those are spread evenly in time for the same reason as the resident ones. Pinned first: it saves a copy by the CPU.
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
    """Compute time from each streamed group to the next one: what there is to hide a copy behind."""
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
    """Bytes of the device for weights, with every one of them streamed (or all of them there, if that is less)."""
    rooms = [group.room for group in timeline.groups]
    return min(timeline.fewest * max(rooms, default=0), sum(rooms))


def _too_small(timeline: Timeline, budget: int) -> str:
    workload, fewest = timeline.workload, timeline.fewest
    slot = max(group.room for group in timeline.groups)
    needed = workload.fixed_bytes + _least_weights(timeline)
    largest = sorted(workload.fixed.items(), key=lambda item: -item[1])[:3]
    slots = f"{fewest} slot{'s' if fewest > 1 else ''} of {max(slot, MiB) / MiB:.0f} MiB"
    parts = ", ".join([slots, *(f"{purpose} {size / MiB:.0f} MiB" for purpose, size in largest if size >= MiB)])
    return (
        f"{workload.name} needs at least {needed / MiB:.0f} MiB with every weight streamed, and the budget is "
        f"{budget / MiB:.0f} MiB. Allow {needed / MiB:.0f} MiB or more, or lower the need: a smaller picture or batch "
        f"(fewer activations), a more strongly quantised file (smaller slots), fewer or smaller LoRAs. "
        f"The {needed / MiB:.0f} MiB are: {parts}."
    )
