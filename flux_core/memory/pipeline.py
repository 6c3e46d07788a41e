"""How long a step takes with given homes: the executor's pipeline, walked with clocks instead of bytes.

The order of events is that of `stream.py`: a feeder reads ahead as far as slots and staging buffers are free, one copy
engine, one queue of kernels, a host that runs ahead of both. Decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from .workload import COMPUTE_BOUND, DISK, DISK_BOUND, LINK_BOUND, PAGEABLE, PINNED, RESIDENT, Machine, Unit, Workload


class Timeline:
    """Seconds and bytes of one workload on one machine, and what a set of homes makes of them."""

    def __init__(self, workload: Workload, machine: Machine, units: tuple[Unit, ...]) -> None:
        self.workload, self.machine, self.units = workload, machine, units
        self.piece_seconds = [machine.seconds(piece) for piece in workload.pieces]
        self.unit_seconds = [sum(self.piece_seconds[place] for place in unit.order) for unit in units]
        self.compute = sum(self.piece_seconds)

    def limit(self, homes: str, split: frozenset[int] = frozenset()) -> tuple[float, str]:
        """The largest of compute, link and disk seconds, and its name. Copies out of pageable RAM count as reading."""
        moved = {PINNED: 0, PAGEABLE: 0, DISK: 0, RESIDENT: 0}
        for unit, home in zip(self.units, homes, strict=True):
            moved[home] += unit.nbytes
        for place in split:
            moved[homes[self.workload.pieces[place].unit]] -= self.workload.pieces[place].nbytes
        reading = moved[DISK] / self.machine.disk + moved[PAGEABLE] / self.machine.host_copy
        link = self.machine.link
        crossing = 0.0 if link is None else (moved[PINNED] + moved[PAGEABLE] + moved[DISK]) / link
        terms = ((self.compute, COMPUTE_BOUND), (crossing, LINK_BOUND), (reading, DISK_BOUND))
        return max(terms, key=lambda term: term[0])

    def seconds(self, homes: str, slots: int, split: frozenset[int] = frozenset()) -> float:
        """Of one step in steady state, by walking the pipeline of `stream.py` with clocks instead of bytes."""
        streamed = self._streamed(homes, split)
        if not streamed:
            return self.compute
        walk = _Pipeline(self.machine, slots, self.compute - sum(before + own for _, _, _, before, own, _ in streamed))
        stalls: list[float] = []
        for _ in range(12):
            stalls.append(walk.step(streamed))
            if len(stalls) > 2 and math.isclose(stalls[-1], stalls[-2], rel_tol=1e-6, abs_tol=1e-9):
                return self.compute + stalls[-1]
        half = stalls[len(stalls) // 2 :]
        return self.compute + sum(half) / len(half)

    def _streamed(self, homes: str, split: frozenset[int]) -> list[tuple[int, str, int, float, float, bool]]:
        """Per streamed piece: unit, home, bytes, seconds of resident work before it, own seconds, last of its unit."""
        out, before = [], 0.0
        last = {max(set(unit.order) - split, default=-1) for unit in self.units}
        for place, piece in enumerate(self.workload.pieces):
            if homes[piece.unit] == RESIDENT or place in split:
                before += self.piece_seconds[place]
                continue
            out.append((piece.unit, homes[piece.unit], piece.nbytes, before, self.piece_seconds[place], place in last))
            before = 0.0
        return out


class _Pipeline:
    """Clocks of the feeder, the link, the kernels and the host's enqueueing, in the executor's own order of events."""

    def __init__(self, machine: Machine, slots: int, after: float) -> None:
        self.machine, self.slots, self.after = machine, slots, after
        self.feeder = self.copier = self.kernels = self.host = 0.0
        self.visits = 0
        self.open: dict[int, int] = {}  # unit -> its number among all visits
        self.enqueued: dict[int, float] = {}  # visit -> when the host had enqueued its last kernel
        self.done: dict[int, float] = {}  # visit -> when that kernel was through
        self.staged = [0.0] * machine.staging_buffers  # when each staging buffer is free again
        self.chunk = 0

    def step(self, streamed: Iterable[tuple[int, str, int, float, float, bool]]) -> float:
        """One walk; returns the seconds the kernels stood still."""
        stall = 0.0
        for unit, home, nbytes, before, own, last in streamed:
            if unit not in self.open:
                self.open[unit] = self.visits
                self.visits += 1
            visit = self.open[unit]
            self.feeder = max(self.feeder, self.enqueued.get(visit - self.slots, 0.0))
            ready = self._copy(home, nbytes, self.done.get(visit - self.slots, 0.0))
            self.kernels += before
            stall += max(0.0, ready - self.kernels)
            self.kernels = max(self.kernels, ready) + own
            self.host = max(self.host, self.feeder if self.machine.link else self.kernels)
            if last:
                del self.open[unit]
                self.enqueued[visit], self.done[visit] = self.host, self.kernels
                self.enqueued.pop(visit - 2 * self.slots, None)
                self.done.pop(visit - 2 * self.slots, None)
        self.kernels += self.after
        return stall

    def _copy(self, home: str, nbytes: int, slot_free: float) -> float:
        """When the piece has arrived."""
        machine = self.machine
        if machine.link is None:
            self.feeder += nbytes / machine.disk
            return self.feeder
        if home == PINNED:
            self.copier = max(self.copier, self.feeder, slot_free) + nbytes / machine.link + machine.latency
            return self.copier
        rate = machine.disk if home == DISK else machine.host_copy
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
