"""A CUDA GPU, or an AMD GPU under ROCm, for which PyTorch uses the same names.

Kernels run on the current stream of the thread that queues them. Copies run on one stream of their own: the GPU has one
copy engine for each direction, so a second stream would not be faster. Slabs come from PyTorch's allocator, so that a
limit on the process limits them too. A slab is freed only when both streams are idle. Memory of a new slab may still be
in use by queued kernels; the first copy into the slab waits for those. Host memory is pinned at its exact size by
registering pages of our own, because PyTorch's pinned allocator rounds sizes up to powers of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .cpu import PAGE, anonymous, memmove, release
from .device import COPY, DeviceFull, HostBuffer, PinRefused, Slab, Wait

REGISTER_BYTES = 256 << 20  # at a time: a refusal then costs no more than this
PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU of the process


class CudaDevice:
    """One GPU. `limit`: the most bytes of slabs; PyTorch's allocator has a limit of its own as well."""

    def __init__(self, device: torch.device, limit: int = 2**62) -> None:
        self.place, self.limit = device, limit
        self.used = self.peak = self.host_used = 0
        self.copies = torch.cuda.Stream(device)
        self.start = torch.cuda.Event(enable_timing=True)
        self.start.record(torch.cuda.current_stream(device))

    def allocate(self, nbytes: int) -> Slab:
        if self.used + nbytes > self.limit:
            raise DeviceFull(f"{nbytes} bytes were requested; {self.used} of {self.limit} allowed bytes are in use")
        memory = self._try_allocate(nbytes)
        if memory is None:  # the allocator's cache holds freed memory in pieces of other sizes
            torch.cuda.empty_cache()
            memory = self._try_allocate(nbytes)
        if memory is None:
            raise DeviceFull(f"{self.place} cannot allocate {nbytes} bytes")
        self.copies.wait_stream(torch.cuda.current_stream(self.place))  # queued kernels may still use this memory
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        return Slab(nbytes, memory)

    def _try_allocate(self, nbytes: int) -> Tensor | None:
        try:
            with torch.inference_mode(False):
                return torch.empty(nbytes, dtype=torch.uint8, device=self.place)
        except torch.OutOfMemoryError:
            return None

    def free(self, slab: Slab) -> None:
        slab.memory = None
        self.used -= slab.nbytes

    def tensor(self, slab: Slab) -> Tensor:
        tensor: Tensor = slab.memory
        return tensor

    def host_buffer(self, nbytes: int, pinned: bool) -> HostBuffer:
        pages = anonymous(nbytes)
        if pinned and not self._register(pages.tensor):
            release(pages)
            raise PinRefused(f"the system refuses to pin another {nbytes} bytes")
        self.host_used += nbytes
        return HostBuffer(nbytes, memoryview(pages.map)[:nbytes], pages, pinned)

    def free_host(self, buffer: HostBuffer) -> None:
        if buffer.pinned:
            self._unregister(buffer.memory.tensor, buffer.memory.tensor.numel())
        release(buffer.memory)
        self.host_used -= buffer.nbytes

    def host_view(self, slab: Slab, offset: int, nbytes: int) -> None:
        return None

    def move(self, from_: memoryview, to: memoryview) -> Wait:
        return lambda: memmove(to, from_)

    def copy(self, slab: Slab, offset: int, buffer: HostBuffer, start: int, nbytes: int) -> None:
        with torch.cuda.stream(self.copies):
            for begin, end in _parts(start, start + nbytes):
                there = slab.memory[offset + begin - start : offset + end - start]
                there.copy_(buffer.memory.tensor[begin:end], non_blocking=True)

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event(blocking=True)  # a waiting thread sleeps instead of spinning

    def completion(self) -> Callable[[], float]:
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(torch.cuda.current_stream(self.place))

        def seconds() -> float:
            event.synchronize()
            return float(self.start.elapsed_time(event)) / 1000

        return seconds

    def record(self, stream: str, event: Any) -> None:
        event.record(self._stream(stream))

    def wait(self, stream: str, event: Any) -> None:
        self._stream(stream).wait_event(event)

    def finished(self, event: Any) -> Wait:
        wait: Wait = event.synchronize
        return wait

    def idle(self) -> Wait:
        compute = torch.cuda.current_stream(self.place)

        def wait() -> None:
            compute.synchronize()
            self.copies.synchronize()

        return wait

    def _stream(self, name: str) -> torch.cuda.Stream:
        return self.copies if name == COPY else torch.cuda.current_stream(self.place)

    def _register(self, tensor: Tensor) -> bool:
        """Page-lock a tensor in parts. After a refusal no part of it stays locked. Returns whether it is locked."""
        runtime, total = torch.cuda.cudart(), tensor.numel()
        with torch.cuda.device(self.place):
            for begin, end in _parts(0, total):
                if int(runtime.cudaHostRegister(tensor.data_ptr() + begin, end - begin, PORTABLE)) != 0:
                    self._unregister(tensor, begin)
                    self._forget_error()
                    return False
        return True

    def _unregister(self, tensor: Tensor, nbytes: int) -> None:
        with torch.cuda.device(self.place):
            for begin, _ in _parts(0, nbytes):
                torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr() + begin)

    def _forget_error(self) -> None:
        """A refused call leaves an error in the CUDA runtime; the next kernel launch reports it and clears it."""
        try:
            torch.zeros(1, device=self.place).add_(1)
        except RuntimeError:
            pass


def _parts(start: int, end: int) -> Iterator[tuple[int, int]]:
    """[start, end) divided at the boundaries between registrations, which no copy may cross."""
    while start < end:
        stop = min(end, (start // REGISTER_BYTES + 1) * REGISTER_BYTES)
        yield start, stop
        start = stop


assert REGISTER_BYTES % PAGE == 0
