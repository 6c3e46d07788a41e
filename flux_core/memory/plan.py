"""The plan: which weights stay on the device, which stream through it, how long a step takes, how much memory it needs.

Pure arithmetic, made before a byte moves: the same question has the same answer, and the answer can be printed, drawn
and compared with what is measured later. Knows no torch, no file, no thread and no FLUX: a model is a list of matrices
in order of use (`units.py` makes it), a machine is a handful of rates (`cards.py` has some).

    file ──disk──▶ RAM ──link──▶ ring of slots ──▶ kernels          unit = matrices that move and rest together
                                 resident slabs ──▶ kernels         V resident · P pinned RAM · R pageable RAM · D disk

Why a fixed set and a ring, and never least-recently-used: the walk over the weights is cyclic, and there the least
recently used unit is always the next one needed: n units in fewer than n places hit zero times. A fixed set of c plus r
ring slots streams n - c units a step; the offline optimum would save at most r of them and need all n in RAM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import BudgetTooSmall
from .pipeline import Timeline
from .workload import DISK, PAGEABLE, PINNED, RESIDENT, Budget, Machine, MiB, Unit, Workload, fewest_slots, units_of

SLOTS = 3  # one computes, one waits filled, one fills: a stalled copy of one unit time costs nothing
MOST_SLOTS = 6


@dataclass(frozen=True)
class Plan:
    """Homes of all units, the ring, and what to expect of them."""

    workload: Workload
    machine: Machine
    units: tuple[Unit, ...]
    homes: str  # one letter a unit: V, P, R or D
    slots: int
    slot_bytes: int
    host_map: Mapping[int, int]  # unit -> offset in the host arena; the pinned ones come first
    host_bytes: int  # arena and staging
    seconds: float  # predicted, per step, steady state
    limit: float  # what physics allows these homes: the largest of compute, link and disk time
    bound: str  # which of the three it is

    @property
    def resident_bytes(self) -> int:
        return sum(unit.nbytes for unit, home in zip(self.units, self.homes, strict=True) if home == RESIDENT)

    @property
    def streamed_bytes(self) -> int:
        """Per step, over the link (or from disk, where there is no link)."""
        return sum(unit.nbytes for unit, home in zip(self.units, self.homes, strict=True) if home != RESIDENT)

    @property
    def disk_bytes(self) -> int:
        """Per step, from disk."""
        return sum(unit.nbytes for unit, home in zip(self.units, self.homes, strict=True) if home == DISK)

    @property
    def ring_bytes(self) -> int:
        return self.slots * self.slot_bytes

    @property
    def weight_bytes(self) -> int:
        """Of the device, for resident units and the ring."""
        resident = sum(unit.room for unit, home in zip(self.units, self.homes, strict=True) if home == RESIDENT)
        return resident + self.ring_bytes

    @property
    def peak_bytes(self) -> int:
        """Of the device, everything included."""
        return self.workload.fixed_bytes + self.weight_bytes

    @cached_property
    def compute_seconds(self) -> float:
        return sum(self.machine.seconds(piece) for piece in self.workload.pieces)


def plan(workload: Workload, budget: Budget, machine: Machine, slots: int = SLOTS) -> Plan:
    """The fastest plan within the budget; of equally fast ones, that with `slots` slots and the fewest bytes to move.

    Candidates do not depend on the device budget, which only says which of them are allowed: so more memory is never
    slower. Raises BudgetTooSmall with the smallest budget that would do.
    """
    units = units_of(workload, machine)
    room = budget.device - workload.fixed_bytes
    timeline = Timeline(workload, machine, units)
    everything = sum(unit.room for unit in units)
    if everything <= room:
        return _finished(timeline, RESIDENT * len(units), 0, timeline.compute)
    fewest = fewest_slots(units)
    best: tuple[float, _Candidate] | None = None
    for candidate in _candidates(timeline, room, budget, fewest, slots):
        if best and candidate.limit >= best[0]:
            break
        seconds = max(candidate.limit, timeline.seconds(candidate.homes, candidate.slots, candidate.split))
        if best is None or seconds < best[0]:
            best = (seconds, candidate)
    if best is None:
        raise BudgetTooSmall(_too_small(workload, units, budget.device, fewest, everything))
    seconds, chosen = best
    if chosen.split:
        divided, homes = _divide(workload, chosen.homes, chosen.split)
        timeline = Timeline(divided, machine, units_of(divided, machine))
        return _finished(timeline, homes, chosen.slots, seconds)
    return _finished(timeline, chosen.homes, chosen.slots, seconds)


def smallest_budget(workload: Workload, machine: Machine) -> int:
    """Bytes of device memory below which there is no plan."""
    units = units_of(workload, machine)
    ring = fewest_slots(units) * max((unit.room for unit in units), default=0)
    return workload.fixed_bytes + min(ring, sum(unit.room for unit in units))


def fixed_plan(workload: Workload, machine: Machine, homes: str, slots: int) -> Plan:
    """The plan with these homes and this ring, whatever it costs: for measuring and for taking over a running state."""
    timeline = Timeline(workload, machine, units_of(workload, machine))
    return _finished(timeline, homes, slots, max(timeline.limit(homes)[0], timeline.seconds(homes, slots)))


def spread(sizes: Sequence[int], seconds: Sequence[float], amount: float) -> list[bool]:
    """Choose about `amount` bytes of the units so that the chosen bytes follow the time: error diffusion.

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
    homes: str
    slots: int
    split: frozenset[int]  # pieces of one streamed unit that stay: what is left of the budget after whole units
    moved: int


