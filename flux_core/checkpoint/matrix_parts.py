"""Combines one weight and the tensors beside it: codes first, then the tensors with which they are decoded.

Every side tensor is checked against the shape of the codes. Small ones are read here: single numbers, and the file's
own descriptions in JSON.

Independent of: which quantisations there are.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ..errors import FileFormatError
from ..quant.encoding import Encoding, Side
from .reader import reader_of
from .stored import Range, Stored, TensorEntry, WeightFile

MAX_STATEMENT = 1 << 16  # bytes of JSON about one layer
FLOATS = {"F64": "<d", "F32": "<f", "F16": "<e", "BF16": "<f"}  # how `struct` writes them
INSTEAD = "Take a GGUF, fp8 or int8 file of the same model (sluice convert makes them of a bf16 one)."

Statement = Mapping[str, Any]


class UnreadableScheme(FileFormatError):
    """The file is intact, but its quantisation cannot be read here. The text names it and an alternative."""


class Matrix:
    """Collects the codes of one layer and the tensors beside them."""

    def __init__(self, file: WeightFile, layer: str, codes: TensorEntry) -> None:
        self.file, self.layer, self.codes = file, layer, codes
        self.ranges: list[Range] = [(codes.offset, codes.nbytes)]
        self.sides: list[Side] = []
        self.end = codes.nbytes
        self.used: set[str] = set()

    @property
    def name(self) -> str:
        return f"{self.file.path.name}: {self.layer}.weight"

    def entry(self, suffix: str) -> TensorEntry | None:
        return self.file.entries.get(self.layer + suffix)

    def add(
        self,
        role: str,
        suffix: str,
        shapes: Sequence[tuple[int, ...]],
        formats: Sequence[str] = tuple(FLOATS),
        block: int = 0,
        optional: bool = False,
    ) -> None:
        """The side tensor of this name, with one of these shapes and formats; U8 may contain the bytes of an fp8
        format.

        Raises FileFormatError if it is missing, or of another kind.
        """
        entry = self.entry(suffix)
        if entry is None:
            if optional:
                return
            raise FileFormatError(f"{self.name} has no {self.layer}{suffix}, which it needs. The file is incomplete.")
        format = formats[0] if entry.format == "U8" and formats[0].startswith("F8") else entry.format
        if format not in formats or entry.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise FileFormatError(
                f"{self.file.path.name}: {entry.name} is {entry.format} {list(entry.shape)}, but {self.layer}.weight "
                f"{list(self.codes.shape)} needs {' or '.join(formats)} {wanted}. The file is damaged: fetch it again."
            )
        self.sides.append(Side(role, format, entry.shape, self.end, block))
        self.ranges.append((entry.offset, entry.nbytes))
        self.end += entry.nbytes
        self.used.add(suffix)

    def single(self, suffix: str) -> float | None:
        """The number in a side tensor that is one float; None if it is missing or not one float."""
        entry = self.entry(suffix)
        if entry is None or entry.format not in FLOATS or prod(entry.shape) != 1:
            return None
        self.used.add(suffix)
        return number(self.file, entry)

    def stored(self, format: str, shape: tuple[int, ...], **options: Any) -> Stored:
        encoding = Encoding(format, sides=tuple(self.sides), **options)
        return Stored(f"{self.layer}.weight", shape, encoding, tuple(self.ranges), self.file)

    def unreadable(self, what: str) -> UnreadableScheme:
        return UnreadableScheme(f"{self.name} is stored as {what}, which cannot be read. {INSTEAD}")

    def contradicts(self, what: str) -> FileFormatError:
        codes = self.codes
        return FileFormatError(f"{self.name} is declared as {what} but is {codes.format} {list(codes.shape)}. "
                               "The file is damaged: fetch it again.")  # fmt: skip

    def sized(self, what: str, formats: Sequence[str]) -> tuple[int, int]:
        """Rows and columns of the codes, which must be a matrix in one of these formats."""
        if self.codes.format not in formats or len(self.codes.shape) != 2 or 0 in self.codes.shape:
            raise self.contradicts(what)
        return self.codes.shape[0], self.codes.shape[1]


def one_or_rows(*rows: int) -> list[tuple[int, ...]]:
    """The shapes of one number, and of one for each row."""
    return [(), (1,), (1, 1), *((count,) for count in rows), *((count, 1) for count in rows)]


def number(file: WeightFile, entry: TensorEntry) -> float:
    """The value of a factor of one float, in float32 as in ComfyUI. Raises FileFormatError for 0, NaN and infinity."""
    raw = small_bytes(file, entry)
    value = struct.unpack(FLOATS[entry.format], raw if entry.format != "BF16" else b"\0\0" + raw)[0]
    if not math.isfinite(value):
        raise FileFormatError(
            f"{file.path.name}: {entry.name} is {value}, so no value of its matrix is finite. The file is damaged: "
            "fetch it again."
        )
    if value == 0:
        raise FileFormatError(
            f"{file.path.name}: {entry.name} is 0, so its whole matrix would be 0. The file is damaged: fetch it again."
        )
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def small_bytes(file: WeightFile, entry: TensorEntry) -> bytes:
    if entry.nbytes > MAX_STATEMENT:
        raise FileFormatError(f"{file.path.name}: {entry.name} is {entry.nbytes} bytes long. The file is damaged.")
    raw = bytearray(entry.nbytes)
    reader_of(file).read([(entry.offset, entry.nbytes)], memoryview(raw))
    return bytes(raw)


def parsed(file: WeightFile, name: str, text: str | bytes) -> Statement:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise FileFormatError(f"{file.path.name}: {name} is not a JSON object. The file is damaged: fetch it again.")
    return parsed
