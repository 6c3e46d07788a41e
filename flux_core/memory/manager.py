"""Who gets how much of a device: one budget for all models of a runtime.

The model that runs has a ring and as much memory for weights that stay as the budget leaves. The others are parked:
they have no ring, and keep what stays of them until somebody needs its memory. `eviction.py` decides who gives up how
much; here it is carried out.

Knows no FLUX, no files and no sampling.
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
from .budget import Allowed, format_size
from .cpu import CpuDevice
from .cuda import CudaDevice
from .eviction import Eviction, Holder, all_below, evictions, evictions_for, room_for, shrunk, weight_bytes
from .external import ExternalAllocator
from .managed_model import ManagedModel
from .plan import Plan, plan, smallest_budget
from .report import Emit, JobReport, nobody
from .source import BLOCK
from .usage import CpuMemory, CudaMemory, Memory
from .workload import Budget, GiB, Machine, MiB, Workload

log = logging.getLogger(__name__)

SMALL_BYTES = 128 * MiB  # of weights that are managed only under a budget that was asked for; FLUX.1's are more
LASTING = 2  # the priority from which weights are used at every step
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
            self.slabs = CpuDevice(2**62)
            self.memory = CpuMemory(self.slabs)
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
        for each in self.models:
            each.park()
        lasting = model.priority >= LASTING
        with self.memory.running(_working(activations), lasting):
            self.memory.reset_peak()
            try:
                yield self.replan(model, workload, machine, activations, lasting)
            finally:
                model.park()

    def replan(
        self,
        model: ManagedModel,
        workload: Callable[[Mapping[str, int]], Workload],
        machine: Machine,
        activations: int,
        whole: bool = False,
    ) -> Plan:
        """Make the plan of the model that runs, within what the budget is now, and bring it about. Others are evicted.

        whole: clients of an external allocator are asked to give up memory for all weights, not only for what the model
        must have. Raises BudgetTooSmall.
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
        """Free about so many bytes while a model runs: it is out of memory, or the budget has become smaller.

        First parked models of a lower priority go, then what stays of the model itself, then other models. Returns
        whether anything could be freed.
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

    def reclaim(self, label: str, nbytes: int) -> None:
        """Before something that is no model takes so many bytes: free weights for it. Raises BudgetTooSmall."""
        if nbytes:
            self.request_external(nbytes)
        models = list(self.models)
        for model in models:
            model.park()
        short = nbytes + sum(model.held_bytes for model in models) - self.available()
        short -= self._carry_out(evictions(_holders(models), short), models)
        if short > 0:
            raise BudgetTooSmall(
                f"{label} needs at least {format_size(self.limit + short)}, and the budget is "
                f"{format_size(self.limit)}. Allow more, or ask for less: a smaller picture, fewer or smaller LoRAs."
            )

    @contextmanager
    def reserved(self, label: str, nbytes: int) -> Iterator[None]:
        """Room for something that is no model. Raises BudgetTooSmall."""
        self.reclaim(label, nbytes)
        with self.memory.running(nbytes, False):
            self.memory.reset_peak()
            yield
            log.info("%s: peak %s of %s", label, format_size(self.memory.peak_bytes()), format_size(self.limit))

    def request_external(self, nbytes: int) -> None:
        """Ask whoever else hands out this memory to free so many bytes for what is no model."""
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
        """Bytes that could be had if no weights were kept."""
        return self.limit - sum(self._fixed(0).values())

    def held_by_others(self, model: ManagedModel) -> int:
        """Bytes that the other models hold: no plan but their own knows of them."""
        return sum(other.held_bytes for other in self.models if other is not model)

    def budget_drift(self, model: ManagedModel, counted_on: int) -> int:
        """By how much the budget has changed under a model that runs: bytes it has to free, negative if it gains some.

        counted_on: the budget its plan was made for. 0 for changes that are too small to plan again. An external
        allocator asks for memory by itself.
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
        """Bytes by which the run so far took more than its plan says, negative for less.

        None if another runtime of the process ran meanwhile: then it cannot be told.
        """
        if model.plan is None or self.memory.disturbed:
            return None
        return self.memory.peak_bytes() - self.held_by_others(model) - model.plan.peak_bytes

    def _carry_out(self, decided: list[Eviction], models: list[ManagedModel]) -> int:
        """Free what was decided. Returns the bytes freed."""
        return sum(models[each.holder].release(each.nbytes) for each in decided)

    def _fixed(self, activations: int) -> dict[str, int]:
        """What is on the device besides weights under management, by purpose, in bytes."""
        filled = sum(model.filled_bytes for model in self.models)
        return {
            "program and small weights": self.memory.other_bytes(filled),
            "activations": activations,
            "workspace": _working(activations) - activations,
        }

    def _host_room(self, model: ManagedModel) -> tuple[int, int]:
        """RAM for the model's streamed weights, and how much of it may be pinned: never the last quarter.

        What it has there already is its own: else a model would lose in every second run what it got in the first.
        """
        if self.device.type != "cuda":
            return 0, 0
        ram = self.allowed.ram if self.allowed.ram is not None else meter.automatic_ram()
        room = max(0, ram - meter.resident_bytes() + self.memory.ram_of_others + model.ram_bytes)
        free = meter.available_ram() + model.ram_bytes - max(4 * GiB, meter.total_ram() // 4)
        return room, min(room, max(0, free))

    def close(self) -> None:
        for model in list(self.models):
            model.close()


def _working(activations: int) -> int:
    """Bytes of activations, and of what kernels take inside themselves."""
    return activations + max(128 * MiB, activations // 20)


def _holders(models: Sequence[ManagedModel]) -> list[Holder]:
    return [Holder(model.priority, model.held_bytes) for model in models]


def _close_all(manager: weakref.ref[Manager]) -> None:
    """Before the interpreter goes, no thread may be left that talks to a device."""
    living = manager()
    if living is not None:
        living.close()