def _candidates(timeline: Timeline, room: int, budget: Budget, fewest: int, wanted: int) -> list[_Candidate]:
    """What is allowed, the most promising first."""
    units, machine, pieces = timeline.units, timeline.machine, timeline.workload.pieces
    sizes = [unit.nbytes for unit in units]
    counts = range(max(2, fewest), max(MOST_SLOTS, wanted, fewest) + 1)  # one slot only if there is room for no more
    found = []
    for streamed in _families(sizes, timeline.unit_seconds):
        resident = sum(unit.room for unit, moves in zip(units, streamed, strict=True) if not moves)
        slot = max(unit.room for unit, moves in zip(units, streamed, strict=True) if moves)
        if resident + fewest * slot > room:
            continue
        for split in _splits(units, streamed):
            kept = resident + sum(machine.room(pieces[place].nbytes) for place in split)
            allowed = [count for count in counts if kept + count * slot <= room and count <= sum(streamed)]
            if all(streamed) and not split:
                allowed = allowed or [fewest]
            if not allowed:
                continue
            homes = _host_homes(timeline, streamed, budget)
            moved = sum(size for size, moves in zip(sizes, streamed, strict=True) if moves)
            moved -= sum(pieces[place].nbytes for place in split)
            limit = timeline.limit(homes, split)[0]
            found += [_Candidate(limit, homes, count, split, moved) for count in allowed]
    return sorted(found, key=lambda c: (c.limit, abs(c.slots - wanted), c.moved, len(c.split)))


