"""Decides which weights are freed when something else needs their memory. `manager.py` carries the decisions out.

A holder is a model that keeps weights on the device while it does not run. Evictions are carried out in order; a model
may free a little more than an eviction demands, because it frees whole groups of weights.

Pure: no device, no file, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Plan, plan, smallest_budget
from .workload import Budget, Location, Machine, Workload


@dataclass(frozen=True)
class Holder:
    """What one model keeps on the device. Of two that need the same memory, the one of higher priority gets it."""

    priority: int
    nbytes: int


@dataclass(frozen=True)
class Eviction:
    """One holder, given by its index in the list, must free `nbytes` bytes."""

    holder: int
    nbytes: int


def evictions(holders: Sequence[Holder], nbytes: int) -> list[Eviction]:
    """How to free `nbytes` bytes, or all there is: the lowest priority first, each no more than is still needed."""
    decided, needed = [], nbytes
    for number in sorted(range(len(holders)), key=lambda number: holders[number].priority):
        taken = min(needed, holders[number].nbytes)
        if taken > 0:
            decided.append(Eviction(number, taken))
            needed -= taken
    return decided


def all_below(holders: Sequence[Holder], priority: int) -> list[Eviction]:
    """Evictions of everything that holders of a lower priority keep."""
    return [Eviction(n, each.nbytes) for n, each in enumerate(holders) if each.priority < priority and each.nbytes]


def evictions_for(
    workload: Workload, machine: Machine, priority: int, holders: Sequence[Holder], limit: int
) -> list[Eviction]:
    """What is freed before a model of this priority runs within `limit` bytes, beside these holders.

    If not all of its weights fit, holders of lower priority lose everything. The others lose only enough for the model
    to stream: a transformer stays on the device while a text encoder streams through the remaining memory.
    """
    held = sum(holder.nbytes for holder in holders)
    decided: list[Eviction] = []
    if all_bytes(workload, machine) > limit - held:
        decided = all_below(holders, priority)
        held -= sum(each.nbytes for each in decided)
    gone = {each.holder for each in decided}
    left = [Holder(each.priority, 0 if n in gone else each.nbytes) for n, each in enumerate(holders)]
    return decided + evictions(left, smallest_budget(workload, machine) - (limit - held))


def room_for(workload: Workload, machine: Machine, free: int, granted: int | None) -> int:
    """Bytes of device memory that a model may plan with, of `free` bytes.

    granted: bytes of weights that an external allocator allows; None if there is none. A model always gets the smallest
    amount with which it can run.
    """
    if granted is None:
        return free
    return min(free, max(workload.fixed_bytes + granted, smallest_budget(workload, machine)))


def shrunk(current: Plan, nbytes: int) -> Plan | None:
    """A plan for the same run with `nbytes` fewer bytes, or as few as possible. None if it cannot use fewer."""
    if Location.DEVICE not in current.locations:
        return None
    room = max(current.peak_bytes - nbytes, smallest_budget(current.workload, current.machine))
    smaller = plan(current.workload, Budget(room, current.host_bytes, current.host_bytes), current.machine)
    return smaller if smaller.weight_bytes < current.weight_bytes else None


def all_bytes(workload: Workload, machine: Machine) -> int:
    """Bytes of device memory with which all weights are resident."""
    return workload.fixed_bytes + weight_bytes(workload, machine)


def weight_bytes(workload: Workload, machine: Machine) -> int:
    """Bytes of device memory for all weights."""
    return sum(machine.room(weight.nbytes) for weight in workload.weights)
