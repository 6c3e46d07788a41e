"""Communication between the devices of a group: four operations, and their transport between processes.

    exchange   each device sends each other one a tensor of its own   gather   each device receives the tensors of all
    reduce     each device receives the sum, with the same bits     shift    to the next device, from the one before

`GlooWire` goes through PyTorch's gloo. What lies on a GPU is copied through the host's memory, which needs neither NCCL
nor access of one card to another. Uses no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from math import prod
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

Shape = tuple[int, ...]
_PATTERN = 1009  # numbers in a message of the test of each pair


class Wire(Protocol):
    """One device's end. `sent`: payload bytes sent by this device, by operation."""

    rank: int
    size: int
    sent: dict[str, int]

    @property
    def seconds(self) -> float:
        """Seconds spent in these operations so far, waiting for the other devices included."""
        ...

    def exchange(self, out: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """out[r] goes to device r; what comes from device r has shapes[r]."""
        ...

    def gather(self, own: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """The tensors of all devices, in order; their shapes may differ."""
        ...

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over the devices."""
        ...

    def shift(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Callable[[], list[Tensor]]:
        """Begin to send to the next device and to receive from the one before; call the result to wait for it."""
        ...


class GlooWire:
    """A group of processes. Operations raise RuntimeError if one of them has ended or does not answer in time."""

    def __init__(self, store: Any, name: str, rank: int, size: int, seconds: float) -> None:
        """store: a torch.distributed.Store that all processes share; name: of this group; seconds: until a process
        that is silent counts as lost. A group of its own: it is not the process's default group."""
        self.rank, self.size = rank, size
        self.sent: dict[str, int] = {}
        self.seconds = 0.0
        torchs: Any = dist  # whose annotations lack some of what it has
        options = torchs.ProcessGroupGloo._Options()
        options._devices = [torchs.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(seconds=seconds)
        self._group: Any = torchs.ProcessGroupGloo(torchs.PrefixStore(name, store), rank, size, options)

    def exchange(self, out: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        if out[0].device.type == "meta":
            return [out[0].new_empty(shape) for shape in shapes]
        self._count("exchange", sum(part.nbytes for rank, part in enumerate(out) if rank != self.rank))
        flat = torch.cat([_here(part).flatten() for part in out])
        sizes = [prod(shape) for shape in shapes]
        got = flat.new_empty(sum(sizes))
        given = [part.numel() for part in out]
        self._finish(self._group.alltoall_base(got, flat, sizes, given, dist.AllToAllOptions()))
        return [part.view(shape).to(out[0].device) for part, shape in zip(got.split(sizes), shapes, strict=True)]

    def gather(self, own: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        if own.device.type == "meta":
            return [own.new_empty(shape) for shape in shapes]
        self._count("gather", own.nbytes * (self.size - 1))
        most = max(prod(shape) for shape in shapes)
        padded = _here(own).new_zeros(most)  # gloo gathers equal sizes only
        padded[: own.numel()] = _here(own).flatten()
        into = [torch.empty_like(padded) for _ in shapes]
        self._finish(self._group.allgather([into], [padded]))
        return [part[: prod(shape)].view(shape).to(own.device) for part, shape in zip(into, shapes, strict=True)]

    def reduce(self, x: Tensor) -> Tensor:
        if x.device.type == "meta":
            return x.clone()
        self._count("reduce", 2 * x.nbytes * (self.size - 1) // self.size)
        total = _here(x).clone()
        self._finish(self._group.allreduce([total]))
        return total.to(x.device)

    def shift(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Callable[[], list[Tensor]]:
        if parts[0].device.type == "meta":
            return lambda: [parts[0].new_empty(shape) for shape in shapes]
        self._count("shift", sum(part.nbytes for part in parts))
        out = [_here(part) for part in parts]
        into = [part.new_empty(shape) for part, shape in zip(out, shapes, strict=True)]
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        work = [self._group.send([part], after, number) for number, part in enumerate(out)]
        work += [self._group.recv([part], before, number) for number, part in enumerate(into)]

        def wait() -> list[Tensor]:
            self._finish(*work)
            return [part.to(parts[0].device) for part in into]

        return wait

    def _finish(self, *work: Any) -> None:
        began = time.perf_counter()
        for one in work:
            one.wait()
        self.seconds += time.perf_counter() - began

    def _count(self, verb: str, nbytes: int) -> None:
        self.sent[verb] = self.sent.get(verb, 0) + nbytes


def _here(x: Tensor) -> Tensor:
    """On the CPU, contiguous."""
    return x.cpu().contiguous()


def wrong_partners(wire: Wire, device: torch.device) -> list[int]:
    """The devices whose messages arrive changed: each pair exchanges a pattern first.

    On some machines copies between cards silently give zeros.
    """

    def pattern(source: int, target: int) -> Tensor:
        return torch.arange(_PATTERN, dtype=torch.float32, device=device) + _PATTERN * (source * wire.size + target + 1)

    out = [pattern(wire.rank, other) for other in range(wire.size)]
    got = wire.exchange(out, [(_PATTERN,)] * wire.size)
    return [other for other in range(wire.size) if not torch.equal(got[other], pattern(other, wire.rank))]
