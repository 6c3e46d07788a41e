"""What lies in a weight file, as data: names, shapes, formats and byte ranges.

Nothing here has read a tensor: a `TensorEntry` is a line of a file's header, a `Stored` is one tensor of a model
together with the byte ranges that hold it. `reader.read_into` fetches the bytes, `quant/formats.py` decodes them.

Does not know: torch, models, devices, or how any file format writes its header.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..errors import FileFormatError

Range = tuple[int, int]  # (offset, nbytes)
Identity = tuple[str, int, int]  # (path, size, mtime_ns)
Shard = tuple[int, Path, int, int]  # (start, path, size, mtime_ns)


@dataclass(frozen=True)
class TensorEntry:
    """One line of a header. `offset` counts from the start of the file (of all files, for a sharded folder)."""

    name: str
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class WeightFile:
    """A file whose header was read and checked, or a folder of shards that reads as one file.

    Shards are laid end to end: `files` holds each with the offset at which it starts, and every entry lies inside one.
    Two instances of the same file are different objects; compare their `identity`.
    """

    path: Path
    size: int
    mtime_ns: int
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    files: tuple[Shard, ...]
    container: str  # "safetensors" or "GGUF"

    @property
    def identity(self) -> Identity:
        return str(self.path), self.size, self.mtime_ns

    def locate(self, offset: int) -> tuple[Path, int]:
        """Offset in the whole -> (the file on disk, offset inside it)."""
        index = shard_at(self.files, offset)
        return self.files[index][1], offset - self.files[index][0]


@dataclass(frozen=True)
class Stored:
    """One tensor of a model as it lies in a file; its ranges, concatenated in order, are the raw tensor.

    `scale` multiplies every value after decoding (scaled fp8), None means one. `through`: the fp8 format that every
    value passes through on its way, as ComfyUI keeps what is not fp8 in a scaled fp8 file.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    ranges: tuple[Range, ...]
    scale: float | None
    file: WeightFile
    through: str | None = None

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.ranges)

    @property
    def numel(self) -> int:
        return prod(self.shape)


def shard_at(files: Sequence[Shard], offset: int) -> int:
    """Index of the shard that holds the byte at `offset`."""
    return bisect_right(files, offset, key=lambda shard: shard[0]) - 1


def stack(name: str, file: WeightFile, entries: Sequence[TensorEntry], scales: Sequence[float | None] = ()) -> Stored:
    """Put tensors below one another (rows concatenated), as fused qkv matrices are made of three."""
    first = entries[0]
    for entry in entries[1:]:
        if entry.format != first.format or entry.shape[1:] != first.shape[1:]:
            raise FileFormatError(
                f"{file.path.name}: {first.name} ({first.format} {list(first.shape)}) and {entry.name} "
                f"({entry.format} {list(entry.shape)}) belong to one matrix, {name}, but cannot be joined. "
                "Use a file that stores all parts of a block in one format."
            )
    if len(set(scales)) > 1:
        raise FileFormatError(
            f"{file.path.name}: the parts of {name} carry different fp8 scales, so they cannot be joined into one "
            "matrix. Use a file in the original FLUX layout (double_blocks...), which scales it as a whole."
        )
    shape = first.shape if len(entries) == 1 else (sum(e.shape[0] for e in entries), *first.shape[1:])
    ranges = tuple((entry.offset, entry.nbytes) for entry in entries)
    return Stored(name, shape, first.format, ranges, scales[0] if scales else None, file)
