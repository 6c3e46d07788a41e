"""A device made of arithmetic: capacity, bandwidths, a virtual clock, poisoned memory, and faults on request.

The executor that ships runs on it unchanged. Bytes are real, only few: every kernel compares what lies in its slab with
what the file holds, when it begins and when it ends; memory that is being written holds poison, freed memory too. A
`Simulation` runs the threads and the two streams, either in the order of time or in a random order, which finds the
orders that time would show once in a million steps.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.device import (
    COMPUTE,
    COPY,
    DeviceFull,
    HostBuffer,
    PinRefused,
    Slab,
    Steps,
    Wait,
)

POISON = 0xEE


class Fault(OSError):
    """An error that a test raises on purpose."""


@dataclass
class SimulatedMemory:
    """Accounts of a memory of which nothing but slabs is taken: a budget to the byte."""

    budget: int
    most: int = 0
    ram_of_others: int = 0
    growth_bytes: int = 0
    disturbed: bool = False

    def allowed_bytes(self, allowed: Allowed) -> int:
        return self.budget

    def other_bytes(self, filled: int) -> int:
        return 0

    def taken_bytes(self, nbytes: int) -> int:
        return nbytes

    def trim(self) -> None:
        pass

    def peak_bytes(self) -> int:
        return self.most

    def reset_peak(self) -> None:
        pass

    def running(self, working: int, lasting: bool) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class Event:
    recorded: int = 0  # how often a record was queued
    passed: int = 0  # the last record the stream has come by


@dataclass
class Pending:
    """A host waiting for the device."""

    ready: Callable[[], bool]

    def __call__(self) -> None:
        raise RuntimeError("a simulated wait is watched by a Simulation, not called")


@dataclass
class Task:
    """Blocking work of a host thread: `begin`, then for some seconds nothing is sure, then `end`."""

    seconds: float
    begin: Callable[[], None]
    end: Callable[[], None]
    ready: Callable[[], bool] = lambda: False

    def __call__(self) -> None:
        self.begin()
        self.end()


@dataclass
class Command:
    """Something queued on a stream. `waits`: an event and the record it waits for."""

    name: str
    seconds: float = 0.0
    begin: Callable[[], None] = lambda: None
    end: Callable[[], None] = lambda: None
    waits: tuple[Event, int] | None = None
    touches: tuple[int, ...] = ()  # ids of the memory it reads or writes


@dataclass
class Faults:
    """The number of the call, counted from 1, that raises an error."""

    allocate: frozenset[int] = frozenset()
    pin: frozenset[int] = frozenset()
    read: frozenset[int] = frozenset()
    calls: dict[str, int] = field(default_factory=dict)

    def strike(self, what: str) -> bool:
        self.calls[what] = self.calls.get(what, 0) + 1
        return self.calls[what] in getattr(self, what)


class SimulatedDevice:
    """Device memory as bytearrays. `unified`: the host can write it, as with a CPU."""

    def __init__(
        self,
        capacity: int = 2**62,
        link: float = 1e10,
        latency: float = 0.0,
        host_copy: float = 6e9,
        unified: bool = False,
        pinnable: int = 2**62,
        faults: Faults | None = None,
    ) -> None:
        self.capacity, self.link, self.latency, self.host_copy = capacity, link, latency, host_copy
        self.unified, self.pinnable, self.faults = unified, pinnable, faults or Faults()
        self.now = 0.0
        self.used = self.peak = self.pinned = 0
        self.live: dict[int, Slab | HostBuffer] = {}
        self.queues: dict[str, deque[Command]] = {COPY: deque(), COMPUTE: deque()}
        self.running: dict[str, tuple[Command, float] | None] = {COPY: None, COMPUTE: None}
        self.violations: list[str] = []
        self.busy: dict[str, float] = {COPY: 0.0, COMPUTE: 0.0}

    # --- the device interface -------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Slab:
        if self.faults.strike("allocate") or self.used + nbytes > self.capacity:
            raise DeviceFull(f"{nbytes} bytes")
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        slab = Slab(nbytes, bytearray([POISON]) * nbytes)
        self.live[id(slab.memory)] = slab
        return slab

    def free(self, slab: Slab) -> None:
        if self._in_use(slab.memory):
            self.violations.append("a slab was freed while a queued command uses it")
        if self.live.pop(id(slab.memory), None) is None:
            self.violations.append("a slab was freed twice")
        slab.memory[:] = bytes([POISON]) * slab.nbytes
        self.used -= slab.nbytes

    def host_buffer(self, nbytes: int, pinned: bool) -> HostBuffer:
        if pinned and (self.faults.strike("pin") or self.pinned + nbytes > self.pinnable):
            raise PinRefused(f"{nbytes} bytes")
        memory = bytearray([POISON]) * nbytes
        self.pinned += nbytes if pinned else 0
        buffer = HostBuffer(nbytes, memoryview(memory), memory, pinned)
        self.live[id(memory)] = buffer
        return buffer

    def free_host(self, buffer: HostBuffer) -> None:
        if self._in_use(buffer.memory):
            self.violations.append("host memory was freed while a queued copy reads it")
        if self.live.pop(id(buffer.memory), None) is None:
            self.violations.append("host memory was freed twice")
        buffer.view[:] = bytes([POISON]) * buffer.nbytes
        self.pinned -= buffer.nbytes if buffer.pinned else 0

    def host_view(self, slab: Slab, offset: int, nbytes: int) -> memoryview | None:
        return memoryview(slab.memory)[offset : offset + nbytes] if self.unified else None

    def move(self, from_: memoryview, to: memoryview) -> Wait:
        return torn_copy(from_, to, len(to) / self.host_copy)

    def copy(self, slab: Slab, offset: int, buffer: HostBuffer, start: int, nbytes: int) -> None:
        moving = torn_copy(
            buffer.view[start : start + nbytes], memoryview(slab.memory)[offset : offset + nbytes], nbytes / self.link
        )
        touches = (id(slab.memory), id(buffer.memory))
        seconds = moving.seconds + self.latency
        self.queues[COPY].append(Command("copy", seconds, moving.begin, moving.end, None, touches))

    def event(self) -> Event:
        return Event()

    def record(self, stream: str, event: Event) -> None:
        event.recorded += 1
        number = event.recorded

        def pass_by() -> None:
            event.passed = max(event.passed, number)

        self.queues[stream].append(Command("record", end=pass_by))

    def wait(self, stream: str, event: Event) -> None:
        if event.recorded:  # never recorded: waits for nothing
            self.queues[stream].append(Command("wait", waits=(event, event.recorded)))

    def finished(self, event: Event) -> Pending:
        number = event.recorded
        return Pending(lambda: event.passed >= number)

    def idle(self) -> Pending:
        return Pending(lambda: not any(self.queues.values()) and not any(self.running.values()))

    # --- what stands for a model ----------------------------------------------------------------------------

    def kernel(self, slab: Slab, offset: int, expected: bytes, seconds: float = 0.0) -> None:
        """Queue a computation that reads these bytes from beginning to end."""

        def check(when: str) -> Callable[[], None]:
            def look() -> None:
                found = bytes(slab.memory[offset : offset + len(expected)])
                if found != expected:
                    self.violations.append(f"a kernel {when} with wrong weights: {found[:8].hex()}")

            return look

        touches = (id(slab.memory),)
        self.queues[COMPUTE].append(Command("kernel", seconds, check("began"), check("ended"), None, touches))

    def _in_use(self, memory: Any) -> bool:
        commands = [command for queue in self.queues.values() for command in queue]
        commands += [running[0] for running in self.running.values() if running]
        return any(id(memory) in command.touches for command in commands)

    # --- progress -------------------------------------------------------------------------------------------

    def startable(self, stream: str) -> bool:
        queue = self.queues[stream]
        if self.running[stream] or not queue:
            return False
        waits = queue[0].waits
        return waits is None or waits[0].passed >= waits[1]

    def start(self, stream: str) -> None:
        command = self.queues[stream].popleft()
        command.begin()
        self.busy[stream] += command.seconds
        self.running[stream] = (command, self.now + command.seconds)

    def finish(self, stream: str) -> None:
        running = self.running[stream]
        assert running is not None
        self.running[stream] = None
        running[0].end()


def torn_copy(source: memoryview, target: memoryview, seconds: float) -> Task:
    """A copy that reads its first half when it begins and its second when it ends, and meanwhile leaves poison."""
    half = len(source) // 2
    first: list[bytes] = []

    def begin() -> None:
        first.append(bytes(source[:half]))
        target[:] = bytes([POISON]) * len(target)

    def end() -> None:
        target[:half] = first[0]
        target[half:] = source[half:]

    return Task(seconds, begin, end)


class SimulatedSource:
    """Pieces as byte strings, read at a rate, and lying anywhere in the blocks of their file."""

    def __init__(
        self, weights: Sequence[bytes], disk: float, leads: Sequence[int] | None = None, slack: int = 0
    ) -> None:
        self.weights, self.disk, self.slack = weights, disk, slack
        self.leads = leads or [0] * len(weights)
        self.faults = Faults()
        self.bytes_read = 0

    def lead(self, weight: int) -> int:
        return self.leads[weight]

    def read(self, weight: int, start: int, nbytes: int, window: memoryview) -> Wait:
        return self._task(weight, start, window[self.leads[weight] :][:nbytes])

    def read_exact(self, weight: int, into: memoryview) -> Wait:
        return self._task(weight, 0, into)

    def _task(self, weight: int, start: int, target: memoryview) -> Task:
        data = memoryview(self.weights[weight])[start : start + len(target)]
        self.bytes_read += len(target)
        task = torn_copy(data, target, len(target) / self.disk)
        if self.faults.strike("read"):

            def fail() -> None:
                raise Fault(f"reading weight {weight} failed")

            task.end = fail
        return task


class Simulation:
    """Runs host threads, written as steps, and the streams of a device. With `chance` in random order, else in time."""

    def __init__(self, device: SimulatedDevice, chance: random.Random | None = None) -> None:
        self.device, self.chance = device, chance
        self.threads: list[_Thread] = []
        self.errors: list[BaseException] = []

    def spawn(self, steps: Steps[None]) -> None:
        self.threads.append(_Thread(steps))

    def clock(self) -> float:
        return self.device.now

    def run(self, most: int = 1_000_000) -> None:
        """Until all threads have ended and the device is idle. Errors that ended a thread are in `errors`."""
        for _ in range(most):
            actions = self._actions()
            if not actions:
                if self.threads:
                    self.device.violations.append("deadlock")
                return
            (self.chance.choice(actions) if self.chance else actions[0])[1]()
        self.device.violations.append("no end")

    def _actions(self) -> list[tuple[float, Callable[[], None]]]:
        """What can happen next; in order of time the first one does."""
        now = self.device.now
        actions: list[tuple[float, Callable[[], None]]] = []
        for thread in self.threads:
            if thread.ready():
                actions.append((now, partial(self._step, thread)))
        for stream in (COPY, COMPUTE):
            if self.device.startable(stream):
                actions.append((now, partial(self.device.start, stream)))
        if actions and not self.chance:
            return actions
        for thread in self.threads:
            if thread.task is not None:
                actions.append((thread.until, partial(self._end, thread)))
        for stream, running in self.device.running.items():
            if running:
                actions.append((running[1], partial(self._finish, stream, running[1])))
        return actions if self.chance else sorted(actions, key=lambda action: action[0])

    def _step(self, thread: _Thread) -> None:
        try:
            error, thread.error = thread.error, None
            wait = next(thread.steps) if error is None else thread.steps.throw(error)
        except StopIteration:
            self.threads.remove(thread)
            return
        except BaseException as error:
            self.threads.remove(thread)
            self.errors.append(error)
            return
        thread.wait, thread.task = wait, None
        if isinstance(wait, Task):
            thread.task, thread.until = wait, self.device.now + wait.seconds
            wait.begin()

    def _end(self, thread: _Thread) -> None:
        assert thread.task is not None
        self.device.now = max(self.device.now, thread.until)
        try:
            thread.task.end()
        except BaseException as error:
            thread.error = error
        thread.task = thread.wait = None

    def _finish(self, stream: str, at: float) -> None:
        self.device.now = max(self.device.now, at)
        self.device.finish(stream)


class _Thread:
    def __init__(self, steps: Steps[None]) -> None:
        self.steps = steps
        self.wait: Any = None
        self.task: Task | None = None
        self.until = 0.0
        self.error: BaseException | None = None

    def ready(self) -> bool:
        return self.wait is None or (self.task is None and self.wait.ready())
