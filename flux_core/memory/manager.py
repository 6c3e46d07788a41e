"""Divides one budget of device memory among all models of a runtime.

The running model has a ring, and resident weights in what the budget leaves. The others are parked: they have no ring,
and keep their resident weights until something needs that memory. `eviction.py` decides which weights are freed; this
file carries it out.
"""

from __future__ import annotations

import atexit
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ..errors import BudgetTooSmall
from . import meter, rates
from .budget import Allowed, format_least, format_size
from .cpu import CpuDevice
from .cuda import CudaDevice
from .eviction import Eviction, Holder, all_below, evictions, evictions_for, room_for, shrunk, weight_bytes
from .external import ExternalAllocator
from .managed_model import ManagedModel
from .phases import WORKSPACE, Room
from .plan import Plan, plan, smallest_budget
from .report import Emit, JobReport, ignore
from .source import BLOCK
from .usage import CpuMemory, CudaMemory, Memory
from .workload import Budget, GiB, Machine, MiB, Workload

log = logging.getLogger(__name__)

SMALL_BYTES = 128 * MiB  # models with fewer bytes are managed only under an explicit budget; FLUX.1 has more
LASTING = 2  # models of this priority or a higher one use their weights at every step
DRIFT = 256 * MiB  # a run is planned again if its budget changes, or its plan is wrong, by more than this


