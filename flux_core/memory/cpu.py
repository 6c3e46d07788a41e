"""The CPU as a device: its memory is RAM under a budget, weights are read from disk, and nothing is copied twice.

Reads go straight into the slab. Kernels run at the moment they are called, so nothing is ever pending. Each slab has
anonymous pages of its own, which return to the system as soon as the slab is freed, even if views of it exist. The
resident set therefore follows the budget exactly.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .device import DeviceFull, HostBuffer, PinRefused, Slab, Wait

PAGE = mmap.PAGESIZE


@dataclass
class Pages:
    """Anonymous memory, as a mapping that files are read into and as a tensor of the same bytes."""

    map: mmap.mmap
    tensor: Tensor  # uint8


def anonymous(nbytes: int) -> Pages:
    """Zeroed private pages. Linux uses huge pages where it has them: fewer page faults and faster direct reads."""
    length = -(-max(nbytes, 1) // PAGE) * PAGE
    if sys.platform != "win32" and hasattr(mmap, "MAP_PRIVATE"):
        map = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        map = mmap.mmap(-1, length)
    if sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE") and length >= 1 << 21:
        try:
            map.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without huge pages
            pass
    with torch.inference_mode(False):
        return Pages(map, torch.frombuffer(map, dtype=torch.uint8))


def release(pages: Pages) -> None:
    """Return the pages to the system at once (views that still exist read zeros); on Windows with the last view."""
    if sys.platform != "win32" and hasattr(mmap, "MADV_DONTNEED"):
        pages.map.madvise(mmap.MADV_DONTNEED)


class CpuDevice:
    """RAM up to a limit, which may change at any time. Commands run when they are called: events are not needed."""

    place = torch.device("cpu")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = self.peak = 0

    def allocate(self, nbytes: int) -> Slab:
        if self.used + nbytes > self.limit:
            raise DeviceFull(f"{nbytes} bytes were requested; {self.used} of {self.limit} allowed bytes are in use")
        try:
            pages = anonymous(nbytes)
        except (OSError, MemoryError) as error:
            raise DeviceFull(f"the system cannot allocate {nbytes} bytes: {error}") from error
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        return Slab(nbytes, pages)

    def free(self, slab: Slab) -> None:
        release(slab.memory)
        slab.memory = None
        self.used -= slab.nbytes

    def tensor(self, slab: Slab) -> Tensor:
        """The slab as a tensor, uint8 [bytes]."""
        tensor: Tensor = slab.memory.tensor
        return tensor

    def host_buffer(self, nbytes: int, pinned: bool) -> HostBuffer:
        if pinned:
            raise PinRefused("a CPU needs no page-locked memory")
        pages = anonymous(nbytes)
        return HostBuffer(nbytes, memoryview(pages.map)[:nbytes], pages, False)

    def free_host(self, buffer: HostBuffer) -> None:
        release(buffer.memory)

    def host_view(self, slab: Slab, offset: int, nbytes: int) -> memoryview:
        return memoryview(slab.memory.map)[offset : offset + nbytes]

    def move(self, from_: memoryview, to: memoryview) -> Wait:
        return lambda: memmove(to, from_)

    def copy(self, slab: Slab, offset: int, buffer: HostBuffer, start: int, nbytes: int) -> None:
        memmove(self.host_view(slab, offset, nbytes), buffer.view[start : start + nbytes])

    def event(self) -> None:
        return None

    def record(self, stream: str, event: Any) -> None:
        pass

    def wait(self, stream: str, event: Any) -> None:
        pass

    def finished(self, event: Any) -> None:
        return None

    def completion(self) -> Callable[[], float]:
        now = time.perf_counter()
        return lambda: now

    def idle(self) -> None:
        return None


def memmove(to: memoryview, from_: memoryview) -> None:
    """Copy without Python's global lock, so that other threads continue."""
    target = (ctypes.c_char * len(to)).from_buffer(to)
    source = (ctypes.c_char * len(from_)).from_buffer(from_)
    ctypes.memmove(target, source, len(to))
