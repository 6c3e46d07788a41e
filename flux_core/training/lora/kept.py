"""Where the inputs of the blocks are stored between the forward and the backward half of a training step.

    OnDevice  they stay on the device             57 x N x D numbers of FLUX.1: 0.5 GiB at 512x512, 1.5 GiB at 1024x1024
    InRam     copied to RAM (pinned with a GPU) and back
    OnDisk    written to one unnamed file and read back

The plan chooses (`foreseen` in ready.py). Memory in RAM and the file are reused from step to step. Independent of
models.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

DEVICE, RAM, DISK = "device", "ram", "disk"  # the names of the places in plans and settings


class Kept(Protocol):
    """Stores one tensor for each number."""

    def put(self, number: int, tensor: Tensor) -> None: ...
    def get(self, number: int) -> Tensor:
        """The tensor last stored under this number, on its device. May be called more than once."""
        ...

    def drop(self, number: int) -> None:
        """The tensor is no longer needed in this step."""
        ...


class OnDevice:
    def __init__(self) -> None:
        self._tensors: dict[int, Tensor] = {}

    def put(self, number: int, tensor: Tensor) -> None:
        self._tensors[number] = tensor

    def get(self, number: int) -> Tensor:
        return self._tensors[number]

    def drop(self, number: int) -> None:
        self._tensors.pop(number, None)


class Elsewhere:
    """On the meta device: stands for storage outside the device, which takes no device memory."""

    def __init__(self) -> None:
        self._shapes: dict[int, tuple[tuple[int, ...], torch.dtype]] = {}

    def put(self, number: int, tensor: Tensor) -> None:
        self._shapes[number] = tuple(tensor.shape), tensor.dtype

    def get(self, number: int) -> Tensor:
        shape, dtype = self._shapes[number]
        return torch.empty(shape, dtype=dtype, device="meta")

    def drop(self, number: int) -> None:
        self._shapes.pop(number, None)


class InRam:
    """Copies are queued on the compute stream, so no events are needed: later commands run after them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[int, Tensor] = {}
        self._shapes: dict[int, tuple[tuple[int, ...], torch.dtype]] = {}

    def put(self, number: int, tensor: Tensor) -> None:
        buffer = self._buffers.get(number)
        if buffer is None or buffer.numel() < tensor.nbytes:
            pinned = self.device.type == "cuda"
            buffer = self._buffers[number] = torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=pinned)
        buffer[: tensor.nbytes].copy_(tensor.contiguous().view(-1).view(torch.uint8), non_blocking=True)
        self._shapes[number] = tuple(tensor.shape), tensor.dtype

    def get(self, number: int) -> Tensor:
        shape, dtype = self._shapes[number]
        nbytes = int(np.prod(shape)) * dtype.itemsize
        raw = self._buffers[number][:nbytes].to(self.device, non_blocking=True, copy=True)
        return raw.view(dtype).view(shape)

    def drop(self, number: int) -> None:
        """The buffer is kept for the next step."""


class OnDisk:
    def __init__(self, device: torch.device, folder: Path) -> None:
        """folder: on the disk to use. Raises OSError if it cannot be written."""
        self.device = device
        self._file = tempfile.TemporaryFile(dir=folder)  # the file has no name, so it is deleted when the process ends
        self._places: dict[int, tuple[int, int]] = {}  # offset and size of each number's place
        self._shapes: dict[int, tuple[tuple[int, ...], torch.dtype]] = {}
        self._end = 0

    def put(self, number: int, tensor: Tensor) -> None:
        offset, room = self._places.get(number, (0, 0))
        if room < tensor.nbytes:
            offset, self._end = self._end, self._end + tensor.nbytes
            self._places[number] = offset, tensor.nbytes
        self._shapes[number] = tuple(tensor.shape), tensor.dtype
        self._file.seek(offset)
        self._file.write(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)

    def get(self, number: int) -> Tensor:
        shape, dtype = self._shapes[number]
        raw = torch.empty(int(np.prod(shape)) * dtype.itemsize, dtype=torch.uint8)
        self._file.seek(self._places[number][0])
        if self._file.readinto(raw.numpy().data) != raw.numel():
            raise OSError("The file that block inputs were written to has become shorter.")
        return raw.to(self.device).view(dtype).view(shape)

    def drop(self, number: int) -> None:
        """The place in the file is kept for the next step."""


def kept(place: str, device: torch.device, folder: Path) -> Kept:
    """The storage for one of DEVICE, RAM or DISK. folder: where a file may be created."""
    if place == RAM:
        return InRam(device)
    return OnDisk(device, folder) if place == DISK else OnDevice()
