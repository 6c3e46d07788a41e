"""The GGUF header (version 2 and 3), read and checked.

    "GGUF" | u32 version | u64 tensors | u64 pairs
    pairs    x (string key, u32 type, value)
    tensors  x (string name, u32 dims, u64 side[dims] fastest first, u32 ggml type, u64 offset)
    padding to general.alignment (32), then the tensor bytes; offsets count from there

Strings are u64 length + UTF-8. ComfyUI's FLUX files flatten shapes that ggml cannot hold and keep the real one under
`comfy.gguf.orig_shape.<tensor>`. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

Independent of: what the tensors mean, how blocks decode.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import BinaryIO

from ..errors import FileFormatError
from ..quant.sizes import nbytes_of
from .stored import TensorEntry

MAX_HEADER = 256 << 20  # a tokenizer of 250,000 words takes 10 MB
MAX_DIMS, MAX_SIDE = 8, 1 << 40
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."

# ggml type number -> format
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    30: "BF16", 39: "MXFP4", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    29: "IQ1_M", 40: "NVFP4_GGUF",
}  # fmt: skip
UNREADABLE = {
    9: "Q8_1", 15: "Q8_K", 34: "TQ1_0", 35: "TQ2_0",
}  # fmt: skip
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]


def read_header(stream: BinaryIO, path: Path, size: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The entries (in file order, offsets from the start of the file) and the metadata of a GGUF file.

    Metadata values are given as text; arrays are left out (tokenizer tables) unless they are short ones of numbers.
    Raises FileFormatError for anything that is not a readable GGUF file of this size.
    """
    cursor = Cursor(stream, path, size)
    if cursor.take(4) != b"GGUF":
        raise FileFormatError(f"{path.name} is not a GGUF file. Fetch it again, or choose another file.")
    _check_version(cursor.number("I"), path)
    tensors, pairs = cursor.number("Q"), cursor.number("Q")
    values = dict(cursor.pair() for _ in range(cursor.count(pairs, 12, "metadata entries")))
    lines = [cursor.tensor() for _ in range(cursor.count(tensors, 24, "tensors"))]
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise FileFormatError(f"{path.name}: general.alignment must be a power of two. The file is damaged.")
    data_start = -(-cursor.position // alignment) * alignment
    entries = _entries(lines, values, path, data_start, alignment)
    _check_ranges(list(entries.values()), path, size)
    return entries, {key: text for key, value in values.items() if (text := _text(value)) is not None}


def read_values(path: Path, names: Collection[str]) -> dict[str, Value]:
    """The metadata values of these names, including whole tables; missing names are left out.

    Raises FileFormatError, OSError.
    """
    with open(path, "rb") as stream:
        cursor = Cursor(stream, path, os.fstat(stream.fileno()).st_size)
        if cursor.take(4) != b"GGUF":
            return {}
        _check_version(cursor.number("I"), path)
        _, pairs = cursor.number("Q"), cursor.number("Q")
        found = (cursor.pair(names) for _ in range(cursor.count(pairs, 12, "metadata entries")))
        return {name: value for name, value in found if name in names and value is not None}


class Cursor:
    """Reads the header in sequence; every length is checked against the rest of the file before it is used."""

    def __init__(self, stream: BinaryIO, path: Path, size: int) -> None:
        self.stream, self.path, self.position = stream, path, 0
        self.limit = min(size, MAX_HEADER)
        self.stream.seek(0)

    def take(self, nbytes: int) -> bytes:
        self.skip(nbytes)
        data = self.stream.read(nbytes)
        if len(data) != nbytes:
            raise FileFormatError(f"{self.path.name} ended inside its header. Fetch it again.")
        return data

    def skip(self, nbytes: int) -> None:
        if nbytes > self.limit - self.position:
            raise FileFormatError(
                f"{self.path.name} is damaged or cut short: at byte {self.position} its header declares {nbytes} bytes "
                f"but {self.limit - self.position} are left. Fetch it again."
            )
        self.position += nbytes

    def number(self, code: str) -> int:
        value = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return int(value)

    def count(self, number: int, least: int, noun: str) -> int:
        """Check that `number` items of at least `least` bytes each fit in the rest of the file."""
        if number * least > self.limit - self.position:
            raise FileFormatError(
                f"{self.path.name} is damaged or cut short: {number} {noun} do not fit in the rest of the file. "
                "Fetch it again."
            )
        return number

    def string(self) -> str:
        data = self.take(self.number("Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise FileFormatError(
                f"{self.path.name}: a name in the header is not UTF-8. The file is damaged."
            ) from None

    def pair(self, whole: Collection[str] = ()) -> tuple[str, Value | None]:
        """A name and its value; arrays of any length for the names in `whole`."""
        name = self.string()
        return name, self.value(self.number("I"), name in whole)

    def value(self, kind: int, whole: bool = False) -> Value | None:
        """One metadata value; None for an array that is not needed (it is skipped)."""
        if kind in SCALARS:
            return self.scalar(kind)
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise FileFormatError(f"{self.path.name}: unknown metadata type {kind}. The file is damaged or too new.")
        kind, length = self.number("I"), self.number("Q")
        if kind == STRING and whole:
            return tuple(self.string() for _ in range(self.count(length, 8, "texts")))
        if kind == STRING:
            for _ in range(self.count(length, 8, "texts")):
                nbytes = self.number("Q")
                self.skip(nbytes)
                self.stream.seek(nbytes, 1)
            return None
        if kind not in SCALARS:
            raise FileFormatError(f"{self.path.name}: an array of type {kind} in the metadata. The file is damaged.")
        width = struct.calcsize("<" + SCALARS[kind])
        if self.count(length, width, "numbers") > MAX_DIMS and not whole:
            self.skip(length * width)
            self.stream.seek(length * width, 1)
            return None
        code = SCALARS[kind].replace("?", "B")
        return tuple(struct.unpack(f"<{length}{code}", self.take(length * width)))

    def scalar(self, kind: int) -> Scalar:
        code = "<" + SCALARS[kind].replace("?", "B")
        value: int | float = struct.unpack(code, self.take(struct.calcsize(code)))[0]
        return bool(value) if SCALARS[kind] == "?" else value

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape with rows first, ggml type, offset)."""
        name, dims = self.string(), self.number("I")
        if dims > MAX_DIMS:
            raise FileFormatError(f"{self.path.name}: a tensor of {dims} dimensions. The file is damaged.")
        sides = [self.number("Q") for _ in range(dims)]
        if any(side > MAX_SIDE for side in sides):
            raise FileFormatError(
                f"{self.path.name}: a tensor with {max(sides)} values along one dimension. The file is damaged."
            )
        return name, tuple(reversed(sides)), self.number("I"), self.number("Q")


def _check_version(version: int, path: Path) -> None:
    if version in (2, 3):
        return
    if version & 0xFFFF == 0:
        raise FileFormatError(f"{path.name} is a big-endian GGUF file; only little-endian ones can be read.")
    raise FileFormatError(f"{path.name} is GGUF version {version}; 2 and 3 can be read.")


def _entries(
    lines: list[tuple[str, tuple[int, ...], int, int]],
    values: dict[str, Value | None],
    path: Path,
    data_start: int,
    alignment: int,
) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for name, shape, kind, offset in lines:
        where = f"{path.name}, tensor {name[:80]!r}"
        if name in entries:
            raise FileFormatError(f"{where}: named twice in the header. The file is damaged.")
        if kind not in TYPES:
            called = UNREADABLE.get(kind, f"number {kind}")
            known = ", ".join(TYPES.values())
            raise FileFormatError(f"{where}: stored as {called}, which cannot be read. {known} can.")
        if offset % alignment:
            raise FileFormatError(
                f"{where}: starts at {offset}, which is not a multiple of {alignment}. The file is damaged."
            )
        try:
            nbytes = nbytes_of(TYPES[kind], shape)
        except ValueError as error:
            raise FileFormatError(f"{where}: {error} ({TYPES[kind]}). The file is damaged.") from None
        original = values.get(ORIGINAL_SHAPE + name)
        if original is not None:
            shape = _original_shape(original, shape, where)
        entries[name] = TensorEntry(name, TYPES[kind], shape, data_start + offset, nbytes)
    return entries


def _original_shape(original: Value, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    sides = original if isinstance(original, tuple) else (original,)
    whole = tuple(side for side in sides if isinstance(side, int) and side >= 0)
    if len(whole) != len(sides) or prod(whole) != prod(shape):
        raise FileFormatError(f"{where}: {ORIGINAL_SHAPE}… contradicts its {prod(shape)} values. The file is damaged.")
    return whole


def _check_ranges(entries: list[TensorEntry], path: Path, size: int) -> None:
    """Check that no tensor extends beyond the file or overlaps another; padding between tensors is allowed."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.offset < end:
            raise FileFormatError(f"{path.name}: tensor {entry.name[:80]!r} overlaps another. The file is damaged.")
        end = entry.offset + entry.nbytes
        if end > size:
            raise FileFormatError(
                f"{path.name} is cut short: tensor {entry.name[:80]!r} ends at byte {end}, the file at byte {size}. "
                "Fetch it again; the download is incomplete."
            )


def _text(value: Value | None) -> str | None:
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    return None if value is None else str(value)
