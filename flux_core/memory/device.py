"""What the executor asks of a device, and of whoever reads weights for it. Three devices answer: CPU, CUDA, simulated.

A device has memory one allocates in slabs, one stream of copies and one of kernels, and events between them. Commands
are queued and run later, those of one stream in order. The rules of events are CUDA's, and the executor is built on
them: `wait` captures the last `record` made before it, and waits for nothing if there was none.

Nothing here blocks. What would block is returned as a Wait, to be called by a thread or to be watched by a simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

COPY, COMPUTE = "copy", "compute"

Result = TypeVar("Result")
Wait = Callable[[], None]  # blocks the calling thread until it is so
Steps = Generator[Wait | None, None, Result]  # None: another thread may run here


class DeviceFull(MemoryError):
    """The device has no room for a slab."""


class PinRefused(Exception):
    """The system grants no (more) page-locked memory."""


@dataclass
class Slab:
    """Device memory. `memory` is the device's own handle."""

    nbytes: int
    memory: Any


@dataclass
class HostBuffer:
    """Host memory that copies may start from. `view` is writable; `memory` is the device's own handle."""

    nbytes: int
    view: memoryview
    memory: Any
    pinned: bool


class Device(Protocol):
    """One accelerator, or the CPU taken as one."""

    def allocate(self, nbytes: int) -> Slab:
        """Raises DeviceFull."""
        ...

    def free(self, slab: Slab) -> None:
        """Only when no queued command touches it any more."""
        ...

    def host_buffer(self, nbytes: int, pinned: bool) -> HostBuffer:
        """Raises PinRefused if it cannot be pinned, MemoryError if it cannot be had."""
        ...

    def free_host(self, buffer: HostBuffer) -> None: ...

    def landing(self, slab: Slab, offset: int, nbytes: int) -> memoryview | None:
        """The slab's bytes if the host can write them, so that a read lands there and no copy follows."""
        ...

    def move(self, from_: memoryview, to: memoryview) -> Wait:
        """To copy within host memory, without holding up other threads."""
        ...

    def copy(self, slab: Slab, offset: int, buffer: HostBuffer, start: int, nbytes: int) -> None:
        """Queue on the copy stream: host to device."""
        ...

    def event(self) -> Any: ...

    def record(self, stream: str, event: Any) -> None: ...

    def wait(self, stream: str, event: Any) -> None: ...

    def finished(self, event: Any) -> Wait | None:
        """To wait on the host for the last record of `event`; None where nothing is ever pending."""
        ...

    def idle(self) -> Wait | None:
        """To wait on the host for both streams to be empty."""
        ...


class Source(Protocol):
    """Where the bytes of weights come from. Weights are numbered as in the plan's workload."""

    def lead(self, weight: int) -> int:
        """Bytes before the first one in a window that is read: files are read in whole blocks."""
        ...

    def read(self, weight: int, start: int, nbytes: int, window: memoryview) -> Wait:
        """To put bytes [start, start + nbytes) of the weight at window[lead:]; the window is `slack` longer."""
        ...

    def read_exact(self, weight: int, into: memoryview) -> Wait:
        """To put the whole weight at into[0:]."""
        ...

    @property
    def slack(self) -> int:
        """Bytes a window must have besides the data."""
        ...


def drive(steps: Steps[Result]) -> Result:
    """Run steps to their end, waiting on this thread; an error of a wait is raised inside the steps."""
    try:
        wait = next(steps)
        while True:
            try:
                if wait is not None:
                    wait()
            except BaseException as error:
                wait = steps.throw(error)
            else:
                wait = next(steps)
    except StopIteration as end:
        result: Result = end.value
        return result
