"""Predicts how long a step takes with given locations of the groups: `stream.py`'s pipeline, computed with times.

The order of events is that of `stream.py`: a feeder reads ahead as far as slots and staging buffers are free; there is
one copy engine and one queue of kernels; the host runs ahead of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .schedule import OVERLAP, fetched, fewest_slots, last_uses, turns_from
from .workload import COMPUTE_BOUND, DISK_BOUND, LINK_BOUND, Group, Location, Machine, Workload

NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Event:
    """One use of a streamed weight, with the times and bytes that the simulation needs."""

    visit: int
    location: Location
    nbytes: int  # to fetch before it, 0 if the weight is in the ring already
    before: float  # seconds of work with resident weights since the previous event
    own: float  # seconds of this use's work
    closes: bool


class Timeline:
    """Seconds and bytes per step of one workload on one machine, for given locations.

    `split`: weights of one streamed group that stay on the device nevertheless.
    """

    def __init__(self, workload: Workload, machine: Machine, groups: tuple[Group, ...]) -> None:
        self.workload, self.machine, self.groups = workload, machine, groups
        weights = workload.weights
        self.order = [use.weight for use in workload.schedule]
        self.use_seconds = [machine.seconds(use, weights[use.weight].nbytes) for use in workload.schedule]
        self.group_seconds = [0.0] * len(groups)
        for use, seconds in zip(workload.schedule, self.use_seconds, strict=True):
            self.group_seconds[weights[use.weight].group] += seconds
        self.compute = sum(self.use_seconds)
        everything = [True] * len(groups)
        self.visited = self._visits(everything)
        self.fewest = self.slots_needed(everything)
        self.once = not workload.repeats and set(self.visited) <= {1}  # each weight is used and fetched once a step

    def _visits(self, streamed: Sequence[bool]) -> list[int]:
        """How often each group is visited in one step."""
        groups = self.streamed_groups(streamed)
        ends, counts = last_uses(groups), [0] * len(self.groups)
        for group, end in zip(groups, ends, strict=True):
            if group is not None and end:
                counts[group] += 1
        return counts

    def slots_needed(self, streamed: Sequence[bool]) -> int:
        groups = self.streamed_groups(streamed)
        return fewest_slots(groups, last_uses(groups))

    def streamed_groups(self, streamed: Sequence[bool], split: frozenset[int] = NOTHING) -> list[int | None]:
        """The group of each use, or None where the weight is resident."""
        group_of = [
            None if number in split or not streamed[weight.group] else weight.group
            for number, weight in enumerate(self.workload.weights)
        ]
        return [group_of[weight] for weight in self.order]

    def moved(self, locations: Sequence[Location]) -> dict[Location, int]:
        """Bytes fetched in one step, by the location they come from."""
        moved = dict.fromkeys(Location, 0)
        times = None if self.once else self.fetches([location is not Location.DEVICE for location in locations])
        for group, location in zip(self.groups, locations, strict=True):
            if location is Location.DEVICE:
                continue
            if times is None:
                moved[location] += group.nbytes
            else:
                weights = self.workload.weights
                moved[location] += sum(times[weight] * weights[weight].nbytes for weight in group.weights)
        return moved

    def fetches(self, streamed: Sequence[bool]) -> Mapping[int, int]:
        """How often each streamed weight is fetched in one step."""
        groups = self.streamed_groups(streamed)
        return fetched(self.order, groups, last_uses(groups))

    def limit(self, moved: Mapping[Location, int]) -> tuple[float, str]:
        """The largest of compute, link and disk seconds, and its name. Copies out of pageable RAM count as reading."""
        machine = self.machine
        reading = moved[Location.DISK] / machine.disk + moved[Location.PAGEABLE] / machine.host_copy
        crossing = 0.0 if machine.link is None else sum(moved.values()) / machine.link
        terms = ((self.compute, COMPUTE_BOUND), (crossing, LINK_BOUND), (reading, DISK_BOUND))
        return max(terms, key=lambda term: term[0])

    def seconds(self, locations: Sequence[Location], slots: int, split: frozenset[int] = NOTHING) -> float:
        """Seconds of one step in steady state, by simulating the pipeline of `stream.py`."""
        events = list(self._events(locations, slots, split))
        if not events:
            return self.compute
        walk = _Pipeline(self.machine, slots, self.compute - sum(event.before + event.own for event in events))
        stalls: list[float] = []
        for _ in range(12):
            stalls.append(walk.step(events))
            if len(stalls) > 2 and math.isclose(stalls[-1], stalls[-2], rel_tol=1e-6, abs_tol=1e-9):
                return self.compute + stalls[-1]
        half = stalls[len(stalls) // 2 :]
        return self.compute + sum(half) / len(half)

    def _events(self, locations: Sequence[Location], slots: int, split: frozenset[int]) -> Iterator[_Event]:
        groups = self.streamed_groups([location is not Location.DEVICE for location in locations], split)
        if all(group is None for group in groups):
            return
        turns, done = turns_from(self.order, groups, min(OVERLAP, slots)), 0
        for place, group in enumerate(groups):
            if group is None:
                continue
            turn = next(turns)
            assert turn.use == place and turn.visit is not None
            nbytes = self.workload.weights[turn.weight].nbytes if turn.brings else 0
            before = sum(self.use_seconds[done:place])
            yield _Event(turn.visit, locations[group], nbytes, before, self.use_seconds[place], turn.closes)
            done = place + 1


class _Pipeline:
    """Clocks of the feeder, the link, the kernels and the host, advanced in the executor's order of events."""

    def __init__(self, machine: Machine, slots: int, after: float) -> None:
        self.machine, self.slots, self.after = machine, slots, after
        self.feeder = self.copier = self.kernels = self.host = 0.0
        self.visits = 0  # in all previous steps
        self.enqueued: dict[int, float] = {}  # visit -> when the host had enqueued its last kernel
        self.done: dict[int, float] = {}  # visit -> when that kernel had finished
        self.staged = [0.0] * machine.staging_buffers  # when each staging buffer is free again
        self.chunk = 0

    def step(self, events: Sequence[_Event]) -> float:
        """One step. Returns the seconds that kernels waited."""
        stall = 0.0
        for event in events:
            visit = self.visits + event.visit
            ready = 0.0
            if event.nbytes:
                self.feeder = max(self.feeder, self.enqueued.get(visit - self.slots, 0.0))
                ready = self._copy(event.location, event.nbytes, self.done.get(visit - self.slots, 0.0))
            self.kernels += event.before
            stall += max(0.0, ready - self.kernels)
            self.kernels = max(self.kernels, ready) + event.own
            if self.machine.link is None:
                self.host = max(self.host, self.kernels)
            elif event.nbytes:
                self.host = max(self.host, self.feeder)
            if event.closes:
                self.enqueued[visit], self.done[visit] = self.host, self.kernels
                self.enqueued.pop(visit - 2 * self.slots, None)
                self.done.pop(visit - 2 * self.slots, None)
        self.visits += 1 + max(event.visit for event in events)
        self.kernels += self.after
        return stall

    def _copy(self, location: Location, nbytes: int, slot_free: float) -> float:
        """The time at which the weight has arrived."""
        machine = self.machine
        if machine.link is None:
            self.feeder += nbytes / machine.disk
            return self.feeder
        if location is Location.PINNED:
            self.copier = max(self.copier, self.feeder, slot_free) + nbytes / machine.link + machine.latency
            return self.copier
        rate = machine.disk if location is Location.DISK else machine.host_copy
        for part in _chunks(nbytes, machine.staging_bytes):
            buffer = self.chunk % machine.staging_buffers
            self.feeder = max(self.feeder, self.staged[buffer]) + part / rate
            self.copier = max(self.copier, self.feeder, slot_free) + part / machine.link + machine.latency
            self.staged[buffer] = self.copier
            self.chunk += 1
        return self.copier


def _chunks(nbytes: int, most: int) -> Iterator[int]:
    while nbytes > 0:
        yield min(nbytes, most)
        nbytes -= most
