"""The memory a stream holds on its device: slabs for units that stay, slots for those that pass, and where pieces lie.

Takes over a plan, keeping what is there already. Knows nothing of threads, of order, or of bytes in files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BudgetTooSmall
from .device import Device, DeviceFull, Slab, Source
from .host import Arena, Staging
from .plan import Plan
from .workload import PAGEABLE, PINNED, RESIDENT, MiB, Unit, fewest_slots

IN_RAM = (PINNED, PAGEABLE)


@dataclass
class Place:
    """Where a piece lies: `nbytes` bytes from `offset` of a slab."""

    slab: Slab
    offset: int
    nbytes: int


@dataclass
class Slot:
    """One place of the ring, with the events of what comes and goes."""

    slab: Slab
    done: Any
    arrived: list[Any]  # one for each piece of the unit that is in it


@dataclass
class Home:
    """A unit's slab on the device, and which of its pieces are there for good."""

    slab: Slab
    arrived: dict[int, Any]
    here: set[int] = field(default_factory=set)


class Residency:
    """Slabs, slots, RAM and staging of one stream."""

    def __init__(self, plan: Plan, device: Device, source: Source) -> None:
        """Raises BudgetTooSmall as `settle` does."""
        self.device, self.source = device, source
        self.pieces = plan.workload.pieces
        self.lands = plan.machine.link is None  # reads end in the slab itself, in whole blocks of the file
        self.slots: list[Slot] = []
        self.home_of: list[Home | None] = []  # by piece; None: its unit passes through the ring
        self.arena = Arena(device, source)
        self.staging = Staging(device)
        self._homes: dict[tuple[int, ...], Home] = {}  # by the pieces of the unit: its number changes with the plan
        self.settle(plan)

    def settle(self, plan: Plan) -> None:
        """Allocate what the plan says, keep what is there already, free what is not wanted: a slab at a time.

        If the device is full before all residents have slabs, the rest streams. Raises BudgetTooSmall, and holds
        nothing any more, if there is no room for a ring.
        """
        self._map(plan)
        stay = {unit.order: unit for unit, home in zip(plan.units, plan.homes, strict=True) if home == RESIDENT}
        for order in [order for order in self._homes if order not in stay]:
            self.device.free(self._homes.pop(order).slab)
        self._free_slots()
        try:
            self._make_slots(plan.units, plan.slots, plan.slot_bytes)
            self._make_homes(plan, [unit for order, unit in stay.items() if order not in self._homes])
            if not self.lands:
                ram = {unit.order: home for unit, home in zip(plan.units, plan.homes, strict=True) if home in IN_RAM}
                self.arena.settle(ram, [piece.nbytes for piece in self.pieces])
                self.staging.settle(plan.machine, self.source.slack)
        except BaseException:
            self.close()
            raise
        self.home_of = [self._homes.get(plan.units[number].order) for number in self.unit]

    def _map(self, plan: Plan) -> None:
        """Where pieces lie within their units."""
        self.unit = [piece.unit for piece in plan.workload.pieces]
        self.last = [unit.order[-1] for unit in plan.units]
        self.room = [plan.machine.room(piece.nbytes) for piece in plan.workload.pieces]
        self.offset, self.index = [0] * len(self.unit), [0] * len(self.unit)
        for unit in plan.units:
            offset = 0
            for index, piece in enumerate(unit.order):
                self.offset[piece], self.index[piece] = offset, index
                offset += self.room[piece]

    def _make_homes(self, plan: Plan, units: list[Unit]) -> None:
        for number, unit in enumerate(units):
            try:
                slab = self.device.allocate(unit.room)
            except DeviceFull:
                self._widen_ring(plan, units[number:])
                return
            self._homes[unit.order] = Home(slab, {piece: self.device.event() for piece in unit.order})

    def _widen_ring(self, plan: Plan, homeless: list[Unit]) -> None:
        """Units that were to stay must stream: the ring needs slots that take them, if need be instead of residents."""
        nbytes = max(plan.slot_bytes, max(unit.room for unit in homeless))
        count = max(plan.slots, fewest_slots(plan.units))
        if len(self.slots) >= count and nbytes <= plan.slot_bytes:
            return
        self._free_slots()
        while not self.slots:
            try:
                self._make_slots(plan.units, count, nbytes)
            except BudgetTooSmall:
                if not self._homes:
                    raise
                order, home = self._homes.popitem()
                self.device.free(home.slab)
                nbytes = max(nbytes, home.slab.nbytes)

    def _make_slots(self, units: Sequence[Unit], count: int, nbytes: int) -> None:
        fewest = fewest_slots(units)
        for number in range(count):
            try:
                slab = self.device.allocate(nbytes)
            except DeviceFull:
                if number >= fewest:
                    return
                self._free_slots()
                raise BudgetTooSmall(
                    f"The device has no room for {fewest} slots of {nbytes / MiB:.0f} MiB, with which all weights "
                    "could be streamed. Close other programs that use it, or choose a more strongly quantised file."
                ) from None
            events = [self.device.event() for _ in range(max(len(unit.order) for unit in units))]
            self.slots.append(Slot(slab, self.device.event(), events))

    def _free_slots(self) -> None:
        while self.slots:
            self.device.free(self.slots.pop().slab)

    @property
    def filled_bytes(self) -> int:
        """Of the slabs, how many bytes have been read into them."""
        here = [piece for home in self._homes.values() for piece in home.here]
        return sum(self.room[piece] for piece in here) + sum(slot.slab.nbytes for slot in self.slots)

    @property
    def ram_bytes(self) -> int:
        """Of RAM, as far as it is in use by now."""
        return self.arena.used_bytes + self.staging.used_bytes

    @property
    def closed(self) -> bool:
        return not self.slots and None in self.home_of

    def close(self) -> None:
        self._free_slots()
        while self._homes:
            self.device.free(self._homes.popitem()[1].slab)
        self.home_of = [None] * len(self.pieces)
        self.arena.close()
        self.staging.close()

    def place(self, slab: Slab, piece: int) -> Place:
        lead = self.source.lead(piece) if self.lands else 0
        return Place(slab, self.offset[piece] + lead, self.pieces[piece].nbytes)