def _splits(units: Sequence[Unit], streamed: Sequence[bool]) -> Iterator[frozenset[int]]:
    """No piece; then the first and the last few of one streamed unit in the middle of the walk."""
    yield frozenset()
    moving = [unit for unit, moves in zip(units, streamed, strict=True) if moves]
    order = moving[len(moving) // 2].order
    for cut in range(1, len(order)):
        yield frozenset(order[:cut])
        yield frozenset(order[cut:])


def _divide(workload: Workload, homes: str, split: frozenset[int]) -> tuple[Workload, str]:
    """The workload with the split unit as two units, one of them resident."""
    numbers: dict[tuple[int, bool], int] = {}
    pieces, letters = [], []
    for place, piece in enumerate(workload.pieces):
        key = (piece.unit, place in split)
        if key not in numbers:
            numbers[key] = len(numbers)
            letters.append(RESIDENT if place in split else homes[piece.unit])
        pieces.append(replace(piece, unit=numbers[key]))
    return replace(workload, pieces=tuple(pieces)), "".join(letters)


def _families(sizes: Sequence[int], seconds: Sequence[float]) -> Iterator[tuple[bool, ...]]:
    """Sets of units to stream, from all to almost none, each spread evenly in time; they depend on no budget."""
    total, steps = sum(sizes), 4 * len(sizes)
    seen = set()
    for part in range(steps, 0, -1):
        chosen = tuple(spread(sizes, seconds, total * part / steps))
        if any(chosen) and chosen not in seen:
            seen.add(chosen)
            yield chosen
    everything = (True,) * len(sizes)
    if everything not in seen:
        yield everything


def _host_homes(timeline: Timeline, streamed: Sequence[bool], budget: Budget) -> str:
    """Where the streamed units wait: all in RAM if they fit, else the fewest from disk that make the rest fit.

    Those are spread evenly in time for the same reason as the resident ones. Pinned first: it saves a copy by the CPU.
    """
    machine, units = timeline.machine, timeline.units
    if machine.link is None:
        return "".join(DISK if moves else RESIDENT for moves in streamed)
    moving = [unit for unit, moves in zip(units, streamed, strict=True) if moves]
    sizes = [unit.room for unit in moving]
    seconds = _time_until_next(timeline.unit_seconds, streamed)
    for part in range(len(moving) + 1):
        from_disk = spread(sizes, seconds, sum(sizes) * part / len(moving)) if part else [False] * len(moving)
        arena = sum(size for size, away in zip(sizes, from_disk, strict=True) if not away)
        if arena + machine.staging_buffers * machine.staging_bytes <= budget.host or part == len(moving):
            break
    homes, locked = {}, 0
    for unit, away in zip(moving, from_disk, strict=True):
        if away or part == len(moving):
            homes[unit.number] = DISK
        elif locked + unit.room <= budget.pinned:
            homes[unit.number] = PINNED
            locked += unit.room
        else:
            homes[unit.number] = PAGEABLE
    return "".join(homes.get(unit.number, RESIDENT) for unit in units)


def _time_until_next(seconds: Sequence[float], streamed: Sequence[bool]) -> list[float]:
    """Compute time from each streamed unit to the next one: what there is to hide a copy behind."""
    starts = [number for number, moves in enumerate(streamed) if moves]
    ends = [*starts[1:], len(seconds)]
    times = [sum(seconds[start:end]) for start, end in zip(starts, ends, strict=True)]
    if times:
        times[-1] += sum(seconds[: starts[0]])
    return times


def _finished(timeline: Timeline, homes: str, slots: int, seconds: float) -> Plan:
    units, machine = timeline.units, timeline.machine
    limit, bound = timeline.limit(homes)
    offsets: dict[int, int] = {}
    end = 0
    for home in (PINNED, PAGEABLE):
        for unit in units:
            if homes[unit.number] == home:
                offsets[unit.number] = end
                end += unit.room
    return Plan(
        workload=timeline.workload,
        machine=machine,
        units=units,
        homes=homes,
        slots=slots,
        slot_bytes=max((unit.room for unit in units if homes[unit.number] != RESIDENT), default=0) if slots else 0,
        host_map=offsets,
        host_bytes=end + (machine.staging_buffers * machine.staging_bytes if machine.link is not None else 0),
        seconds=seconds,
        limit=limit,
        bound=bound,
    )


def _too_small(workload: Workload, units: Sequence[Unit], budget: int, fewest: int, everything: int) -> str:
    slot = max(unit.room for unit in units)
    needed = workload.fixed_bytes + min(fewest * slot, everything)
    largest = sorted(workload.fixed.items(), key=lambda item: -item[1])[:3]
    slots = f"{fewest} slot{'s' if fewest > 1 else ''} of {max(slot, MiB) / MiB:.0f} MiB"
    parts = ", ".join([slots, *(f"{purpose} {size / MiB:.0f} MiB" for purpose, size in largest if size >= MiB)])
    return (
        f"{workload.name} needs at least {needed / MiB:.0f} MiB with every weight streamed, and the budget is "
        f"{budget / MiB:.0f} MiB. Allow {needed / MiB:.0f} MiB or more, or lower the need: a smaller picture or batch "
        f"(fewer activations), a more strongly quantised file (smaller slots), fewer or smaller LoRAs. "
        f"The {needed / MiB:.0f} MiB are: {parts}."
    )
