"""Who gets how much of a device: one budget for all models of a process.

The one that runs has a ring and as much room for residents as the budget leaves; the others are parked. Room is found
in this order: what is free, then what parked models of lower rank hold, then, if not even a ring fits, what any parked
model holds. So text encoders stream through the room the transformer's ring left, and evict none of it.

Knows no FLUX, no files and no sampling.
"""

from __future__ import annotations

import atexit
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from ..errors import BudgetTooSmall
from . import meter, rates
from .budget import Allowed, format_size
from .cpu import CpuDevice
from .cuda import CudaDevice
from .external import ExternalAllocator
from .managed_model import ManagedModel
from .plan import Plan, plan, smallest_budget
from .report import Emit, JobReport, nobody
from .source import BLOCK
from .usage import CpuMemory, CudaMemory, Memory
from .workload import RESIDENT, Budget, GiB, Machine, MiB, Workload

log = logging.getLogger(__name__)

SMALL_BYTES = 128 * MiB  # of weights that are managed only under a budget that was asked for; FLUX.1's are more
LASTING = 2  # the rank from which weights are used at every step, so that others should give way to them
DRIFT = 256 * MiB  # by which a budget may change, or a plan be wrong, before a run that is under way is planned again


class Manager:
    """The budget of one device."""

    def __init__(
        self, device: torch.device, allowed: Allowed, external: ExternalAllocator | None = None, emit: Emit = nobody
    ) -> None:
        """external: who else hands out the device's memory. emit: is told what runs do with theirs."""
        self.device, self.allowed, self.external, self.emit = device, allowed, external, emit
        self.slabs: CpuDevice | CudaDevice
        self.memory: Memory
        if device.type == "cuda":
            self.slabs = CudaDevice(device)
            self.memory = CudaMemory(self.slabs, external)
        else:
            self.slabs, self.memory = CpuDevice(2**62), CpuMemory()
        self.models: weakref.WeakSet[ManagedModel] = weakref.WeakSet()
        self._disk_rates: dict[object, float] = {}  # by file
        atexit.register(_close_all, weakref.ref(self))

    @property
    def limit(self) -> int:
        """The budget in bytes, now."""
        return self.memory.allowed_bytes(self.allowed)

    def admit(self, model: ManagedModel) -> ManagedModel:
        self.models.add(model)
        model.allocation = self.external.admit(model) if self.external else None
        return model

    def report(self, model: ManagedModel, plan: Plan) -> JobReport:
        """The report of a run that begins under this plan."""
        return JobReport(model.label, plan, self.limit, self.emit)

    def machine(self, model: ManagedModel, tokens: int) -> Machine:
        """This device's rates for a model, measured where they are not known yet."""
        stored, dtype = model.source.pieces, model.dtype
        hidden = min(rates.HIDDEN, max(piece.shape[1] for piece in stored if len(piece.shape) == 2))
        tokens = rates.measured_tokens(self.device, tokens)
        formats = [piece.format for piece in stored]
        common = max(formats, key=formats.count)
        sample = max((piece for piece in stored if piece.format == common), key=lambda piece: piece.nbytes)
        cuda = self.device.type == "cuda"
        return Machine(
            gemm=rates.gemm_rate(self.device, dtype, tokens, hidden),
            attention=rates.attention_rate(self.device, dtype, max(256, tokens)),
            memory=rates.decode_rate(self.device, dtype, sample),
            disk=self._disk_rate(model),
            link=rates.link_rate(self.device) if cuda else None,
            host_copy=rates.host_copy_rate() if cuda else 6e9,
            alignment=256 if cuda else BLOCK,
        )

    def _disk_rate(self, model: ManagedModel) -> float:
        file = model.source.pieces[0].file.identity
        if file not in self._disk_rates:
            self._disk_rates[file] = rates.disk_rate(model.source.pieces)
        return self._disk_rates[file]

    @contextmanager
    def opened(
        self, model: ManagedModel, workload: Callable[[Mapping[str, int]], Workload], machine: Machine, activations: int
    ) -> Iterator[Plan]:
        """Let a model run. `workload` makes its workload of what else is on the device, by purpose, in bytes.

        Raises BudgetTooSmall with the smallest budget that would do.
        """
        for other in self.models:
            if other is not model:
                other.park()
        model.park()
        self.memory.reset_peak()
        lasting = model.priority >= LASTING
        try:
            plan = self.settle(model, workload, machine, activations, lasting)
            self.memory.repeating(lasting)
            yield plan
        finally:
            self.memory.repeating(False)
            model.park()

    def settle(
        self,
        model: ManagedModel,
        workload: Callable[[Mapping[str, int]], Workload],
        machine: Machine,
        activations: int,
        whole: bool = False,
    ) -> Plan:
        """Make and take over the plan of the model that runs, within what the budget is now.

        whole: those whom we share the device with are asked to give way to all of it, not only to what it must have.
        """
        granted = self._granted(model, workload({"activations": self._working(activations)}), machine, whole)
        limit = self.limit
        fixed = self._fixed(activations)
        others = [other for other in self.models if other is not model and other.held_bytes]
        held = sum(other.held_bytes for other in others)
        wanted = workload(fixed)
        lower = sorted((other for other in others if other.priority < model.priority), key=lambda other: other.priority)
        if not _all_stays(wanted, machine, limit - held):
            held -= sum(_closed(other) for other in lower)
        short = smallest_budget(wanted, machine) - (limit - held)
        for other in sorted(others, key=lambda other: other.priority):
            if short > 0:
                freed = other.release(short)
                held, short = held - freed, short - freed
        room = limit - held
        if granted is not None:
            room = min(room, max(wanted.fixed_bytes + granted, smallest_budget(wanted, machine)))
        made = plan(wanted, Budget(room, *self._host_room(model)), machine)
        model.open(made)
        log.debug("%s: %s of %s", model.label, format_size(made.peak_bytes + held), format_size(limit))
        return made

    def _granted(self, model: ManagedModel, wanted: Workload, machine: Machine, whole: bool) -> int | None:
        """Bytes of weights that whoever else hands out this memory lets a model have; None if there is nobody."""
        if self.external is None:
            return None
        least = smallest_budget(wanted, machine) - wanted.fixed_bytes
        weights = sum(machine.room(piece.nbytes) for piece in wanted.pieces) if whole else least
        return self.external.make_room(model.allocation, weights, wanted.fixed_bytes)

    def ask(self, nbytes: int) -> None:
        """Before room is taken for what is no model: whoever else holds some is asked to give way."""
        if self.external is not None:
            self.external.free(nbytes)

    def most(self) -> int:
        """Bytes that could be had if all that stays gave way."""
        return self.limit - sum(self._fixed(0).values())

    @contextmanager
    def room(self, label: str, nbytes: int) -> Iterator[None]:
        """Room for something that is no model. Raises BudgetTooSmall."""
        self.make_way(label, nbytes)
        self.memory.reset_peak()
        yield
        log.info("%s: peak %s of %s", label, format_size(self.memory.peak_bytes()), format_size(self.limit))

    def make_way(self, label: str, nbytes: int) -> None:
        """Before so much is taken by what is no model: what stays of models gives way. Raises BudgetTooSmall."""
        if nbytes:
            self.ask(nbytes)
        for model in self.models:
            model.park()
        short = nbytes + sum(model.held_bytes for model in self.models) - self.most()
        for model in sorted(self.models, key=lambda model: model.priority):
            if short > 0:
                short -= model.release(short)
        if short > 0:
            raise BudgetTooSmall(
                f"{label} needs at least {format_size(self.limit + short)}, and the budget is "
                f"{format_size(self.limit)}. Allow more, or ask for less: a smaller picture, fewer or smaller LoRAs."
            )

    def make_room(self, model: ManagedModel, nbytes: int) -> bool:
        """Out of memory in the middle of a step, or asked between two: whether anything could be given back.

        First by those parked whose rank is lower, then by the model that runs, then by the others.
        """
        others = sorted((other for other in self.models if other is not model), key=lambda other: other.priority)
        lower = [other for other in others if other.priority < model.priority and other.held_bytes]
        if lower:
            return sum(map(_closed, lower)) > 0
        before = model.plan
        if before is not None and model.stream is not None and RESIDENT in before.homes:
            room = max(before.peak_bytes - nbytes, smallest_budget(before.workload, before.machine))
            made = plan(before.workload, Budget(room, before.host_bytes, before.host_bytes), before.machine)
            if made.weight_bytes < before.weight_bytes:
                model.open(made)
                return True
        freed = 0
        for other in others:
            freed += other.release(nbytes - freed) if freed < nbytes else 0
        return freed > 0

    def shift(self, model: ManagedModel, counted_on: int) -> int:
        """How the budget changed under a model that runs: bytes it should give back, negative if it could have more.

        0 if what there is now is near enough to what was counted on. Who shares the device with us asks by itself.
        """
        assert model.plan is not None
        if self.external is not None:
            return 0
        limit = self.limit
        if limit > counted_on + 2 * DRIFT and model.plan.slots:
            return counted_on - limit
        return max(0, model.plan.peak_bytes + self.beside(model) - limit) if limit < counted_on - DRIFT else 0

    def beside(self, model: ManagedModel) -> int:
        """Bytes that the other models hold: no plan but their own knows of them."""
        return sum(other.held_bytes for other in self.models if other is not model)

    def _fixed(self, activations: int) -> dict[str, int]:
        filled = sum(model.filled_bytes for model in self.models)
        return {
            "program and small weights": self.memory.other_bytes(filled),
            "activations": activations,
            "workspace": self._working(activations) - activations,
        }

    def _working(self, activations: int) -> int:
        return activations + max(128 * MiB, activations // 20)

    def _host_room(self, model: ManagedModel) -> tuple[int, int]:
        """RAM for the model's streamed weights, and how much of it may be pinned: never the last quarter.

        What it has there already is its own: else a model would lose in every second run what it got in the first.
        """
        if self.device.type != "cuda":
            return 0, 0
        ram = self.allowed.ram if self.allowed.ram is not None else meter.automatic_ram()
        room = max(0, ram - meter.resident_bytes() + model.ram_bytes)
        free = meter.available_ram() + model.ram_bytes - max(4 * GiB, meter.total_ram() // 4)
        return room, min(room, max(0, free))

    def close(self) -> None:
        for model in list(self.models):
            model.close()


def _all_stays(workload: Workload, machine: Machine, room: int) -> bool:
    return workload.fixed_bytes + sum(machine.room(piece.nbytes) for piece in workload.pieces) <= room


def _closed(model: ManagedModel) -> int:
    held = model.held_bytes
    model.close()
    return held


def _close_all(manager: weakref.ref[Manager]) -> None:
    """Before the interpreter goes, no thread may be left that talks to a device."""
    living = manager()
    if living is not None:
        living.close()
