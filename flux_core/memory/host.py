"""Host memory for a device with a link: staging buffers to copy from, and the arena of weights that stay in RAM.

Each group of the arena has one buffer of exactly its size. Buffers are pinned until the system refuses once. Contains
no file access: bytes come from a Source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .device import Device, HostBuffer, PinRefused, Source, Wait
from .workload import Location, Machine


@dataclass(frozen=True)
class Held:
    """The place of a weight in RAM."""

    buffer: HostBuffer
    start: int
    nbytes: int


class Arena:
    """Streamed weights that stay in RAM. They are read once and never copied back from the device."""

    def __init__(self, device: Device, source: Source) -> None:
        self.device, self.source = device, source
        self.filled: set[int] = set()  # weights that have been read
        self._buffers: dict[tuple[int, ...], HostBuffer] = {}
        self._held: dict[int, Held] = {}
        self._pin = True

    def adopt(self, locations: Mapping[tuple[int, ...], Location], sizes: Sequence[int]) -> None:
        """Allocate buffers for exactly these groups, each given by its weights. A group stays out if RAM is short."""
        for group in [group for group in self._buffers if group not in locations]:
            self._drop(group)
        for group, location in locations.items():
            if group in self._buffers:
                continue
            try:
                buffer = self._buffer(sum(sizes[weight] for weight in group), location is Location.PINNED)
            except MemoryError:
                return
            self._buffers[group], start = buffer, 0
            for weight in group:
                self._held[weight] = Held(buffer, start, sizes[weight])
                start += sizes[weight]

    @property
    def used_bytes(self) -> int:
        """RAM in use: pinned memory from its allocation on, other memory once it has been written."""
        pinned = sum(buffer.nbytes for buffer in self._buffers.values() if buffer.pinned)
        return pinned + sum(held.nbytes for held in map(self._held.get, self.filled) if held and not held.buffer.pinned)

    def find(self, weight: int) -> Held | None:
        return self._held.get(weight)

    def fill(self, weight: int) -> Wait:
        """A Wait that reads the weight into RAM. The caller then adds the weight to `filled`."""
        held = self._held[weight]
        return self.source.read_exact(weight, held.buffer.view[held.start : held.start + held.nbytes])

    def read(self, weight: int, start: int, into: memoryview) -> Wait:
        """A Wait that copies the weight's bytes from `start` on into a buffer."""
        held = self._held[weight]
        begin = held.start + start
        return self.device.move(held.buffer.view[begin : begin + len(into)], into)

    def close(self) -> None:
        for group in list(self._buffers):
            self._drop(group)

    def _drop(self, group: tuple[int, ...]) -> None:
        for weight in group:
            self.filled.discard(weight)
            del self._held[weight]
        self.device.free_host(self._buffers.pop(group))

    def _buffer(self, nbytes: int, pinned: bool) -> HostBuffer:
        if pinned and self._pin:
            try:
                return self.device.host_buffer(nbytes, pinned=True)
            except PinRefused:
                self._pin = False
        return self.device.host_buffer(nbytes, pinned=False)


class Staging:
    """A few host buffers, used in turn: filled, then copied to the device. Each has the event of its last copy."""

    def __init__(self, device: Device) -> None:
        self.device, self.nbytes = device, 0
        self._buffers: list[tuple[HostBuffer, Any]] = []
        self._turns = 0

    def adopt(self, machine: Machine, slack: int) -> None:
        self.nbytes = machine.staging_bytes
        while len(self._buffers) < machine.staging_buffers:
            self._buffers.append((self._buffer(self.nbytes + slack), self.device.event()))

    @property
    def used_bytes(self) -> int:
        return sum(buffer.nbytes for buffer, _ in self._buffers)

    def turn(self) -> tuple[HostBuffer, Any]:
        """The next buffer and its event: the buffer may be filled when the event has happened."""
        self._turns += 1
        return self._buffers[self._turns % len(self._buffers)]

    def close(self) -> None:
        while self._buffers:
            self.device.free_host(self._buffers.pop()[0])

    def _buffer(self, nbytes: int) -> HostBuffer:
        try:
            return self.device.host_buffer(nbytes, pinned=True)
        except PinRefused:
            return self.device.host_buffer(nbytes, pinned=False)
