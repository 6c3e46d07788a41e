"""Matrices of a module that lie in a stream: taken, decoded, given back.

The bytes pass through the device as they are stored; numbers are made of them just before the product, in scratch
memory that all matrices share. What is decoded frees its slot at once, before the product has begun. Knows no plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from ..checkpoint.load import rounding
from ..checkpoint.stored import Stored
from ..errors import FileFormatError
from ..models.linear import Linear
from ..quant.encoding import Encoding
from ..quant.formats import PLAIN, decode_into
from ..quant.fp8 import FP8, encode_fp8
from ..quant.workspace import scratch
from .device import Device, Slab
from .stream import Stream


class TorchDevice(Device, Protocol):
    """A device whose slabs are tensors."""

    place: torch.device

    def tensor(self, slab: Slab) -> Tensor:
        """The slab as bytes."""
        ...

    def moment(self) -> Callable[[], float]:
        """When the kernels queued so far are through: called, it waits for that and tells the seconds on a clock."""
        ...


class StreamedMatrix:
    """One matrix, lent out for the length of a multiplication (quant/linear.py: HeldMatrix)."""

    def __init__(self, stored: Stored, piece: int, round_to: torch.dtype | None = None) -> None:
        """round_to: the type every value passes through first, as if the file were stored in it."""
        self.stored, self.piece, self.round_to = stored, piece, round_to
        self.stream: Stream | None = None
        self._lent = False

    def take(self, dtype: torch.dtype) -> Tensor:
        if self.stream is None:
            raise RuntimeError(f"{self.stored.name} was asked for while its model is not open")
        place = self.stream.take(self.piece)
        device: TorchDevice = self.stream.device  # type: ignore[assignment]
        raw = device.tensor(place.slab)[place.offset : place.offset + place.nbytes]
        stored = self.stored
        if PLAIN.get(stored.format) == dtype and stored.encoding.as_is and self.round_to in (None, dtype):
            self._lent = True
            return raw.view(dtype).view(stored.shape)
        try:
            return self._decoded(raw, dtype)
        finally:
            self.stream.give_back(self.piece)

    def give_back(self) -> None:
        if self._lent and self.stream is not None:
            self._lent = False
            self.stream.give_back(self.piece)

    def _decoded(self, raw: Tensor, dtype: torch.dtype) -> Tensor:
        stored, shape = self.stored, self.stored.shape
        out = shared_scratch(shape, dtype, raw.device)
        if self.round_to is None:
            decode_into(raw, out, stored.encoding)
            return out
        exact = scratch("exact", shape, PLAIN.get(stored.format, torch.float32), raw.device)
        decode_into(raw, exact, stored.encoding)
        if self.round_to in FP8.values():
            name = next(name for name, fp8 in FP8.items() if fp8 == self.round_to)
            decode_into(encode_fp8(exact, name), out, Encoding(name))
            return out
        return out.copy_(exact.to(self.round_to))


def shared_scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One piece of memory for matrices of all types: only one is lent out at a time."""
    return scratch("lent", (prod(shape) * dtype.itemsize,), torch.uint8, device).view(dtype).view(shape)


def hold_matrices(
    module: nn.Module, tensors: Mapping[str, Stored], pieces: Mapping[str, int], round_to: torch.dtype | None = None
) -> list[StreamedMatrix]:
    """Take the matrices named in `pieces` (name -> number in the walk) out of a module on the meta device.

    What remains are its small tensors, which `binding.bind` fills. Raises FileFormatError for one that is missing or
    of another shape.
    """
    held = []
    for name, piece in pieces.items():
        path = name.rpartition(".")[0]
        linear = module.get_submodule(path)
        stored = tensors.get(name)
        assert isinstance(linear, Linear), name
        if stored is None or stored.shape != (linear.out_features, linear.in_features):
            there = f"has the shape {list(stored.shape)}" if stored else "is missing"
            file = next(iter(tensors.values())).file.path.name
            raise FileFormatError(f"{file} is damaged: {name} {there}. Fetch it again, or choose another file.")
        through = rounding(stored, round_to)
        matrix = StreamedMatrix(stored, piece, through if rounds(stored, through) else None)
        linear.weight, linear.held = None, matrix
        held.append(matrix)
    return held


def rounds(stored: Stored, to: torch.dtype | None) -> bool:
    """Whether passing through `to` may change values: not for what is quantised, which is kept as it is."""
    if to is None or not stored.encoding.as_is or stored.format not in (*PLAIN, *FP8):
        return False
    return (PLAIN.get(stored.format) or FP8[stored.format]) != to
