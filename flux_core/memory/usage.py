"""What a device's memory is thought to hold besides slabs: how much is allowed, taken, and was taken at most.

RAM is counted by the resident set, a GPU by PyTorch's allocator and the driver. Knows no models and no plans.
"""

from __future__ import annotations

import gc
from typing import Protocol

import torch

from . import meter
from .budget import Allowed
from .cuda import CudaDevice
from .external import ExternalAllocator
from .workload import MiB

CONTEXT_BYTES = 450 * MiB  # of a CUDA process before its first tensor, if it cannot be measured
HEADROOM_BYTES = 256 * MiB  # of a GPU, left to its driver and to other programs: full cards fail, or swap (Windows)


class Memory(Protocol):
    """What a manager must know of a device's memory besides slabs."""

    def allowed_bytes(self, allowed: Allowed) -> int:
        """The budget in bytes."""
        ...

    def other_bytes(self, filled: int) -> int:
        """What this process has on the device besides slabs, of which `filled` bytes have been written."""
        ...

    def taken_bytes(self, nbytes: int) -> int:
        """What a run takes whose tensors are at most so many bytes at once, if what is freed is kept."""
        ...

    def give_back(self) -> None:
        """What has been freed goes back to the system now."""
        ...

    def peak_bytes(self) -> int: ...

    def reset_peak(self) -> None: ...

    def repeating(self, on: bool) -> None:
        """Whether the same things will be allocated again and again, so that what is freed had better be kept."""
        ...


class CpuMemory:
    """RAM: the budget is on the resident set, Python and PyTorch included."""

    def __init__(self) -> None:
        meter.return_freed()

    def allowed_bytes(self, allowed: Allowed) -> int:
        if allowed.ram is None:
            return meter.automatic_ram()
        return min(allowed.ram, meter.resident_bytes() + meter.available_ram())

    def other_bytes(self, filled: int) -> int:
        gc.collect()
        self.give_back()
        return max(0, meter.resident_bytes() - filled)

    def taken_bytes(self, nbytes: int) -> int:
        return 2 * nbytes  # a heap that keeps what is freed has holes, as large again (512x512 to 1024x1024)

    def give_back(self) -> None:
        meter.trim()

    def peak_bytes(self) -> int:
        return meter.peak_resident_bytes()

    def reset_peak(self) -> None:
        meter.reset_peak()

    def repeating(self, on: bool) -> None:
        if on:
            meter.keep_freed()
        else:
            meter.return_freed()


class CudaMemory:
    """A GPU's memory, as PyTorch's allocator and the driver tell it."""

    def __init__(self, device: CudaDevice, external: ExternalAllocator | None = None) -> None:
        self.device, self.external = device, external
        torch.zeros(1, device=device.place)
        free, total = torch.cuda.mem_get_info(device.place)
        others = total - free - torch.cuda.memory_reserved(device.place)
        self.context = min(CONTEXT_BYTES, max(0, others))

    def allowed_bytes(self, allowed: Allowed) -> int:
        free, total = torch.cuda.mem_get_info(self.device.place)
        there = free + torch.cuda.memory_reserved(self.device.place) + self.context
        if self.external is not None:  # the allocator is not ours alone
            return min(allowed.vram or total, there - max(HEADROOM_BYTES, self.external.spare_bytes))
        limit = min(allowed.vram or total, there - HEADROOM_BYTES)
        share = min(1.0, max(0.0, (limit - self.context) / total))
        torch.cuda.set_per_process_memory_fraction(share, self.device.place)  # the allocator refuses what is beyond
        return limit

    def other_bytes(self, filled: int) -> int:
        self.give_back()
        return self.context + torch.cuda.memory_reserved(self.device.place) - self.device.used

    def taken_bytes(self, nbytes: int) -> int:
        return nbytes

    def give_back(self) -> None:
        torch.cuda.empty_cache()

    def peak_bytes(self) -> int:
        return self.context + torch.cuda.max_memory_reserved(self.device.place)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device.place)

    def repeating(self, on: bool) -> None:
        pass
