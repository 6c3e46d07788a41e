"""The order in which weights are fetched: from a schedule of uses to visits of groups in the slots of the ring.

A visit of a streamed group lasts from the moment it gets a slot until the slot is free for another group. Several uses
of the group belong to one visit if few other groups are used in between:

    the two halves of a double block, used in turn          are two visits that overlap
    a block that runs forward and at once backward          is one visit: in training, the last blocks are fetched once
    a block that runs forward, and backward much later      is two visits: it is fetched twice

Slots are used in turn: visit v has slot v modulo their number. A visit must therefore end before as many others have
begun after it as there are slots; `last_uses` ensures this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

OVERLAP = 2  # the most groups in use at once: the image half and the text half of a double block


@dataclass(frozen=True)
class Turn:
    """One use of a streamed weight, or the fetching of a weight that then stays on the device."""

    number: int  # counts all turns
    use: int  # its index in the schedule
    weight: int
    visit: int | None  # counts visits; None: the weight stays on the device
    brings: bool = True  # the weight must be fetched
    opens: bool = False  # its group gets a slot
    closes: bool = False  # its group frees its slot


def last_uses(groups: Sequence[int | None], overlap: int = OVERLAP) -> tuple[bool, ...]:
    """For each use, whether a visit ends with it. groups: the group of each use, None for a resident one.

    Between the beginning and the end of a visit, fewer than `overlap` others begin.
    """
    ends = [False] * len(groups)
    visit: dict[int, int] = {}  # group in a slot -> its visit
    last: dict[int, int] = {}
    begun = 0
    for use, group in enumerate(groups):
        if group is None:
            continue
        if group in visit and begun - visit[group] > overlap:
            ends[last[group]] = True
            del visit[group]
        if group not in visit:
            visit[group], begun = begun, begun + 1
        last[group] = use
    for use in last.values():
        ends[use] = True
    return tuple(ends)


def fewest_slots(groups: Sequence[int | None], ends: Sequence[bool]) -> int:
    """The fewest slots without a deadlock of the ring: the most visits from the oldest open one to the newest."""
    visit: dict[int, int] = {}
    begun = most = 0
    for group, end in zip(groups, ends, strict=True):
        if group is None:
            continue
        if group not in visit:
            visit[group], begun = begun, begun + 1
        most = max(most, begun - visit[group])
        if end:
            del visit[group]
    return most


def fetched(weights: Sequence[int], groups: Sequence[int | None], ends: Sequence[bool]) -> dict[int, int]:
    """How often each weight is fetched in one step: once per visit that uses it. weights: the weight of each use."""
    times: dict[int, int] = {}
    inside: dict[int, set[int]] = {}
    for weight, group, end in zip(weights, groups, ends, strict=True):
        if group is None:
            continue
        there = inside.setdefault(group, set())
        if weight not in there:
            there.add(weight)
            times[weight] = times.get(weight, 0) + 1
        if end:
            del inside[group]
    return times


def turns_from(
    weights: Sequence[int],
    groups: Sequence[int | None],
    overlap: int = OVERLAP,
    missing: frozenset[int] = frozenset(),
    start: int = 0,
) -> Iterator[Turn]:
    """The turns from use `start` on, step after step, without end; ends only if nothing is left to fetch.

    weights, groups: of each use. missing: weights of resident groups that have not been read yet; each gets one turn.
    """
    ends = [False] * start + list(last_uses(groups[start:], overlap))  # earlier visits do not count
    number = visits = 0
    left = set(missing.intersection(weights))
    visit: dict[int, int] = {}
    inside: dict[int, set[int]] = {}
    use = start
    while left or any(group is not None for group in groups):
        while use < len(weights):
            weight, group = weights[use], groups[use]
            if group is None:
                if weight in left:
                    left.discard(weight)
                    yield Turn(number, use, weight, None)
                    number += 1
                use += 1
                continue
            opens = group not in visit
            if opens:
                visit[group], inside[group], visits = visits, set(), visits + 1
            brings = weight not in inside[group]
            inside[group].add(weight)
            yield Turn(number, use, weight, visit[group], brings, opens, ends[use])
            number += 1
            if ends[use]:
                del visit[group]
            use += 1
        use, ends = 0, list(last_uses(groups, overlap))