class Manager:
    """The budget of one device."""

    def __init__(
        self, device: torch.device, allowed: Allowed, external: ExternalAllocator | None = None, emit: Emit = ignore
    ) -> None:
        """external: another allocator of the device's memory. emit: receives the events of runs."""
        self.device, self.allowed, self.external, self.emit = device, allowed, external, emit
        self.allocator: CpuDevice | CudaDevice
        self.memory: Memory
        if device.type == "cuda":
            self.allocator = CudaDevice(device)
            self.memory = CudaMemory(self.allocator, external)
        else:
            self.allocator = CpuDevice(2**62)
            self.memory = CpuMemory(self.allocator)
        # Called when other programs have taken memory that the running plan counted on, before weights are released for
        # them, and (with True) when a run cannot even begin; it may raise Interrupted.
        self.give_way: Callable[[bool], None] | None = None
        self.models: weakref.WeakSet[ManagedModel] = weakref.WeakSet()
        self._disk_rates: dict[object, float] = {}  # by file
        atexit.register(_close_all, weakref.ref(self))

    @property
    def limit(self) -> int:
        """The current budget in bytes."""
        return self.memory.allowed_bytes(self.allowed)

    def admit(self, model: ManagedModel) -> ManagedModel:
        self.models.add(model)
        model.allocation = self.external.admit(model) if self.external else None
        return model

    def report(self, model: ManagedModel, plan: Plan) -> JobReport:
        """A report for a run that begins under this plan."""
        return JobReport(model.label, plan, self.limit, self.emit)

    def machine(self, model: ManagedModel, tokens: int, backward: bool = False) -> Machine:
        """This device's rates for a model; those not measured before are measured now.

        backward: also those of a backward pass.
        """
        stored, dtype = model.source.stored, model.dtype
        hidden = min(rates.HIDDEN, max(each.shape[1] for each in stored if len(each.shape) == 2))
        tokens = rates.measured_tokens(self.device, tokens)
        formats = [each.format for each in stored]
        common = max(formats, key=formats.count)
        sample = max((each for each in stored if each.format == common), key=lambda each: each.nbytes)
        cuda = self.device.type == "cuda"
        made = Machine(
            gemm=rates.gemm_rate(self.device, dtype, tokens, hidden),
            attention=rates.attention_rate(self.device, dtype, max(256, tokens)),
            memory=rates.decode_rate(self.device, dtype, sample),
            disk=self._disk_rate(model),
            link=rates.link_rate(self.device) if cuda else None,
            host_copy=rates.host_copy_rate() if cuda else 6e9,
            alignment=self._alignment,
            integers=(
                rates.integer_rate(model.integers, self.device, dtype, tokens, hidden) if model.integers else None
            ),
        )
        return rates.with_training_rates(made, self.device, dtype, tokens, hidden) if backward else made

    @property
    def _alignment(self) -> int:
        return 256 if self.device.type == "cuda" else BLOCK

    def _disk_rate(self, model: ManagedModel) -> float:
        file = model.source.stored[0].file.identity
        if file not in self._disk_rates:
            self._disk_rates[file] = rates.disk_rate(model.source.stored)
        return self._disk_rates[file]

    @contextmanager
    def opened(
        self, model: ManagedModel, workload: Callable[[Mapping[str, int]], Workload], machine: Machine, activations: int
    ) -> Iterator[Plan]:
        """Plan and open a model for one run.

        workload: makes the model's workload, given what else is on the device (purpose -> bytes). Raises BudgetTooSmall
        with the smallest sufficient budget.
        """
        for each in self.models:
            each.park()
        lasting = model.priority >= LASTING
        with self.memory.running(_working(activations), lasting):
            self.memory.reset_peak()
            try:
                try:
                    made = self.replan(model, workload, machine, activations, lasting)
                except BudgetTooSmall:
                    if self.give_way is not None:
                        self.give_way(True)
                    raise
                yield made
            finally:
                model.park()

    def foreseen(
        self,
        model: ManagedModel,
        workload: Callable[[Mapping[str, int]], Workload],
        machine: Machine,
        activations: int,
    ) -> Plan:
        """The plan that the model would run by if no other held anything. Changes nothing. Raises BudgetTooSmall."""
        return plan(workload(self._fixed(activations)), Budget(self.limit, *self._host_room(model)), machine)

    def room(self, machine: Machine | None = None) -> Room:
        """The budget for a job of several phases, if no model kept anything. machine: this device's rates; those of
        some device if they have not been measured, which is enough for the least memory.
        """
        if machine is None:
            machine = Machine(
                1e12, 5e11, 1e11, 1e9, link=1e10 if self.device.type == "cuda" else None, alignment=self._alignment
            )
        host = self._host_room_for(0)
        program = self._fixed(0)["program and small weights"] + self.memory.growth_bytes
        return Room(Budget(self.limit, *host), machine, {"program": program})

    def replan(
        self,
        model: ManagedModel,
        workload: Callable[[Mapping[str, int]], Workload],
        machine: Machine,
        activations: int,
        whole: bool = False,
    ) -> Plan:
        """Plan the running model for the current budget and apply the plan. Evicts weights of other models.

        whole: request memory for all weights from an external allocator, not only for the smallest plan. Raises
        BudgetTooSmall.
        """
        granted = self._granted(model, workload({"activations": _working(activations)}), machine, whole)
        limit = self.limit
        wanted = workload(self._fixed(activations))
        others = [other for other in self.models if other is not model]
        self._carry_out(evictions_for(wanted, machine, model.priority, _holders(others), limit), others)
        held = self.held_by_others(model)
        room = room_for(wanted, machine, limit - held, granted)
        made = plan(wanted, Budget(room, *self._host_room(model)), machine)
        model.open(made)
        log.debug("%s: %s of %s", model.label, format_size(made.peak_bytes + held), format_size(limit))
        return made

    def evict(self, model: ManagedModel, nbytes: int) -> bool:
        """Free about `nbytes` while a model runs, because it is out of memory or its budget became smaller.

        Parked models of lower priority lose all their weights first, then the model's own resident weights are reduced,
        then those of other models. Returns whether anything was freed.
        """
        others = [other for other in self.models if other is not model]
        lower = all_below(_holders(others), model.priority)
        if lower:
            return self._carry_out(lower, others) > 0
        smaller = shrunk(model.plan, nbytes) if model.plan is not None and model.stream is not None else None
        if smaller is not None:
            model.open(smaller)
            return True
        return self._carry_out(evictions(_holders(others), nbytes), others) > 0

    def refused(self, what: str, file: str, activations: int, weights: Sequence[int]) -> BudgetTooSmall | None:
        """The error that a run would end with, before anything of its model is loaded; None if it may fit.

        what: is made. activations: bytes that a step makes, as a dry run found them. weights: bytes of each that is
        streamed; one at least must be on the device.
        """
        measured = any(model.priority >= LASTING for model in self.models)  # then steps may take less than foreseen
        taken = activations if measured else self.memory.taken_bytes(activations)
        needed, there = max(weights, default=0) + _working(taken), self.available()
        if needed <= there:
            return None
        whole = self.limit - there + needed
        kind, option = ("RAM", "--ram") if self.device.type != "cuda" else ("memory of the card", "--vram")
        return BudgetTooSmall(
            f"Making {what} with {file} needs at least {format_least(whole)}, and there are {format_size(self.limit)} "
            f"of {kind} for it. Choose a smaller size or batch, or allow {format_least(whole)} or more ({option}, or "
            f"the Memory tab). Activations of a step take {format_size(taken)} of it."
        )

    def reclaim(self, label: str, nbytes: int) -> None:
        """Free weights so that `nbytes` can be allocated for something other than a model. Raises BudgetTooSmall."""
        if nbytes:
            self.request_external(nbytes)
        models = list(self.models)
        for model in models:
            model.park()
        short = nbytes + sum(model.held_bytes for model in models) - self.available()
        short -= self._carry_out(evictions(_holders(models), short), models)
        if short > 0:
            raise BudgetTooSmall(
                f"{label} needs at least {format_least(self.limit + short)}, and the budget is "
                f"{format_size(self.limit)}. Allow {format_least(self.limit + short)} or more, or reduce the need: a "
                "smaller image, fewer or smaller LoRAs."
            )

    @contextmanager
    def reserved(self, label: str, nbytes: int) -> Iterator[None]:
        """`nbytes` are free for something other than a model while the context lasts. Raises BudgetTooSmall."""
        self.reclaim(label, nbytes)
        with self.memory.running(nbytes, False):
            self.memory.reset_peak()
            yield
            log.info("%s: peak %s of %s", label, format_size(self.memory.peak_bytes()), format_size(self.limit))

    def request_external(self, nbytes: int) -> None:
        """Request memory for something other than a model from an external allocator, if there is one."""
        if self.external is not None:
            self.external.free(nbytes)

    def _granted(self, model: ManagedModel, wanted: Workload, machine: Machine, whole: bool) -> int | None:
        """Bytes of weights that an external allocator grants to a model; None if there is no such allocator."""
        if self.external is None:
            return None
        least = smallest_budget(wanted, machine) - wanted.fixed_bytes
        weights = weight_bytes(wanted, machine) if whole else least
        return self.external.make_room(model.allocation, weights, wanted.fixed_bytes)

    def available(self) -> int:
        """Bytes that would be free if no weights were on the device."""
        return self.limit - sum(self._fixed(0).values())

    def held_by_others(self, model: ManagedModel) -> int:
        """Bytes of weights of the other models, which this model's plan does not contain."""
        return sum(other.held_bytes for other in self.models if other is not model)

    def budget_drift(self, model: ManagedModel, counted_on: int) -> int:
        """How much the budget has changed during a run: bytes that the model must free, or negative if it gains memory.

        counted_on: the budget that the plan was made for. 0 for changes too small to plan again, and with an external
        allocator, which requests memory by itself.
        """
        if self.external is not None or model.plan is None:
            return 0
        limit = self.limit
        if limit > counted_on + 2 * DRIFT and model.plan.slots:
            return counted_on - limit
        if limit >= counted_on - DRIFT:
            return 0
        return max(0, model.plan.peak_bytes + self.held_by_others(model) - limit)

    def overrun(self, model: ManagedModel) -> int | None:
        """Bytes that the run has used beyond its plan so far, negative for less.

        None if another runtime of the process ran at the same time: the two cannot be measured separately.
        """
        if model.plan is None or self.memory.disturbed:
            return None
        return self.memory.peak_bytes() - self.held_by_others(model) - model.plan.peak_bytes

    def _carry_out(self, decided: list[Eviction], models: list[ManagedModel]) -> int:
        """Carry out evictions. Returns the bytes freed."""
        return sum(models[each.holder].release(each.nbytes) for each in decided)

    def _fixed(self, activations: int) -> dict[str, int]:
        """What is on the device besides managed weights: purpose -> bytes."""
        filled = sum(model.filled_bytes for model in self.models)
        return {
            "program and small weights": self.memory.other_bytes(filled),
            "activations": activations,
            "workspace": _working(activations) - activations,
        }

    def _host_room(self, model: ManagedModel) -> tuple[int, int]:
        """Bytes of RAM for the model's streamed weights, and how many of them may be pinned: never the last quarter.

        What the model has in RAM already counts as free for it: otherwise every second run would lose it again.
        """
        return self._host_room_for(model.ram_bytes)

    def _host_room_for(self, there: int) -> tuple[int, int]:
        """`_host_room` for a model that has `there` bytes in RAM."""
        if self.device.type != "cuda":
            return 0, 0
        ram = self.allowed.ram if self.allowed.ram is not None else meter.automatic_ram()
        room = max(0, ram - meter.resident_bytes() + self.memory.ram_of_others + there)
        free = meter.available_ram() + there - max(4 * GiB, meter.total_ram() // 4)
        return room, min(room, max(0, free))

    def close(self) -> None:
        for model in list(self.models):
            model.close()


def _working(activations: int) -> int:
    """Bytes of activations and of the kernels' own workspace."""
    return activations + max(WORKSPACE, activations // 20)


def _holders(models: Sequence[ManagedModel]) -> list[Holder]:
    return [Holder(model.priority, model.held_bytes) for model in models]


def _close_all(manager: weakref.ref[Manager]) -> None:
    """End the feeder threads before the interpreter exits: a thread must not use a device after that."""
    living = manager()
    if living is not None:
        living.close()
