"""Reads and writes small safetensors files as a whole: latents, upscale models, results of training.

Models of any size go through load.py instead, which reads only what it needs. Independent of: what the tensors mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..quant.formats import PLAIN, decode
from .files import open_weights
from .load import read
from .stored import whole

_NAMES = {dtype: name for name, dtype in PLAIN.items()}
_ALIGNMENT = 8  # bytes; the header is padded with spaces so that the tensors start aligned


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by its name, in its stored format. Raises the errors of `open_weights`."""
    file = open_weights(path)
    stored = {name: whole(file, entry) for name, entry in file.entries.items()}
    return {name: decode(read(one), one.encoding, one.shape) for name, one in stored.items()}


@dataclass(frozen=True)
class WholeFile:
    """The content of a file in parts, so that it is written without a second copy of the tensors in memory.

    head: 8 bytes of header length, and the header as JSON. The tensors follow one after another.
    """

    head: bytes
    tensors: Sequence[Tensor]

    @property
    def nbytes(self) -> int:
        return len(self.head) + sum(tensor.nbytes for tensor in self.tensors)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """The parts in order. A part shares the memory of its tensor if that is contiguous and on the CPU."""
        yield self.head
        for tensor in self.tensors:
            if tensor.numel():
                yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def whole_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> WholeFile:
    """The safetensors file with these tensors. They must not change before it is written."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position, ordered = 0, [(name, tensors[name]) for name in sorted(tensors)]
    for name, tensor in ordered:
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return WholeFile(len(text).to_bytes(8, "little") + text, [tensor for _, tensor in ordered])


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a small file."""
    return b"".join(whole_file(tensors, metadata))
