"""Decides which waiting job goes to which free worker: `assign` is a pure function; `job_runner.py` carries it out.

A worker that has a job's models in memory ("warm") can start it at once; another one must load them first. So a job
waits up to three seconds for a warm worker, a free worker takes jobs with its own models first, and a worker gets
other models where the queue would otherwise take longest. Serving the oldest job first instead, after any fixed time,
was simulated too: as soon as the queue is longer than that time, all workers load models for each job.

With one worker, jobs start strictly in the order of their numbers. With several, the order is kept among jobs with the
same models, and jobs that were put in front of the queue start first.

Independent of: the queue file, processes, clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Models = frozenset[str]  # names of model files

PATIENCE = 3.0  # seconds for which a job waits for a warm worker
STEADY = 120.0  # seconds for which a worker keeps its models while jobs for them are waiting
LONGEST = 60.0  # seconds after which jobs without a warm worker come before a worker's own jobs
USUAL_SECONDS = 20.0  # of a job, until one with its models has ended
_HARDLY_ONE = 0.2  # workers; used in place of 0 in a division


@dataclass(frozen=True)
class Group:
    """The waiting jobs that need the same models. first: the ids that could start now, in order, at least one.

    number and since: of the first one: its position in the queue, and its time of arrival (seconds).
    """

    models: Models
    first: Sequence[str]
    count: int
    number: float
    since: float
    seconds: float = USUAL_SECONDS  # of one of these jobs


@dataclass(frozen=True)
class Place:
    """One worker: its name, whether it can take a job now, its models, and when it last got other models.

    speed: the number of jobs it does while a worker of speed 1 does one.
    """

    name: str
    free: bool
    warm: Models = frozenset()
    changed: float = float("-inf")  # seconds
    speed: float = 1.0


@dataclass(frozen=True)
class Assignment:
    """A job and the worker that runs it. cold: the worker must load models for it."""

    prompt_id: str
    place: str
    cold: bool


def assign(groups: Iterable[Group], places: Iterable[Place], now: float) -> list[Assignment]:
    """The jobs that start now; none if it is better to wait. Each worker and each job occurs at most once."""
    return _Round(list(groups), list(places), now).decide()


def next_look(groups: Iterable[Group], now: float) -> float | None:
    """Seconds until `assign` may decide differently without an event; None if only an event can change it."""
    times = (group.since + PATIENCE - now for group in groups)
    return min((left for left in times if left > 0), default=None)


class _Round:
    """One decision: the groups and workers that are left while jobs are assigned."""

    def __init__(self, groups: list[Group], places: list[Place], now: float) -> None:
        self._groups, self._places, self._now = groups, places, now
        self._given = [0] * len(groups)
        self._free = [place for place in places if place.free]
        self._free.sort(key=lambda place: -place.speed)  # equal ones stay in their order
        self._warm = [sum(group.models <= place.warm for place in places) for group in groups]
        self._made: list[Assignment] = []

    def decide(self) -> list[Assignment]:
        if len(self._places) == 1:
            first = min(range(len(self._groups)), key=lambda i: self._groups[i].number, default=None)
            if first is not None and self._free:
                self._give(first, self._free[0])
            return self._made
        self._in_front()
        for place in list(self._free):
            if not self._left():
                return self._made
            own = self._best(i for i in self._left() if self._is_warm(i, place))
            if own is not None and not self._rather_others(place, own):
                self._give(own, place)
        while self._free:
            next_ = self._best(i for i in self._left() if self._is_ripe(i))
            if next_ is None:
                break
            self._give(next_, max(self._free, key=lambda place: self._spare(next_, place)))
        return self._made

    def _in_front(self) -> None:
        """Assign jobs that were put in front of the queue, which do not wait."""
        for i in sorted(self._left(), key=lambda i: self._groups[i].number):
            if self._groups[i].number < 0 and self._free:
                self._give(i, max(self._free, key=lambda place: self._spare(i, place)))

    def _left(self) -> list[int]:
        return [i for i, group in enumerate(self._groups) if self._given[i] < len(group.first)]

    def _is_warm(self, i: int, place: Place) -> bool:
        return self._groups[i].models <= place.warm

    def _waited(self, i: int) -> float:
        return self._now - self._groups[i].since

    def _is_ripe(self, i: int) -> bool:
        """Whether the group may get a worker that must load its models."""
        return not self._warm[i] or self._waited(i) >= PATIENCE

    def _drain(self, i: int) -> float:
        """Seconds until the workers with its models would have finished all jobs of a group."""
        group = self._groups[i]
        return (group.count - self._given[i]) * group.seconds / max(self._warm[i], _HARDLY_ONE)

    def _best(self, candidates: Iterable[int]) -> int | None:
        """The group that would take longest; of equal ones, that whose first job came first."""
        return max(candidates, key=lambda i: (self._drain(i), -self._groups[i].number), default=None)

    def _rather_others(self, place: Place, own: int) -> bool:
        """Whether a worker with jobs for its own models is needed more for other models."""
        if self._now - place.changed < STEADY:
            return False
        others = [i for i in self._left() if not self._is_warm(i, place) and self._waited(i) >= PATIENCE]
        if any(not self._warm[i] and self._waited(i) >= LONGEST for i in others):
            return True
        return any(self._drain(i) > 3 * self._drain(own) + USUAL_SECONDS for i in others)

    def _spare(self, i: int, place: Place) -> tuple[bool, bool, float, float]:
        """How suitable a worker is for a job of a group: warm for it, empty, one of many, slow."""
        same = sum(other.warm == place.warm for other in self._places)
        waiting = sum(self._groups[k].count for k in self._left() if self._is_warm(k, place))
        return self._is_warm(i, place), not place.warm, same - waiting, -place.speed

    def _give(self, i: int, place: Place) -> None:
        cold = not self._is_warm(i, place)
        self._made.append(Assignment(self._groups[i].first[self._given[i]], place.name, cold))
        self._given[i] += 1
        self._free.remove(place)
        self._warm[i] += cold
