"""The memory a stream has on its device: slabs for groups that stay, slots for those that pass, and where weights lie.

Takes over a plan, keeping what is there already. Knows nothing of threads, of order, or of bytes in files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BudgetTooSmall
from .device import Device, DeviceFull, Slab, Source
from .host import Arena, Staging
from .plan import Plan
from .schedule import OVERLAP, Turn, fewest_slots, itinerary, last_uses
from .workload import IN_RAM, Group, Location, MiB


@dataclass
class Place:
    """Where a weight lies: `nbytes` bytes from `offset` of a slab."""

    slab: Slab
    offset: int
    nbytes: int


@dataclass
class Slot:
    """One place of the ring, with the events of what comes and goes."""

    slab: Slab
    done: Any
    arrived: list[Any]  # one for each weight of the group that is in it


@dataclass
class Resident:
    """The slab of a group that stays, and which of its weights are there for good."""

    slab: Slab
    arrived: dict[int, Any]
    here: set[int] = field(default_factory=set)


class Residency:
    """Slabs, slots, RAM and staging of one stream."""

    def __init__(self, plan: Plan, device: Device, source: Source) -> None:
        """Raises BudgetTooSmall as `adopt` does."""
        self.device, self.source = device, source
        self.weights = plan.workload.weights
        self.order = [use.weight for use in plan.workload.schedule]
        self.lands = plan.machine.link is None  # reads end in the slab itself, in whole blocks of the file
        self.slots: list[Slot] = []
        self.resident: list[Resident | None] = []  # by weight; None: its group passes through the ring
        self.arena = Arena(device, source)
        self.staging = Staging(device)
        self._slabs: dict[tuple[int, ...], Resident] = {}  # by the weights of the group: its number changes with plans
        self.adopt(plan)

    def adopt(self, plan: Plan) -> None:
        """Allocate what the plan says, keep what is there already, free what is not wanted: a slab at a time.

        If the device is full before all resident groups have slabs, the rest streams. Raises BudgetTooSmall, and holds
        nothing any more, if there is no room for a ring.
        """
        self._map(plan)
        stay = {group.weights: group for group in plan.at(Location.DEVICE)}
        for weights in [weights for weights in self._slabs if weights not in stay]:
            self.device.free(self._slabs.pop(weights).slab)
        self._free_slots()
        try:
            if plan.slots:
                self._make_slots(plan.slots, plan.slot_bytes, self._fewest(plan))
            self._make_resident(plan, [group for weights, group in stay.items() if weights not in self._slabs])
            if not self.lands:
                placed = zip(plan.groups, plan.locations, strict=True)
                self.arena.adopt(
                    {group.weights: where for group, where in placed if where in IN_RAM},
                    [weight.nbytes for weight in self.weights],
                )
                self.staging.adopt(plan.machine, self.source.slack)
        except BaseException:
            self.close()
            raise
        self.resident = [self._slabs.get(plan.groups[number].weights) for number in self.group]

    def itinerary(self, start: int) -> Iterator[Turn]:
        """The turns from use `start` on, for what is here now."""
        groups = [None if self.resident[weight] is not None else self.group[weight] for weight in self.order]
        missing = frozenset(w for w, resident in enumerate(self.resident) if resident and w not in resident.here)
        return itinerary(self.order, groups, min(OVERLAP, len(self.slots)), missing, start)

    def _map(self, plan: Plan) -> None:
        """Where weights lie within their groups."""
        self.group = [weight.group for weight in plan.workload.weights]
        self.room = [plan.machine.room(weight.nbytes) for weight in plan.workload.weights]
        self.offset, self.index = [0] * len(self.group), [0] * len(self.group)
        for group in plan.groups:
            offset = 0
            for index, weight in enumerate(group.weights):
                self.offset[weight], self.index[weight] = offset, index
                offset += self.room[weight]
        self.most_weights = max(len(group.weights) for group in plan.groups)

    def _fewest(self, plan: Plan, also: Sequence[Group] = ()) -> int:
        """Slots without which the ring would wait for itself, with `also` streamed."""
        stays = {group.number for group in plan.at(Location.DEVICE)} - {group.number for group in also}
        groups = [None if self.group[weight] in stays else self.group[weight] for weight in self.order]
        return fewest_slots(groups, last_uses(groups))

    def _make_resident(self, plan: Plan, groups: list[Group]) -> None:
        for number, group in enumerate(groups):
            try:
                slab = self.device.allocate(group.room)
            except DeviceFull:
                self._widen_ring(plan, groups[number:])
                return
            self._slabs[group.weights] = Resident(slab, {weight: self.device.event() for weight in group.weights})

    def _widen_ring(self, plan: Plan, homeless: list[Group]) -> None:
        """Groups that were to stay must stream: the ring needs slots that take them, if need be in place of others."""
        nbytes = max(plan.slot_bytes, max(group.room for group in homeless))
        fewest = self._fewest(plan, homeless)
        count = max(plan.slots, fewest)
        if len(self.slots) >= count and nbytes <= plan.slot_bytes:
            return
        self._free_slots()
        while not self.slots:
            try:
                self._make_slots(count, nbytes, fewest)
            except BudgetTooSmall:
                if not self._slabs:
                    raise
                _, resident = self._slabs.popitem()
                self.device.free(resident.slab)
                nbytes = max(nbytes, resident.slab.nbytes)

    def _make_slots(self, count: int, nbytes: int, fewest: int) -> None:
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
            events = [self.device.event() for _ in range(self.most_weights)]
            self.slots.append(Slot(slab, self.device.event(), events))

    def _free_slots(self) -> None:
        while self.slots:
            self.device.free(self.slots.pop().slab)

    @property
    def filled_bytes(self) -> int:
        """Of the slabs, how many bytes have been read into them."""
        here = [weight for resident in self._slabs.values() for weight in resident.here]
        return sum(self.room[weight] for weight in here) + sum(slot.slab.nbytes for slot in self.slots)

    @property
    def ram_bytes(self) -> int:
        """Of RAM, as far as it is in use by now."""
        return self.arena.used_bytes + self.staging.used_bytes

    @property
    def closed(self) -> bool:
        return not self.slots and None in self.resident

    def close(self) -> None:
        self._free_slots()
        while self._slabs:
            self.device.free(self._slabs.popitem()[1].slab)
        self.resident = [None] * len(self.weights)
        self.arena.close()
        self.staging.close()

    def place(self, slab: Slab, weight: int) -> Place:
        lead = self.source.lead(weight) if self.lands else 0
        return Place(slab, self.offset[weight] + lead, self.weights[weight].nbytes)
