"""The CUDA device beside a stand-in for PyTorch's `torch.cuda`: what it asks the driver for, and that bytes arrive.

The stand-in carries every command out at once, on the CPU. What comes of real streams only a card can show
(tests/gpu/evaluate.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.workloads import once, pair, with_locations
from safetensors.torch import save_file
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.stored import whole
from sluice.flux_core.memory import cuda
from sluice.flux_core.memory.cpu import PAGE
from sluice.flux_core.memory.cuda import CudaDevice
from sluice.flux_core.memory.device import PinRefused
from sluice.flux_core.memory.source import FileSource
from sluice.flux_core.memory.stream import Stream
from sluice.flux_core.memory.workload import Location, Machine

CPU = torch.device("cpu")
PART = 4 * PAGE  # of a registration


class Driver:
    """The registered memory, the calls, and the number of bytes that may still be registered."""

    def __init__(self) -> None:
        self.locked: dict[int, int] = {}
        self.asked: list[str] = []
        self.left, self.seconds = 1 << 40, 0.0

    def cudaHostRegister(self, start: int, nbytes: int, flags: int) -> int:  # noqa: N802
        assert flags == cuda.PORTABLE and start % PAGE == nbytes % PAGE == 0
        if nbytes > self.left:
            return 2
        self.left -= nbytes
        self.locked[start] = nbytes
        return 0

    def cudaHostUnregister(self, start: int) -> int:  # noqa: N802
        self.left += self.locked.pop(start)
        return 0


class Queue:
    """A stream that is always empty."""

    def __init__(self, driver: Driver, name: str) -> None:
        self.driver, self.name = driver, name

    def wait_stream(self, other: Queue) -> None:
        self.driver.asked.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver()
    compute = Queue(made, "compute")

    class Event:
        def __init__(self, **options: bool) -> None:
            self.at = 0.0

        def record(self, stream: Queue) -> None:
            made.seconds += 0.5
            self.at = made.seconds

        def synchronize(self) -> None: ...

        def elapsed_time(self, later: Event) -> float:
            return 1000 * (later.at - self.at)

    stand_in = {
        "Stream": lambda device: Queue(made, "copies"), "Event": Event, "current_stream": lambda device: compute,
        "stream": lambda stream: nullcontext(), "device": lambda device: nullcontext(), "cudart": lambda: made,
    }  # fmt: skip
    for name, value in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(cuda, "REGISTER_BYTES", PART)
    yield made
    assert made.locked == {}, "what was locked is unlocked again"


def test_the_first_copy_into_a_slab_waits_for_kernels_that_use_what_it_was_made_of(driver: Driver) -> None:
    device = CudaDevice(CPU)
    slab = device.allocate(100)
    assert driver.asked == ["copies waits for compute"]
    device.free(slab)
    assert (device.used, device.peak) == (0, 100)


def test_a_copy_is_cut_where_registrations_meet_and_its_bytes_arrive(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = CudaDevice(CPU)
    copied: list[torch.Tensor] = []
    buffer = device.host_buffer(3 * PART + 5, pinned=True)
    assert sorted(driver.locked.values()) == [PAGE, PART, PART, PART]
    buffer.memory.tensor.copy_(torch.arange(buffer.memory.tensor.numel()) % 251)
    slab = device.allocate(2 * PART)
    copy = torch.Tensor.copy_

    def noted(to: torch.Tensor, of: torch.Tensor, **how: Any) -> torch.Tensor:
        copied.append(of)
        return copy(to, of, **how)

    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    device.copy(slab, 3, buffer, 7, 2 * PART - 3)
    assert [part.numel() for part in copied] == [PART - 7, PART, 4]
    assert torch.equal(slab.memory[3:], buffer.memory.tensor[7 : 2 * PART + 4])
    device.free_host(buffer)


def test_what_cannot_all_be_locked_is_not_locked_at_all(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    device, cleared = CudaDevice(CPU), []
    monkeypatch.setattr(cuda.CudaDevice, "_forget_error", lambda self: cleared.append(True))
    driver.left = 2 * PART
    with pytest.raises(PinRefused):
        device.host_buffer(3 * PART, pinned=True)
    assert driver.locked == {} and driver.left == 2 * PART and cleared == [True]


def test_moments_are_those_of_the_card(driver: Driver) -> None:
    device = CudaDevice(CPU)
    first, second = device.completion(), device.completion()
    assert second() - first() == 0.5


@pytest.mark.parametrize("homes", ("VVVV", "PPPP", "RRRR", "DDDD", "VPRD", "DRPV"))
def test_every_matrix_arrives_from_wherever_it_is_kept(driver: Driver, tmp_path: Path, homes: str) -> None:
    sizes = [3 * PART + 8, 40, 5 * PART, PART]
    tensors = {f"{n}.weight": (torch.arange(size) * (n + 3) % 251).to(torch.uint8) for n, size in enumerate(sizes)}
    save_file(tensors, tmp_path / "w.safetensors")
    file = open_weights(tmp_path / "w.safetensors")
    source = FileSource([whole(file, file.entries[name]) for name in tensors])
    workload = once("w", [pair(name, n, sizes[n]) for n, name in enumerate(tensors)])
    machine = Machine(1e12, 1e12, 1e12, disk=1e9, link=1e10, staging_buffers=2, staging_bytes=2 * PART)
    device = CudaDevice(CPU)
    plan = with_locations(workload, machine, Location.of(homes), 2 if set(homes) != {"V"} else 0)
    stream = Stream(plan, device, source)
    for _ in range(3):
        for weight, expected in enumerate(tensors.values()):
            place = stream.take(weight)
            assert torch.equal(device.tensor(place.slab)[place.offset : place.offset + place.nbytes], expected)
            stream.release(weight)
    stream.close()
    assert device.used == 0
