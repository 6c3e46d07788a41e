"""A stream's memory on its device: slabs of resident groups, slots of the ring, and the place of each weight in them.

A new plan is adopted without reading again what is already there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import BudgetTooSmall
from .device import Device, DeviceFull, Slab, Source
from .host import Arena, Staging
from .plan import Plan
from .schedule import OVERLAP, Turn, fewest_slots, last_uses, turns_from
from .workload import IN_RAM, Group, Location, MiB


@dataclass
class WeightSpan:
    """The place of a weight: `nbytes` bytes from `offset` on in a slab."""

    slab: Slab
    offset: int
    nbytes: int


@dataclass
class Slot:
    """One slot of the ring, with its events."""

    slab: Slab
    done: Any  # the event after the last kernel of a visit
    arrived: list[Any]  # the event after the copy of each weight of the group in the slot


@dataclass
class Resident:
    """The slab of a resident group, the event after the copy of each weight, and the weights known to have arrived."""

    slab: Slab
    arrived: dict[int, Any]
    here: set[int] = field(default_factory=set)


class Residency:
    """The slabs, slots, RAM and staging buffers of one stream."""

    def __init__(self, plan: Plan, device: Device, source: Source) -> None:
        """Raises BudgetTooSmall as `adopt` does."""
        self.device, self.source = device, source
        self.weights = plan.workload.weights
        self.order = [use.weight for use in plan.workload.schedule]
        self.reads_in_place = plan.machine.link is None  # files are read straight into the slab, in whole blocks
        self.slots: list[Slot] = []
        self.resident: list[Resident | None] = []  # by weight; None: its group is streamed
        self.arena = Arena(device, source)
        self.staging = Staging(device)
        self._slabs: dict[tuple[int, ...], Resident] = {}  # by the group's weights: its number differs between plans
        self.adopt(plan)

    def adopt(self, plan: Plan) -> None:
        """Free what the plan does not contain, keep what it contains, allocate the rest, one slab at a time.

        If the device is full before all resident groups have slabs, the others are streamed. If there is no room for a
        ring, frees everything and raises BudgetTooSmall.
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
            if not self.reads_in_place:
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

    def turns_from(self, start: int, left_out: Collection[int] = ()) -> Iterator[Turn]:
        """The turns from use `start` on, for the groups that are resident now, without the uses `left_out`."""
        uses = [use for use in range(len(self.order)) if use not in left_out]
        order = [self.order[use] for use in uses]
        groups = [None if self.resident[weight] is not None else self.group[weight] for weight in order]
        missing = frozenset(w for w, resident in enumerate(self.resident) if resident and w not in resident.here)
        turns = turns_from(order, groups, min(OVERLAP, len(self.slots)), missing, uses.index(start))
        return (replace(turn, use=uses[turn.use]) for turn in turns) if left_out else turns

    def _map(self, plan: Plan) -> None:
        """Compute the places of weights within their groups."""
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
        """The fewest slots with which the ring does not deadlock, if the groups `also` are streamed too."""
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

    def _widen_ring(self, plan: Plan, unplaced: list[Group]) -> None:
        """Stream groups that were planned as resident: make slots large enough, freeing resident groups if needed."""
        nbytes = max(plan.slot_bytes, max(group.room for group in unplaced))
        fewest = self._fewest(plan, unplaced)
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
        """Bytes of slabs that have been written to."""
        here = [weight for resident in self._slabs.values() for weight in resident.here]
        return sum(self.room[weight] for weight in here) + sum(slot.slab.nbytes for slot in self.slots)

    @property
    def missing_bytes(self) -> int:
        """Bytes of weights that will stay on the device and have not been taken there yet."""
        missing = (w for w, resident in enumerate(self.resident) if resident is not None and w not in resident.here)
        return sum(self.weights[weight].nbytes for weight in missing)

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM in use by now."""
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

    def place(self, slab: Slab, weight: int) -> WeightSpan:
        lead = self.source.lead(weight) if self.reads_in_place else 0
        return WeightSpan(slab, self.offset[weight] + lead, self.weights[weight].nbytes)
