"""Weights of a module that come through a stream: their bytes are on the device for the length of a product.

The bytes pass through the device as they are stored; how they become a product, quant/held.py knows. What is decoded
first frees its slot before the product has begun. Knows no plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..checkpoint.load import rounding
from ..checkpoint.stored import Stored
from ..errors import FileFormatError
from ..models.linear import Linear
from ..quant.formats import PLAIN
from ..quant.fp8 import FP8
from ..quant.held import stored_weight
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


class StreamedBytes:
    """The bytes of one matrix, for each use: `with bytes() as raw`. `stream` is set while its model is open.

    May be asked for any number of times in a pass. Out of the order of the stream that is right too, but slow: the
    stream starts again there.
    """

    def __init__(self, name: str, number: int) -> None:
        """number: the matrix's number in the stream. name: for messages."""
        self.name, self.number = name, number
        self.stream: Stream | None = None

    @contextmanager
    def __call__(self) -> Iterator[Tensor]:
        """uint8 [bytes] on the device; when the context ends, other bytes may take their place."""
        stream = self.stream
        if stream is None:
            raise RuntimeError(f"{self.name} was asked for while its model is not open")
        place = stream.take(self.number)
        device: TorchDevice = stream.device  # type: ignore[assignment]
        try:
            yield device.tensor(place.slab)[place.offset : place.offset + place.nbytes]
        finally:
            stream.give_back(self.number)


def hold_matrices(
    module: nn.Module, tensors: Mapping[str, Stored], numbers: Mapping[str, int], round_to: torch.dtype | None = None
) -> list[StreamedBytes]:
    """Let the matrices named in `numbers` (name -> number in the stream) of a module on the meta device be streamed.

    What remains are its small tensors, which `checkpoint.load.bind` fills. Raises FileFormatError for one that is
    missing or of another shape.
    """
    streamed = []
    for name, number in numbers.items():
        path = name.rpartition(".")[0]
        linear = module.get_submodule(path)
        stored = tensors.get(name)
        assert isinstance(linear, Linear), name
        if stored is None or stored.shape != (linear.out_features, linear.in_features):
            there = f"has the shape {list(stored.shape)}" if stored else "is missing"
            file = next(iter(tensors.values())).file.path.name
            raise FileFormatError(f"{file} is damaged: {name} {there}. Fetch it again, or choose another file.")
        through = rounding(stored, round_to)
        streamed.append(StreamedBytes(name, number))
        through = through if rounds(stored, through) else None
        linear.weight, linear.held = None, stored_weight(stored.encoding, stored.shape, streamed[-1], through)
    return streamed


def rounds(stored: Stored, to: torch.dtype | None) -> bool:
    """Whether passing through `to` may change values: not for what is quantised, which is kept as it is."""
    if to is None or not stored.encoding.as_is or stored.format not in (*PLAIN, *FP8):
        return False
    return (PLAIN.get(stored.format) or FP8[stored.format]) != to
