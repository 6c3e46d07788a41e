"""A model while it runs: each step is timed, its plan follows the budget, and weights are freed when memory runs out.

The manager decides (`Manager.opened`, `evict`, `replan`); this file calls it between and within steps. The work of a
step is given as a function.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from .managed_model import ManagedModel
from .manager import DRIFT, Manager
from .plan import Plan
from .report import Step
from .workload import Machine, MiB, Workload

RETRIES = 3  # of work that runs out of memory
FIRST_ROOM = 256 * MiB  # bytes freed before the first of them; twice as many before each following one

Result = TypeVar("Result")


@dataclass(frozen=True)
class Demand:
    """The memory that a run needs.

    workload      makes the workload, given what else is on the device (purpose -> bytes)
    activations   bytes of activations of runs, by key: first an estimate, later as measured
    key           of this run
    """

    workload: Callable[[Mapping[str, int]], Workload]
    activations: MutableMapping[Hashable, int]
    key: Hashable

    @property
    def bytes(self) -> int:
        """Bytes of activations."""
        return self.activations[self.key]


@dataclass(frozen=True)
class _Step:
    """A step whose kernels may still be queued. `began` and `ended` wait for them and return seconds."""

    began: Callable[[], float]
    ended: Callable[[], float]
    waited: float
    read_bytes: int
    fetched_bytes: int
    planned_bytes: int | None


class RunningModel:
    """A model that the manager has opened, until its run ends.

    With a GPU the host is at most one step ahead: kernels are always queued, and a cancel is noticed soon.
    """

    def __init__(self, manager: Manager, model: ManagedModel, demand: Demand, plan: Plan) -> None:
        self.manager, self.model, self.demand = manager, model, demand
        self.report = manager.report(model, plan)
        self._allowed = manager.allowed
        self._unmeasured = True
        self._queued: deque[_Step] = deque()

    def step(self, work: Callable[[], Result], together: bool = False) -> Result:
        """One pass through the model, timed and reported, repeated if it runs out of memory.

        together: as for `attempt`.
        """
        stream, source, device = self.model.stream, self.model.source, self.manager.allocator
        assert stream is not None
        began, waited, read, fetched = device.completion(), stream.waited, source.bytes_read, stream.fetched_bytes
        plan = self.report.plan
        planned = plan.streamed_bytes + stream.held.missing_bytes
        result = self.attempt(work, together)
        self._queued.append(
            _Step(
                began,
                device.completion(),
                stream.waited - waited,
                source.bytes_read - read,
                stream.fetched_bytes - fetched,
                planned if self.report.plan is plan else None,
            )
        )
        self._report_steps(left=0 if self.report.plan.machine.link is None else 1)
        self.report.restarts = stream.restarts
        return result

    def attempt(self, work: Callable[[], Result], together: bool = False) -> Result:
        """Call `work`; if it runs out of memory, free weights and call it again. It must not change its inputs.

        together: other devices repeat it at the same times, so it is repeated even if nothing can be freed here.
        """
        needed = FIRST_ROOM
        for _ in range(RETRIES):
            try:
                return work()
            except torch.OutOfMemoryError:
                pass  # the failed call's tensors are freed only outside this clause
            if self.manager.evict(self.model, needed):
                self._follow_plan(self.report.limit)
            elif not together:
                break
            needed *= 2
        return work()

    def follow_budget(self) -> None:
        """Between two steps: plan again if the budget was changed, or other programs have taken or freed memory."""
        if self.manager.allowed is not self._allowed or not self.model.ready:
            self.replan()
            return
        short = self.manager.budget_drift(self.model, self.report.limit)
        if short > 0 and self.manager.give_way is not None:
            self.manager.give_way(False)
        if short < 0:
            self.replan()
        elif short and self.manager.evict(self.model, short):
            self.manager.memory.trim()
            self._follow_plan(self.manager.limit)

    def measure(self) -> None:
        """After the first step: later steps will need the memory that it needed.

        If that is more than was estimated, weights are freed at once; if it is much less, more weights stay.
        """
        if not self._unmeasured:
            return
        self._unmeasured = False
        over, plan = self.manager.overrun(self.model), self.report.plan
        if over is None:  # not measurable: keep the estimate
            return
        measured = max(0, self.demand.bytes + over + plan.workload.fixed["workspace"])
        self.demand.activations[self.demand.key] = measured
        if over > 0 or (over < -DRIFT and plan.slots):
            self.replan()

    def replan(self) -> None:
        """Plan again for the current budget and activations."""
        self._allowed = self.manager.allowed
        self.model.park()
        self._note_peak()
        machine = self.report.plan.machine
        plan = self.manager.replan(self.model, self.demand.workload, machine, self.demand.bytes)
        self.report.follow(plan, self.manager.limit)

    def close(self) -> None:
        self._report_steps(left=0)
        self._note_peak()
        self.report.close()

    def _follow_plan(self, limit: int) -> None:
        assert self.model.plan is not None
        self.report.follow(self.model.plan, limit)

    def _note_peak(self) -> None:
        self.report.peak = max(self.report.peak, self.manager.memory.peak_bytes())

    def _report_steps(self, left: int) -> None:
        """Wait for all queued steps except the last `left`, and report them."""
        while len(self._queued) > left:
            step = self._queued.popleft()
            self.report.step(
                Step(step.ended() - step.began(), step.waited, step.read_bytes, step.fetched_bytes, step.planned_bytes)
            )


@contextmanager
def running(manager: Manager, model: ManagedModel, demand: Demand, machine: Machine) -> Iterator[RunningModel]:
    """The model, planned and open for one run. Raises BudgetTooSmall with the smallest sufficient budget."""
    with manager.opened(model, demand.workload, machine, demand.bytes) as plan:
        run = RunningModel(manager, model, demand, plan)
        try:
            yield run
        finally:
            run.close()
