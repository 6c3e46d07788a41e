"""A model while it runs: its plan follows the budget, memory that runs out is freed, and every step is timed.

The manager lets a model run (`Manager.opened`) and decides; this file asks it between steps and in the middle of one.
Knows no model's inputs: it is given work to do.
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
from .workload import Machine, MiB, Workload

RETRIES = 3  # of work that ran out of memory
FIRST_ROOM = 256 * MiB  # asked for before the first of them; twice as much before each of the others

Result = TypeVar("Result")


@dataclass(frozen=True)
class Demand:
    """What a run asks of memory.

    workload      makes the workload of what else is on the device, by purpose, in bytes
    activations   bytes that runs take beside weights, by key: as estimated, and once measured as measured
    key           names this run among them
    """

    workload: Callable[[Mapping[str, int]], Workload]
    activations: MutableMapping[Hashable, int]
    key: Hashable

    @property
    def bytes(self) -> int:
        """Of activations."""
        return self.activations[self.key]


@dataclass(frozen=True)
class _Step:
    """A step whose kernels may still be queued: when it began and ended, as functions that wait for it."""

    began: Callable[[], float]
    ended: Callable[[], float]
    waited: float
    read_bytes: int


class RunningModel:
    """One model that the manager has opened, until its run ends.

    Beside a GPU the host is one step ahead and no more: there is always work queued, and a cancel is soon noticed.
    """

    def __init__(self, manager: Manager, model: ManagedModel, demand: Demand, plan: Plan) -> None:
        self.manager, self.model, self.demand = manager, model, demand
        self.report = manager.report(model, plan)
        self._allowed = manager.allowed
        self._unmeasured = True
        self._queued: deque[_Step] = deque()

    def step(self, work: Callable[[], Result]) -> Result:
        """One pass through the model, timed and reported, repeated if it runs out of memory."""
        stream, source, device = self.model.stream, self.model.source, self.manager.slabs
        assert stream is not None
        began, waited, read = device.moment(), stream.waited, source.bytes_read
        result = self.attempt(work)
        self._queued.append(_Step(began, device.moment(), stream.waited - waited, source.bytes_read - read))
        self._report_steps(left=0 if self.report.plan.machine.link is None else 1)
        self.report.restarts = stream.restarts
        return result

    def attempt(self, work: Callable[[], Result]) -> Result:
        """Do it; out of memory, do it again with weights freed for it. Work must leave its inputs as they are."""
        needed = FIRST_ROOM
        for _ in range(RETRIES):
            try:
                return work()
            except torch.OutOfMemoryError:
                pass  # outside this clause the tensors of what failed are gone
            if not self.manager.evict(self.model, needed):
                break
            self._follow_plan(self.report.limit)
            needed *= 2
        return work()

    def follow_budget(self) -> None:
        """Between two steps: the budget may have been changed, or others may have taken memory, or freed some."""
        if self.manager.allowed is not self._allowed or not self.model.ready:
            self.replan()
            return
        short = self.manager.budget_drift(self.model, self.report.limit)
        if short < 0:
            self.replan()
        elif short and self.manager.evict(self.model, short):
            self.manager.memory.trim()
            self._follow_plan(self.manager.limit)

    def measure(self) -> None:
        """After the first step: what it took is what later ones will take.

        If that is more than estimated, room is made at once; if it is much less, weights get what is left over.
        """
        if not self._unmeasured:
            return
        self._unmeasured = False
        over, plan = self.manager.overrun(self.model), self.report.plan
        if over is None:  # the estimate has to do
            return
        measured = max(0, self.demand.bytes + over + plan.workload.fixed["workspace"])
        self.demand.activations[self.demand.key] = measured
        if over > 0 or (over < -DRIFT and plan.slots):
            self.replan()

    def replan(self) -> None:
        """Plan again, for what the budget and the activations are now."""
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
        """Wait for all steps but the last `left`, and report them."""
        while len(self._queued) > left:
            step = self._queued.popleft()
            self.report.step(step.ended() - step.began(), step.waited, step.read_bytes)


@contextmanager
def running(manager: Manager, model: ManagedModel, demand: Demand, machine: Machine) -> Iterator[RunningModel]:
    """The model, planned and open for one run. Raises BudgetTooSmall with the smallest budget that would do."""
    with manager.opened(model, demand.workload, machine, demand.bytes) as plan:
        run = RunningModel(manager, model, demand, plan)
        try:
            yield run
        finally:
            run.close()
