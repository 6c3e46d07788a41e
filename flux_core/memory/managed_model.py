"""A model under management: its matrices in the order it uses them, and the stream they come through.

A model is open while its model runs, with a ring and a feeder. Otherwise it is parked: what stayed on the device stays
there, for the next run, until somebody else needs the room. Decides nothing; `manager.py` does.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import nn

from ..checkpoint.load import Resident, bind
from ..checkpoint.stored import Stored
from ..quant.formats import PLAIN
from ..quant.workspace import matrix_scratch
from .plan import Plan, spread
from .source import FileSource
from .stream import Stream
from .streamed_weight import StreamedBytes, TorchDevice, hold_matrices
from .workload import DISK, RESIDENT, MiB, Walk, Workload

Tensors = Mapping[str, Stored]
SLOT_BYTES = 16 * MiB  # of a ring for matrices that have no blocks to follow, or one matrix if that is larger


class ManagedModel:
    """`names` are those of matrices of `module`, in order of use; they leave it and are streamed from now on."""

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
    ) -> None:
        """rank: of two models that want the same room, the higher one gets it. dtype: what products are computed in.

        Raises FileFormatError for a matrix that is missing.
        """
        self.label, self.priority, self.device, self.dtype = label, priority, device, dtype
        self.allocation: object = None  # from whoever else hands out the device's memory
        self.stored = {name: tensors[name] for name in names if name in tensors}
        streamed = hold_matrices(module, tensors, {name: place for place, name in enumerate(names)}, round_to)
        self.source = FileSource([tensors[name] for name in names])
        self._opened = _Opened(streamed)
        weakref.finalize(self, self._opened.close)

    @property
    def file_name(self) -> str:
        return self.source.pieces[0].file.path.name

    def nbytes(self, name: str) -> int:
        return self.stored[name].nbytes

    def decoded(self, name: str) -> bool:
        """Whether numbers have to be made of what is stored before they are multiplied."""
        stored = self.stored[name]
        return PLAIN.get(stored.format) != self.dtype or not stored.encoding.as_is

    def chain(self, tokens: int, fixed: Mapping[str, int]) -> Workload:
        """One walk over all matrices, `tokens` rows through each, in a small ring."""
        walk = Walk(self.nbytes, self.decoded, 1, self.dtype.itemsize)
        shapes = {name: (stored.shape[0], stored.shape[1]) for name, stored in self.stored.items()}
        walk.chain(shapes, tokens, SLOT_BYTES)
        return Workload(f"{self.label} of {self.file_name}", tuple(walk.pieces), dict(fixed))

    def reserve_scratch(self) -> None:
        """Have the memory that matrices are decoded into now, so that it is counted."""
        shapes = [stored.shape for name, stored in self.stored.items() if self.decoded(name)]
        if shapes:
            matrix_scratch(max(shapes, key=prod), self.dtype, self.device.place).view(torch.uint8).zero_()

    @property
    def stream(self) -> Stream | None:
        return self._opened.stream

    @property
    def plan(self) -> Plan | None:
        return self._opened.plan

    @property
    def ready(self) -> bool:
        """Whether it can run: every matrix is on the device or has a ring to come through."""
        plan = self._opened.plan
        return plan is not None and (plan.slots > 0 or set(plan.homes) == {RESIDENT})

    @property
    def total_bytes(self) -> int:
        """If all of it were on the device."""
        return sum(stored.nbytes for stored in self.stored.values())

    @property
    def held_bytes(self) -> int:
        """Of the device, now."""
        return self._opened.held_bytes

    @property
    def filled_bytes(self) -> int:
        """Of those, how many have been written."""
        return self._opened.stream.held.filled_bytes if self._opened.stream else 0

    @property
    def ram_bytes(self) -> int:
        """Of the machine's memory beside a GPU, now."""
        return self._opened.stream.held.ram_bytes if self._opened.stream else 0

    def open(self, plan: Plan) -> Stream:
        """Take over a plan; what is there already stays. Raises BudgetTooSmall if the device has not even the ring."""
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
        """Stop, and give back the ring."""
        plan = self._opened.plan
        if plan is None or self._opened.stream is None:
            return
        if RESIDENT not in plan.homes:
            self.close()
        elif plan.slots:
            self._change(replace(plan, slots=0, slot_bytes=0))

    def release(self, nbytes: int) -> int:
        """Park, and give back at least so many bytes of what stays, as evenly over the walk as it lies there."""
        self.park()
        plan = self._opened.plan
        if plan is None or nbytes <= 0:
            return 0
        before = self.held_bytes
        units = [unit for unit, home in zip(plan.units, plan.homes, strict=True) if home == RESIDENT]
        if nbytes >= sum(unit.room for unit in units):
            self.close()
            return before
        sizes, going, amount = [unit.room for unit in units], set[int](), nbytes
        while sum(plan.units[number].room for number in going) < nbytes:
            chosen = spread(sizes, sizes, amount)
            going = {unit.number for unit, goes in zip(units, chosen, strict=True) if goes}
            amount += min(sizes)
        homes = "".join(DISK if number in going else home for number, home in enumerate(plan.homes))
        self._change(replace(plan, homes=homes))
        return before - self.held_bytes

    def close(self) -> None:
        self._opened.close()

    def _change(self, plan: Plan) -> None:
        assert self._opened.stream is not None
        self._opened.stream.change(plan)
        self._opened.plan = plan


class _Opened:
    """What must be closed when a model goes."""

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
    """Load what is not streamed: vectors, embeddings, small layers."""
    rest = {name: tensors[name] for name, _ in module.named_parameters() if name in tensors}
    bind(module, rest, Resident(device, dtype, round_to=round_to))
