"""A model under memory management: its weights and the stream that brings them to the device.

A model is open while it runs: it has a ring and a feeder. Otherwise it is parked: its resident weights stay on the
device for the next run until something else needs the memory. All decisions are made by `manager.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import nn

from ..checkpoint.integers import as_integers
from ..checkpoint.load import Resident, bind
from ..checkpoint.stored import Stored
from ..quant.encoding import multiplied_as_integers
from ..quant.formats import PLAIN
from ..quant.int8 import Integers
from ..quant.workspace import matrix_scratch
from .plan import Plan, spread
from .quantising import QuantisingSource
from .source import FileSource
from .stream import Stream
from .streamed_weight import StreamedBytes, TorchDevice, hold_matrices
from .workload import Location, ObservedUse, Workload, decode_traffic, grouped, observed_workload

Tensors = Mapping[str, Stored]


class ManagedModel:
    """The weights of one module. They are removed from the module, and streamed when it runs."""

    def __init__(
        self,
        label: str,
        priority: int,
        device: TorchDevice,
        module: nn.Module,
        tensors: Tensors,
        names: Sequence[str],
        dtype: torch.dtype,
        round_to: torch.dtype | None = None,
        group: Callable[[str], str] | None = None,
        integers: Integers | None = None,
    ) -> None:
        """names: the matrices to stream, in order of first use. dtype: the number type of products.

        priority: of two models that need the same memory, the one of higher priority gets it. group: maps a weight's
        name to its group's; None puts neighbours together. integers: multiplies what is stored as integers or, if
        it quantises, becomes integers when it is read. Raises FileFormatError for a matrix that is missing.
        """
        self.label, self.priority, self.device, self.dtype = label, priority, device, dtype
        self.allocation: object = None  # of the external allocator, if there is one
        quantises = integers is not None and integers.quantises
        there = {name: tensors[name] for name in names if name in tensors}
        self.stored = {name: as_integers(stored) for name, stored in there.items()} if quantises else there
        self.integers = integers
        numbers = {name: place for place, name in enumerate(names)}
        streamed = hold_matrices(module, self.stored, numbers, round_to, integers)
        wanted = [there[name] for name in names]
        self.source = QuantisingSource(wanted, round_to) if quantises else FileSource(wanted)
        self.weights = grouped({name: stored.nbytes for name, stored in self.stored.items()}, group)
        self._opened = _Opened(streamed)
        weakref.finalize(self, self._opened.close)

    @property
    def file_name(self) -> str:
        return self.source.stored[0].file.path.name

    def decoded(self, name: str) -> bool:
        """Whether a weight must be decoded before its product."""
        stored = self.stored[name]
        return not self.in_integers(name) and (PLAIN.get(stored.format) != self.dtype or not stored.encoding.as_is)

    def in_integers(self, name: str) -> bool:
        """Whether a matrix is multiplied in integers."""
        stored = self.stored[name]
        return self.integers is not None and multiplied_as_integers(stored.encoding, stored.shape)

    def workload(self, observed: Iterable[ObservedUse], fixed: Mapping[str, int]) -> Workload:
        """The workload of one observed step of this model. `fixed`: bytes for other purposes."""
        if isinstance(self.source, QuantisingSource) and self.device.place.type == "cpu":
            fixed = {**fixed, "quantising": self.source.working_bytes}
        return observed_workload(f"{self.label} of {self.file_name}", self.weights, observed, self._traffic, fixed)

    def _traffic(self, name: str) -> int:
        stored = self.stored[name]
        return decode_traffic(stored.nbytes, prod(stored.shape), self.dtype.itemsize) if self.decoded(name) else 0

    def reserve_scratch(self, changed: Collection[str] = ()) -> None:
        """Allocate the scratch memory for decoding now, so that it is counted.

        changed: names of matrices that are decoded also where they would be multiplied as integers.
        """
        shape = self._scratch_shape(changed)
        if prod(shape):
            matrix_scratch(shape, self.dtype, self.device.place).view(torch.uint8).zero_()

    def scratch_bytes(self, changed: Collection[str] = ()) -> int:
        """Bytes that `reserve_scratch` allocates."""
        return prod(self._scratch_shape(changed)) * self.dtype.itemsize

    def _scratch_shape(self, changed: Collection[str]) -> tuple[int, ...]:
        """The shape of the largest matrix that is decoded, (0,) if none is."""
        shapes = [stored.shape for name, stored in self.stored.items() if self.decoded(name) or name in changed]
        return max(shapes, key=prod, default=(0,))

    @property
    def stream(self) -> Stream | None:
        return self._opened.stream

    @property
    def plan(self) -> Plan | None:
        return self._opened.plan

    @property
    def ready(self) -> bool:
        """Whether the model can run: each matrix is on the device, or there is a ring to stream it through."""
        plan = self._opened.plan
        return plan is not None and (plan.slots > 0 or set(plan.locations) == {Location.DEVICE})

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(stored.nbytes for stored in self.stored.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of device memory allocated for weights now."""
        return self._opened.held_bytes

    @property
    def filled_bytes(self) -> int:
        """Bytes of `held_bytes` that have been written to."""
        return self._opened.stream.held.filled_bytes if self._opened.stream else 0

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM used for streaming to a GPU now."""
        return self._opened.stream.held.ram_bytes if self._opened.stream else 0

    def open(self, plan: Plan) -> Stream:
        """Follow a plan, keeping what is on the device. Raises BudgetTooSmall if there is no room for a ring."""
        opened = self._opened
        try:
            if opened.stream is None:
                opened.stream = Stream(plan, self.device, self.source)
            else:
                opened.stream.change(plan)
        except BaseException:
            self.close()
            raise
        opened.plan = plan
        opened.connect()
        return opened.stream

    def park(self) -> None:
        """Stop the feeder and free the ring."""
        plan = self._opened.plan
        if plan is None or self._opened.stream is None:
            return
        if Location.DEVICE not in plan.locations:
            self.close()
        elif plan.slots:
            self._change(replace(plan, slots=0, slot_bytes=0))

    def release(self, nbytes: int) -> int:
        """Park, and free at least `nbytes` of the resident weights, evenly spread over the step. Returns the bytes."""
        self.park()
        plan = self._opened.plan
        if plan is None or nbytes <= 0:
            return 0
        before = self.held_bytes
        groups = plan.at(Location.DEVICE)
        if nbytes >= sum(group.room for group in groups):
            self.close()
            return before
        sizes, going, amount = [group.room for group in groups], set[int](), nbytes
        while sum(plan.groups[number].room for number in going) < nbytes:
            chosen = spread(sizes, sizes, amount)
            going = {group.number for group, goes in zip(groups, chosen, strict=True) if goes}
            amount += min(sizes)
        kept = (Location.DISK if number in going else where for number, where in enumerate(plan.locations))
        self._change(replace(plan, locations=tuple(kept)))
        return before - self.held_bytes

    def close(self) -> None:
        self._opened.close()

    def _change(self, plan: Plan) -> None:
        assert self._opened.stream is not None
        self._opened.stream.change(plan)
        self._opened.plan = plan


class _Opened:
    """What must be closed when a model is garbage-collected."""

    def __init__(self, streamed: Sequence[StreamedBytes]) -> None:
        self.streamed = streamed
        self.stream: Stream | None = None
        self.plan: Plan | None = None

    @property
    def held_bytes(self) -> int:
        return self.plan.weight_bytes if self.plan else 0

    def connect(self) -> None:
        for weight in self.streamed:
            weight.stream = self.stream

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.stream = self.plan = None
        self.connect()


def bind_rest(
    module: nn.Module, tensors: Tensors, device: torch.device, dtype: torch.dtype | None, round_to: torch.dtype | None
) -> None:
    """Load the tensors that are not streamed: vectors, embeddings, small layers."""
    rest = {name: tensors[name] for name, _ in module.named_parameters() if name in tensors}
    bind(module, rest, Resident(device, dtype, round_to=round_to))
