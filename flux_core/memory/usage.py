"""Measures a device's memory: how much is allowed, how much is in use besides slabs, and the peak.

RAM is measured by the process's resident set, a GPU by PyTorch's allocator and the driver. What other runtimes of the
same process hold is subtracted (ledger.py).
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

CONTEXT_BYTES = 450 * MiB  # the most that a CUDA process takes before its first tensor
GROWTH_BYTES = (
    96 * MiB
)  # of RAM for code and its caches that a training uses first after it was planned; 100 were measured
HEADROOM_BYTES = 256 * MiB  # left free for the driver and other programs: a full card fails, or swaps (Windows)


def process_peak(device: torch.device) -> int:
    """The most bytes that this process has had on a device since `reset_process_peak`."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else meter.peak_resident_bytes()


def reset_process_peak(device: torch.device) -> None:
    """Measure the peak from now on. The process has only one: it is first noted for the runs in progress."""
    ledger_of(device).note_peak(process_peak(device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        meter.reset_peak()


class Memory(Protocol):
    """What a manager needs to measure about a device's memory. All numbers are bytes."""

    def allowed_bytes(self, allowed: Allowed) -> int:
        """The budget."""
        ...

    def other_bytes(self, filled: int) -> int:
        """What this runtime uses on the device besides slabs, of which `filled` bytes have been written to."""
        ...

    def taken_bytes(self, nbytes: int) -> int:
        """Memory that a run with at most `nbytes` of tensors at once takes from the system if freed memory is kept."""
        ...

    def trim(self) -> None:
        """Return memory that has been freed to the system now."""
        ...

    def peak_bytes(self) -> int:
        """The most in use since `reset_peak`, slabs included; an estimate while other runtimes run."""
        ...

    def reset_peak(self) -> None: ...

    @property
    def ram_of_others(self) -> int:
        """RAM that the weights of the process's other runtimes take."""
        ...

    @property
    def growth_bytes(self) -> int:
        """What the program itself may still take on the device in a long job, besides weights and activations."""
        ...

    @property
    def disturbed(self) -> bool:
        """Whether another runtime ran during this run, so that the peak includes its memory."""
        ...

    def running(self, working: int, lasting: bool) -> AbstractContextManager[None]:
        """A context for a run that takes `working` bytes besides weights.

        lasting: the run allocates the same tensors in every step, so freed memory should be kept for the next step.
        """
        ...


class CpuMemory:
    """RAM: the budget limits the resident set, with Python and PyTorch but without other runtimes of the process."""

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
        return (
            2 * nbytes
        )  # a heap that keeps freed memory has gaps of the same size again (measured at 512x512 to 1024x1024)

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
    def growth_bytes(self) -> int:
        return GROWTH_BYTES

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
        """The process has one heap: freed memory is kept while any runtime will allocate it again."""
        if self.account.ledger.lasting:
            meter.keep_freed()
        else:
            meter.return_freed()


class CudaMemory:
    """A GPU's memory, as PyTorch's allocator and the driver report it."""

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
        if self.external is not None:  # others use PyTorch's allocator too: no limit is set on it
            return min(allowed.vram or total, there - max(HEADROOM_BYTES, self.external.spare_bytes))
        limit = self.account.limit = min(allowed.vram or total, there - HEADROOM_BYTES)
        others = sum(other.limit - self.context for other in self.account.ledger.others(self.account) if other.limit)
        share = min(1.0, max(0.0, (limit + others - self.context) / total))
        torch.cuda.set_per_process_memory_fraction(share, self.device.place)  # the allocator refuses more
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
    def growth_bytes(self) -> int:
        return 0

    @property
    def disturbed(self) -> bool:
        return self.account.disturbed

    def running(self, working: int, lasting: bool) -> AbstractContextManager[None]:
        return self.account.running(working, lasting)
