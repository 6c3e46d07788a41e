"""The content of a weight file as data: names, shapes, formats and byte ranges.

No tensor has been read: a `TensorEntry` is a line of a file's header, a `Stored` is one tensor of a model together with
its byte ranges. `reader.read_into` reads the bytes, `quant/formats.py` decodes them.

Independent of: torch, models, devices, or how any file format writes its header.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from ..errors import FileFormatError
from ..quant.encoding import Encoding, Part

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

    Shards are laid end to end: `files` has each with the offset at which it starts, and every entry is inside one. Two
    instances for the same file are different objects; compare their `identity`.
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
    """One tensor of a model as it is stored in a file; its ranges, concatenated in order, are the raw bytes.

    `encoding` describes how to decode them. `through` is the fp8 format to which every value is rounded first, as
    ComfyUI does with tensors of a scaled fp8 file that are not fp8.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    ranges: tuple[Range, ...]
    file: WeightFile
    through: str | None = None

    @property
    def format(self) -> str:
        """The format of the codes."""
        return self.encoding.format

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.ranges)

    @property
    def numel(self) -> int:
        return prod(self.shape)


def shard_at(files: Sequence[Shard], offset: int) -> int:
    """Index of the shard that holds the byte at `offset`."""
    return bisect_right(files, offset, key=lambda shard: shard[0]) - 1


def whole(file: WeightFile, entry: TensorEntry, name: str | None = None) -> Stored:
    """One line of a header as a tensor in the format that the header states."""
    ranges = ((entry.offset, entry.nbytes),)
    return Stored(name or entry.name, entry.shape, Encoding(entry.format), ranges, file)


def stack(name: str, parts: Sequence[Stored]) -> Stored:
    """Stack matrices (concatenate their rows), as a fused qkv matrix is made of three.

    Raises FileFormatError if their widths differ.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.shape[1:] != first.shape[1:]:
            raise FileFormatError(
                f"{first.file.path.name}: {first.name} {list(first.shape)} and {part.name} {list(part.shape)} are "
                f"parts of the matrix {name} but differ in width. Fetch the file again."
            )
    if len(parts) == 1:
        return replace(first, name=name)
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    ranges = tuple(range for part in parts for range in part.ranges)
    encoding = first.encoding
    if encoding.sides or encoding.parts or any(part.encoding != encoding for part in parts):
        below = tuple(Part(part.shape[0], part.nbytes, part.encoding) for part in parts)
        encoding = Encoding(first.format, parts=below)
    return Stored(name, shape, encoding, ranges, first.file, first.through)


def split(stored: Stored, count: int) -> list[Stored]:
    """The rows of a tensor in equal parts, as a fused qkv matrix is split.

    Raises FileFormatError if the number of rows is not divisible, or if the bytes of a row cannot be separated.
    """
    rows, remainder = divmod(stored.shape[0] if stored.shape else 0, count)
    if remainder or not rows or len(stored.ranges) != 1 or not stored.encoding.as_is:
        raise FileFormatError(
            f"{stored.file.path.name}: {stored.name} ({stored.format} {list(stored.shape)}) cannot be split into "
            f"{count}. Use a file that is not quantised."
        )
    (offset, nbytes), shape = stored.ranges[0], (rows, *stored.shape[1:])
    part = nbytes // count
    return [replace(stored, shape=shape, ranges=((offset + part * number, part),)) for number in range(count)]
