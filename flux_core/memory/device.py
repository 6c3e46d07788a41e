"""The interfaces that the executor (stream.py) uses: a device, and a source of weights' bytes.

There are three devices: CPU, CUDA, and a simulated one for tests. A device has memory, which is allocated in slabs, one
stream of copies, one stream of kernels, and events between the two. Commands are queued and run later; those of one
stream run in order. Events follow CUDA's rules, on which the executor depends: `wait` refers to the last `record` made
before it, and waits for nothing if there was none.

No method blocks. One that would have to block returns a Wait, which a thread calls or a simulator watches.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

COPY, COMPUTE = "copy", "compute"

Result = TypeVar("Result")
Wait = Callable[[], None]  # blocks the calling thread until something has happened
Steps = Generator[Wait | None, None, Result]  # None: another thread may run here


class DeviceFull(MemoryError):
    """The device has too little free memory for a slab."""


class PinRefused(Exception):
    """The system refuses to lock (more) pages."""


@dataclass
class Slab:
    """One allocation of device memory. `memory` is the device's own handle."""

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
    """An accelerator, or the CPU with the same interface."""

    def allocate(self, nbytes: int) -> Slab:
        """Raises DeviceFull."""
        ...

    def free(self, slab: Slab) -> None:
        """Free a slab that no queued command uses."""
        ...

    def host_buffer(self, nbytes: int, pinned: bool) -> HostBuffer:
        """Raises PinRefused if the memory cannot be pinned, MemoryError if it cannot be allocated."""
        ...

    def free_host(self, buffer: HostBuffer) -> None: ...

    def host_view(self, slab: Slab, offset: int, nbytes: int) -> memoryview | None:
        """A view of the slab's bytes that files can be read into; None if the host cannot write there."""
        ...

    def move(self, from_: memoryview, to: memoryview) -> Wait:
        """A Wait that copies within host memory, while other threads continue."""
        ...

    def copy(self, slab: Slab, offset: int, buffer: HostBuffer, start: int, nbytes: int) -> None:
        """Queue a copy from host to device on the copy stream."""
        ...

    def event(self) -> Any: ...

    def record(self, stream: str, event: Any) -> None: ...

    def wait(self, stream: str, event: Any) -> None: ...

    def finished(self, event: Any) -> Wait | None:
        """A Wait for the last record of `event`; None on a device where nothing is ever pending."""
        ...

    def idle(self) -> Wait | None:
        """A Wait until both streams are empty; None on a device where nothing is ever pending."""
        ...


class Source(Protocol):
    """Reads the bytes of weights. Weights are numbered as in the plan's workload."""

    def lead(self, weight: int) -> int:
        """Bytes that `read` puts before the weight's own, because files are read in whole blocks."""
        ...

    def read(self, weight: int, start: int, nbytes: int, window: memoryview) -> Wait:
        """A Wait that reads bytes [start, start + nbytes) of the weight to window[lead:].

        The window has at least nbytes + slack bytes.
        """
        ...

    def read_exact(self, weight: int, into: memoryview) -> Wait:
        """A Wait that reads the whole weight to into[0:]."""
        ...

    @property
    def slack(self) -> int:
        """Bytes that a window must have beyond the data."""
        ...


def drive(steps: Steps[Result]) -> Result:
    """Run steps to their end on this thread. An error that a wait raises is raised inside the steps."""
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
