"""Weights of a module that are streamed: their bytes are on the device for the duration of one product.

The bytes arrive as they are stored; quant/held.py computes products from them. A weight that is decoded first frees its
slot before the product begins.
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
from ..quant.int8 import Integers
from .device import Device, Slab
from .stream import Stream


class TorchDevice(Device, Protocol):
    """A device whose slabs can be viewed as tensors."""

    place: torch.device

    def tensor(self, slab: Slab) -> Tensor:
        """The slab, uint8 [bytes]."""
        ...

    def completion(self) -> Callable[[], float]:
        """A function that waits for the kernels queued so far, and returns the time of their end in seconds."""
        ...


class StreamedBytes:
    """The bytes of one matrix, for each use: `with bytes() as raw`. `stream` is set while its model is open.

    The bytes may be used any number of times in a pass. A use out of the order of the schedule is correct but slow,
    because the stream starts again there.
    """

    def __init__(self, name: str, number: int) -> None:
        """number: of the matrix in the stream. name: for messages."""
        self.name, self.number = name, number
        self.stream: Stream | None = None

    @contextmanager
    def __call__(self) -> Iterator[Tensor]:
        """uint8 [bytes] on the device; after the context ends, the memory may hold another weight."""
        stream = self.stream
        if stream is None:
            raise RuntimeError(f"{self.name} was used while its model is not open")
        place = stream.take(self.number)
        device: TorchDevice = stream.device  # type: ignore[assignment]
        try:
            yield device.tensor(place.slab)[place.offset : place.offset + place.nbytes]
        finally:
            stream.release(self.number)


def hold_matrices(
    module: nn.Module,
    tensors: Mapping[str, Stored],
    numbers: Mapping[str, int],
    round_to: torch.dtype | None = None,
    integers: Integers | None = None,
) -> list[StreamedBytes]:
    """Replace matrices of a module on the meta device by streamed ones. numbers: name -> number in the stream.

    integers: multiplies what is stored as integers. The module's small tensors remain, for `checkpoint.load.bind` to
    fill. Raises FileFormatError for a matrix that is missing or has another shape.
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
        linear.weight = None
        linear.held = stored_weight(stored.encoding, stored.shape, streamed[-1], through, integers)
    return streamed


def rounds(stored: Stored, to: torch.dtype | None) -> bool:
    """Whether a conversion through the type `to` may change values. Quantised weights are never converted."""
    if to is None or not stored.encoding.as_is or stored.format not in (*PLAIN, *FP8):
        return False
    return (PLAIN.get(stored.format) or FP8[stored.format]) != to
