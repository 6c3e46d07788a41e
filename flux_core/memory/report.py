"""Reports what a run did with its memory, beside the prediction: one log line per job, one event per step.

Listeners receive a dict per step and per job. A log line ends each job; a second one names the cause if steps took a
quarter longer than predicted. Times and bytes are given by the caller.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from .budget import format_seconds, format_size
from .plan import Plan
from .workload import COMPUTE_BOUND, IN_RAM, Location, letters

log = logging.getLogger(__name__)

RING_SECONDS = 0.25  # between two events about the ring: a person cannot follow more
LATE, LATE_SECONDS = 1.25, 0.1  # a cause is named if actual / predicted and actual - predicted exceed these
Event = dict[str, Any]
Emit = Callable[[Event], None]


class Events:
    """Passes each event of one runtime to all listeners."""

    def __init__(self) -> None:
        self._listeners: list[Emit] = []

    def listen(self, listener: Emit) -> Callable[[], None]:
        """Call `listener` with every event from now on. Returns the function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @property
    def has_listeners(self) -> bool:
        """Whether there is a listener."""
        return bool(self._listeners)

    def emit(self, event: Event) -> None:
        """Call every listener, in the thread that computes."""
        for listener in list(self._listeners):
            listener(event)


def ignore(event: Event) -> None:
    """A listener that ignores all events."""


def plan_record(plan: Plan) -> dict[str, Any]:
    """A plan as JSON. Bytes and seconds; `units` has one row a group, whose `class` is the letter of its location."""
    seconds = [0.0] * len(plan.groups)
    for use in plan.workload.schedule:
        weight = plan.workload.weights[use.weight]
        seconds[weight.group] += plan.machine.seconds(use, weight.nbytes)
    return {
        "model": plan.workload.name,
        "seconds_per_step": plan.seconds,
        "limit_seconds": plan.limit,
        "bound": plan.bound,
        "peak_bytes": plan.peak_bytes,
        "resident_bytes": plan.resident_bytes,
        "streamed_bytes_per_step": plan.streamed_bytes,
        "disk_bytes_per_step": plan.disk_bytes,
        "ring": {"slots": plan.slots, "slot_bytes": plan.slot_bytes},
        "host_bytes": plan.host_bytes,
        "fixed": dict(plan.workload.fixed),
        "units": [
            {
                "name": group_name(plan, group.number),
                "class": location.value,
                "bytes": group.nbytes,
                "seconds": seconds[group.number],
            }
            for group, location in zip(plan.groups, plan.locations, strict=True)
        ],
    }


def group_name(plan: Plan, number: int) -> str:
    """The common part of the names of most of a group's weights."""
    names = [plan.workload.weights[weight].name.removesuffix(".weight") for weight in plan.groups[number].weights]
    common = names[0]
    while 2 * sum(name.startswith(common) for name in names) <= len(names):
        common = common[:-1]
    return common.rstrip("._") or names[0]


@dataclass
class Step:
    """One pass through the model.

    waited         seconds that the main thread waited for weights
    read_bytes     read from the file in this time, with what was read ahead for the next step
    fetched_bytes  of the weights that this step brought to the device and used
    planned_bytes  those of the plan in force, with weights that stay and were brought for the first time; None if the
                   plan changed within the step
    exchanged      seconds of exchange with other devices
    """

    seconds: float
    waited: float
    read_bytes: int
    fetched_bytes: int = 0
    planned_bytes: int | None = None
    exchanged: float = 0.0


