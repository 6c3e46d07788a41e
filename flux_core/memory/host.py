"""Host memory beside a device with a link: staging buffers to copy from, and the arena of weights kept in RAM.

Buffers have exactly the size they need, a group each, and are pinned as far as the system grants it: after the first
refusal none is asked for again. Knows nothing of files but that they can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .device import Device, HostBuffer, PinRefused, Source, Wait
from .workload import Location, Machine


@dataclass(frozen=True)
class Held:
    """A weight in RAM."""

    buffer: HostBuffer
    start: int
    nbytes: int


class Arena:
    """Streamed weights that stay in RAM: written once, never copied back."""

    def __init__(self, device: Device, source: Source) -> None:
        self.device, self.source = device, source
        self.filled: set[int] = set()  # weights whose bytes are there
        self._buffers: dict[tuple[int, ...], HostBuffer] = {}
        self._held: dict[int, Held] = {}
        self._pin = True

    def adopt(self, locations: Mapping[tuple[int, ...], Location], sizes: Sequence[int]) -> None:
        """Hold these groups, given by their weights, pinned or not. A group for which there is no RAM is not held."""
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
        """Pinned memory is there from the start, other memory once it is written."""
        pinned = sum(buffer.nbytes for buffer in self._buffers.values() if buffer.pinned)
        return pinned + sum(held.nbytes for held in map(self._held.get, self.filled) if held and not held.buffer.pinned)

    def find(self, weight: int) -> Held | None:
        return self._held.get(weight)

    def fill(self, weight: int) -> Wait:
        """To have the weight's bytes in RAM. Whoever waited notes it in `filled`."""
        held = self._held[weight]
        return self.source.read_exact(weight, held.buffer.view[held.start : held.start + held.nbytes])

    def read(self, weight: int, start: int, into: memoryview) -> Wait:
        """To copy bytes from `start` of the weight."""
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
    """A few buffers that are filled and copied from in turn, each with the event of its last copy."""

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
        """The next buffer, free once its event is."""
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
