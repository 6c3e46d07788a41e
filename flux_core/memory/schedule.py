"""In which order weights come: visits of groups to the slots of the ring, from a schedule of uses.

A group whose weights stream comes into a slot, is used there, and makes room for another: a visit. It lasts from one
use of the group to another as long as few other groups come in between, so that

    the two halves of a double block, used in turn       are two visits that overlap
    a block that is run forward and at once backward     is one visit: at the turn of a training step none is fetched
    a block that is run backward long after forward      is two visits: it is fetched twice

Slots are taken in turn: visit v has slot v modulo their number. So a visit must end before as many others have begun
after it as there are slots; `last_uses` sees to that.

Knows no bytes, no device and no thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

OVERLAP = 2  # groups that are in use at once, at most: the image's and the text's half of a double block


@dataclass(frozen=True)
class Turn:
    """One use of a weight that is not on the device for good, or the bringing of one that is to be."""

    number: int  # counts turns, whatever they are
    use: int  # its place in the schedule
    weight: int
    visit: int | None  # counts visits; None: the weight comes to stay
    brings: bool = True  # the weight is not there yet
    opens: bool = False  # its group comes into a slot
    closes: bool = False  # its group is through with its slot


def last_uses(groups: Sequence[int | None], overlap: int = OVERLAP) -> tuple[bool, ...]:
    """For each use whether a visit ends with it. groups: that of each use, None for a group that stays.

    From the beginning of a visit to its end fewer than `overlap` others begin.
    """
    ends = [False] * len(groups)
    visit: dict[int, int] = {}  # of the groups that are in a slot
    last: dict[int, int] = {}
    begun = 0
    for place, group in enumerate(groups):
        if group is None:
            continue
        if group in visit and begun - visit[group] > overlap:
            ends[last[group]] = True
            del visit[group]
        if group not in visit:
            visit[group], begun = begun, begun + 1
        last[group] = place
    for place in last.values():
        ends[place] = True
    return tuple(ends)


def fewest_slots(groups: Sequence[int | None], ends: Sequence[bool]) -> int:
    """How many visits are under way at once, counted from the oldest that is: a smaller ring would wait for itself."""
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
    """How often each weight is brought in one step: once in every visit that uses it. weights: that of each use."""
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


def itinerary(
    weights: Sequence[int],
    groups: Sequence[int | None],
    overlap: int = OVERLAP,
    missing: frozenset[int] = frozenset(),
    start: int = 0,
) -> Iterator[Turn]:
    """Turns from use `start` on, step after step, for ever; it ends when nothing has to be brought any more.

    weights, groups: of each use. missing: weights of groups that stay which are not there yet; each has one turn.
    """
    ends = [False] * start + list(last_uses(groups[start:], overlap))  # visits that began before `start` are no more
    number = visits = 0
    left = set(missing.intersection(weights))
    visit: dict[int, int] = {}
    inside: dict[int, set[int]] = {}
    place = start
    while left or any(group is not None for group in groups):
        while place < len(weights):
            weight, group = weights[place], groups[place]
            if group is None:
                if weight in left:
                    left.discard(weight)
                    yield Turn(number, place, weight, None)
                    number += 1
                place += 1
                continue
            opens = group not in visit
            if opens:
                visit[group], inside[group], visits = visits, set(), visits + 1
            brings = weight not in inside[group]
            inside[group].add(weight)
            yield Turn(number, place, weight, visit[group], brings, opens, ends[place])
            number += 1
            if ends[place]:
                del visit[group]
            place += 1
        place, ends = 0, list(last_uses(groups, overlap))