@dataclass
class JobReport:
    """The report of one run of a model, under one plan or, if the budget changed, several."""

    label: str
    plan: Plan
    limit: int
    emit: Emit = ignore
    steps: list[Step] = field(default_factory=list)
    peak: int = 0
    restarts: int = 0
    note: str = ""  # further facts about this run
    clock: Callable[[], float] | None = None  # seconds of exchange with other devices so far, if there are any
    _ring_reported: float = field(default=float("-inf"), repr=False)
    _exchanged_before: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self.follow(self.plan, self.limit)

    def count_exchange(self, clock: Callable[[], float]) -> None:
        """Before the first step: other devices take part. clock: returns the seconds of exchange with them so far."""
        self.clock, self._exchanged_before = clock, clock()

    def follow(self, plan: Plan, limit: int) -> None:
        """The run continues with this plan and this budget."""
        self.plan, self.limit = plan, limit
        self.emit({"type": "memory.plan", "model": self.label, "plan": plan_record(plan), "limit_bytes": limit})

    def report_ring(self, in_ring: Iterable[int]) -> None:
        """Called between blocks: emits, not more often than every RING_SECONDS, which groups are in the ring."""
        now = time.monotonic()
        if now - self._ring_reported >= RING_SECONDS:
            self._ring_reported = now
            self.emit({"type": "memory.at", "model": self.label, "units": sorted(in_ring)})

    def step(self, step: Step) -> None:
        """A step has ended; what was exchanged in it is filled in here."""
        before = self._exchanged_before
        self._exchanged_before = self.clock() if self.clock is not None else before
        step = replace(step, exchanged=self._exchanged_before - before)
        self.steps.append(step)
        self.emit({
            "type": "memory.step", "model": self.label, "step": len(self.steps), "seconds": step.seconds,
            "predicted_seconds": self.plan.seconds, "waited_seconds": step.waited, "read_bytes": step.read_bytes,
            "resident_bytes": self.plan.resident_bytes, "homes": letters(self.plan.locations),
        })  # fmt: skip

    @property
    def actual(self) -> float | None:
        """Seconds per step without the first one, which also reads the weights that stay on the device."""
        steady = self.steps[1:] or self.steps
        return sum(step.seconds for step in steady) / len(steady) if steady else None

    @property
    def stall(self) -> float:
        steady = self.steps[1:] or self.steps
        return sum(step.waited for step in steady) / len(steady) if steady else 0.0

    @property
    def exchange(self) -> float:
        """Seconds per step in which this device sent to others, received, or waited for them."""
        steady = self.steps[1:] or self.steps
        return sum(step.exchanged for step in steady) / len(steady) if steady else 0.0

    def line(self) -> str:
        plan, locations = self.plan, self.plan.locations
        parts = [
            f"resident {locations.count(Location.DEVICE)}/{len(locations)} ({format_size(plan.resident_bytes)})",
        ]
        if plan.slots:
            parts.append(f"stream {format_size(plan.streamed_bytes)}/step")
            parts.append(f"ring {plan.slots}x{format_size(plan.slot_bytes)}")
        if plan.machine.link is not None:
            in_ram = sum(group.nbytes for group in plan.at(*IN_RAM))
            pinned = sum(group.nbytes for group in plan.at(Location.PINNED))
            parts.append(f"RAM {format_size(in_ram)} (pinned {format_size(pinned)})")
        if plan.slots:
            parts.append(f"disk {format_size(plan.disk_bytes)}/step")
        parts.append(f"predicted {format_seconds(plan.seconds)} ({plan.bound})")
        if self.actual is not None:
            parts.append(f"actual {format_seconds(self.actual)}")
            if plan.slots:
                parts.append(f"stall {format_seconds(self.stall)}")
            if self.exchange:
                parts.append(f"exchange {format_seconds(self.exchange)}")
        parts.append(f"peak {format_size(self.peak)} of {format_size(self.limit)}")
        if self.note:
            parts.append(self.note)
        return f"{self.label}: " + " · ".join(parts)

    def cause(self) -> str | None:
        """Why steps took a quarter longer than predicted; None if they did not."""
        actual, plan = self.actual, self.plan
        if actual is None or len(self.steps) < 2 or actual <= max(LATE * plan.seconds, plan.seconds + LATE_SECONDS):
            return None
        late = f"{self.label}: {format_seconds(actual)} a step where {format_seconds(plan.seconds)} were predicted. "
        if self.exchange > (actual - plan.seconds) / 2:
            return late + (
                f"Of this, {format_seconds(self.exchange)} are exchange with the other devices and waiting for them, "
                "which the prediction does not contain."
            )
        # With a link, it is the GPU's kernels that wait for weights, and the host cannot see for how long.
        unseen = plan.machine.link is not None and plan.bound != COMPUTE_BOUND
        if unseen or self.stall > (actual - plan.seconds) / 2:
            what = "disk" if Location.DISK in plan.locations or plan.machine.link is None else "link"
            rate = plan.streamed_bytes / actual
            return late + f"Weights came late: the {what} gave {format_size(rate)}/s. Other programs may be using it."
        return late + "Weights came in time; the computation was slower. Other programs may be using the processor."

    def close(self) -> None:
        """Log and emit the result of the run."""
        log.info("%s", self.line())
        cause = self.cause()
        if cause:
            log.info("%s", cause)
        self.emit({
            "type": "memory.job", "model": self.label, "plan": plan_record(self.plan), "actual_seconds": self.actual,
            "stall_seconds": self.stall, "peak_bytes": self.peak, "limit_bytes": self.limit,
            "restarts": self.restarts, "line": self.line(), "warning": cause,
        })  # fmt: skip
