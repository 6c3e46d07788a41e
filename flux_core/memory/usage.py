"""What a device's memory holds besides slabs: how much is allowed, how much is taken, and how much it was at most.

RAM is counted by the resident set, a GPU by PyTorch's allocator and the driver. Other runtimes of the same process are
left out (ledger.py). Knows no models and no plans.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from . import meter
from .budget import Allowed
from .cpu import CpuDevice
from .cuda import CudaDevice
from .external import ExternalAllocator
from .ledger import ledger_of
from .workload import MiB

CONTEXT_BYTES = 450 * MiB  # of a CUDA process before its first tensor, if it cannot be measured
HEADROOM_BYTES = 256 * MiB  # of a GPU, left to its driver and to other programs: full cards fail, or swap (Windows)


def process_peak(device: torch.device) -> int:
    """The most bytes that this process had on a device since `reset_process_peak`, as the system counts them."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else meter.peak_resident_bytes()


def reset_process_peak(device: torch.device) -> None:
    """Count the peak from now on. There is one for the process: runs in progress take note of it before it is lost."""
    ledger_of(device).note_peak(process_peak(device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        meter.reset_peak()


class Memory(Protocol):
    """What a manager must know of a device's memory besides slabs. All numbers are bytes."""

    def allowed_bytes(self, allowed: Allowed) -> int:
        """The budget."""
        ...

    def other_bytes(self, filled: int) -> int:
        """What this runtime has on the device besides slabs, of which `filled` bytes have been written."""
        ...

    def taken_bytes(self, nbytes: int) -> int:
        """What a run takes whose tensors are at most so many bytes at once, if what is freed is kept."""
        ...

    def trim(self) -> None:
        """Return memory that has been freed to the system now."""
        ...

    def peak_bytes(self) -> int:
        """The most that was in use since `reset_peak`, slabs included. While others run it is an estimate."""
        ...

    def reset_peak(self) -> None: ...

    @property
    def ram_of_others(self) -> int:
        """RAM that weights of other runtimes of the process take."""
        ...

    @property
    def disturbed(self) -> bool:
        """Whether another runtime has run meanwhile, so that the peak is not this one's alone."""
        ...

    def running(self, working: int, lasting: bool) -> AbstractContextManager[None]:
        """While a run is in progress that takes `working` bytes besides weights. lasting: whether it allocates the same
        things again and again, so that what is freed had better be kept."""
        ...


class CpuMemory:
    """RAM: the budget is on the resident set, Python and PyTorch included, other runtimes of the process not."""

    def __init__(self, device: CpuDevice) -> None:
        self.account = ledger_of(device.place).open(lambda: device.used)
        if not self.account.ledger.lasting:
            meter.return_freed()

    def allowed_bytes(self, allowed: Allowed) -> int:
        others = self.account.others_weights
        if allowed.ram is None:
            return meter.automatic_ram() - others
        return min(allowed.ram, meter.resident_bytes() - others + meter.available_ram())

    def other_bytes(self, filled: int) -> int:
        gc.collect()
        self.trim()
        return max(0, self.account.own_share(meter.resident_bytes() - filled))

    def taken_bytes(self, nbytes: int) -> int:
        return 2 * nbytes  # a heap that keeps what is freed has holes, as large again (512x512 to 1024x1024)

    def trim(self) -> None:
        meter.trim()

    def peak_bytes(self) -> int:
        return self.account.own_peak(process_peak(CpuDevice.place))

    def reset_peak(self) -> None:
        reset_process_peak(CpuDevice.place)
        self.account.peak = 0

    @property
    def ram_of_others(self) -> int:
        return self.account.others_weights

    @property
    def disturbed(self) -> bool:
        return self.account.disturbed

    @contextmanager
    def running(self, working: int, lasting: bool) -> Iterator[None]:
        try:
            with self.account.running(working, lasting):
                self._choose_heap()
                yield
        finally:
            self._choose_heap()

    def _choose_heap(self) -> None:
        """The heap is the process's: freed memory is kept as long as any runtime needs it again."""
        if self.account.ledger.lasting:
            meter.keep_freed()
        else:
            meter.return_freed()


class CudaMemory:
    """A GPU's memory, as PyTorch's allocator and the driver describe it."""

    def __init__(self, device: CudaDevice, external: ExternalAllocator | None = None) -> None:
        self.device, self.external = device, external
        self.account = ledger_of(device.place).open(lambda: device.used)
        self.ram = ledger_of(CpuDevice.place).open(lambda: device.host_used)
        torch.zeros(1, device=device.place)
        free, total = torch.cuda.mem_get_info(device.place)
        others = total - free - torch.cuda.memory_reserved(device.place)
        self.context = min(CONTEXT_BYTES, max(0, others))

    def allowed_bytes(self, allowed: Allowed) -> int:
        free, total = torch.cuda.mem_get_info(self.device.place)
        there = free + torch.cuda.memory_reserved(self.device.place) + self.context - self.account.others_weights
        if self.external is not None:  # the allocator is not ours alone
            return min(allowed.vram or total, there - max(HEADROOM_BYTES, self.external.spare_bytes))
        limit = self.account.limit = min(allowed.vram or total, there - HEADROOM_BYTES)
        others = sum(other.limit - self.context for other in self.account.ledger.others(self.account) if other.limit)
        share = min(1.0, max(0.0, (limit + others - self.context) / total))
        torch.cuda.set_per_process_memory_fraction(share, self.device.place)  # the allocator refuses what is beyond
        return limit

    def other_bytes(self, filled: int) -> int:
        self.trim()
        whole = self.context + torch.cuda.memory_reserved(self.device.place) - self.device.used
        return max(0, self.account.own_share(whole))

    def taken_bytes(self, nbytes: int) -> int:
        return nbytes

    def trim(self) -> None:
        torch.cuda.empty_cache()

    def peak_bytes(self) -> int:
        return self.context + self.account.own_peak(process_peak(self.device.place))

    def reset_peak(self) -> None:
        reset_process_peak(self.device.place)
        self.account.peak = 0

    @property
    def ram_of_others(self) -> int:
        return self.ram.others_weights

    @property
    def disturbed(self) -> bool:
        return self.account.disturbed

    def running(self, working: int, lasting: bool) -> AbstractContextManager[None]:
        return self.account.running(working, lasting)
