"""New weight files, written from front to back: the header first, as all sizes are known, then tensor after tensor.

A file appears under its name complete or not at all.

Independent of: what the tensors mean.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from ..checkpoint.gguf_file import TYPES
from ..io.saving import appearing
from .targets import ALIGNMENT, Written

GGUF_ALIGNMENT = 32
_NUMBERS = {format: number for number, format in TYPES.items()}


class Writer:
    """Takes the bytes of the tensors in their order."""

    def __init__(self, stream: BinaryIO, alignment: int) -> None:
        self._stream, self._alignment, self._written = stream, alignment, 0

    def tensor(self, tensor: Written, data: Iterator[Tensor]) -> Iterator[int]:
        """Write one tensor; yields how many bytes were written, piece by piece."""
        done = 0
        while done < tensor.nbytes:
            piece = next(data)
            self._stream.write(piece.numpy().data)
            done += piece.numel()
            yield piece.numel()
        assert done == tensor.nbytes, f"{tensor.name} has {done} bytes instead of {tensor.nbytes}"
        self._stream.write(bytes(-done % self._alignment))


@contextmanager
def safetensors_writer(path: Path, tensors: Sequence[Written], metadata: Mapping[str, str]) -> Iterator[Writer]:
    """A safetensors file of these tensors, in this order."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.format, "shape": list(tensor.shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with appearing(path) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        yield Writer(stream, 1)


@contextmanager
def gguf_writer(path: Path, tensors: Sequence[Written], metadata: Mapping[str, str | int]) -> Iterator[Writer]:
    """A GGUF file (version 3) of these tensors, in this order."""
    with appearing(path) as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            kind = struct.pack("<I", 4) + struct.pack("<I", value) if isinstance(value, int) else None
            stream.write(_text(key) + (kind or struct.pack("<I", 8) + _text(str(value))))
        offset = 0
        for tensor in tensors:
            sides = tuple(reversed(tensor.shape))
            stream.write(_text(tensor.name) + struct.pack("<I", len(sides)) + struct.pack(f"<{len(sides)}Q", *sides))
            stream.write(struct.pack("<IQ", _NUMBERS[tensor.format], offset))
            offset += -(-tensor.nbytes // GGUF_ALIGNMENT) * GGUF_ALIGNMENT
        stream.write(bytes(-stream.tell() % GGUF_ALIGNMENT))
        yield Writer(stream, GGUF_ALIGNMENT)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
