"""The safetensors header, read and checked.

    +--------+----------------------------+--------------------------------------------+
    | 8 byte | n bytes of JSON            | tensor bytes, one after the other, no gaps  |
    | n, LE  | {name: dtype, shape,       |                                            |
    |        |  data_offsets: [from, to]} |                                            |
    +--------+----------------------------+--------------------------------------------+

A header that contradicts itself or the file's size is refused with a message that names the place. Nothing is executed
or mapped; only the header is read. Format: https://huggingface.co/docs/safetensors.

Independent of: what the tensors mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from ..errors import FileFormatError
from ..quant.sizes import SAFETENSORS
from .magic import SAFETENSORS_HINT, seems
from .stored import TensorEntry

MAX_HEADER = 100_000_000  # the limit of the safetensors library itself; FLUX.1-dev has 67 kB
MAX_DIMS, MAX_SIDE = 16, 1 << 40


def read_header(stream: BinaryIO, path: Path, size: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The entries (in file order, offsets from the start of the file) and the metadata of a safetensors file.

    Raises FileFormatError for anything that is not a valid safetensors file of exactly this size.
    """
    start = stream.read(80)
    if size == 0:
        raise FileFormatError(f"{path} is empty (0 bytes): the download or copy failed. Fetch it again.")
    length = int.from_bytes(start[:8], "little")
    if seems(start) not in (None, "a safetensors file") or size < 10:
        looks = seems(start) or f"a file too short for any format ({size} bytes)"
        raise FileFormatError(f"{path.name} is not a safetensors file; it looks like {looks}. {SAFETENSORS_HINT}")
    if length > MAX_HEADER or length > size - 8:
        raise FileFormatError(_wrong_length(path, size, length, start))
    stream.seek(8)
    text = stream.read(length)
    table, metadata = _parse(text, path)
    entries = [_entry(name, line, path, 8 + length) for name, line in table.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    _check_ranges(entries, path, 8 + length, size)
    return {entry.name: entry for entry in entries}, metadata


def _wrong_length(path: Path, size: int, length: int, start: bytes) -> str:
    if start[8:9] == b"{" and length <= MAX_HEADER:
        return (
            f"{path.name} is cut short: its header alone takes {length} bytes and the whole file has {size}. "
            "Fetch it again."
        )
    return (
        f"{path.name} is not a safetensors file: its first 8 bytes declare a header of {length} bytes, but the file "
        f"has {size} (at most {MAX_HEADER} are allowed). {SAFETENSORS_HINT}"
    )


def _parse(text: bytes, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Header bytes -> (name -> line, metadata)."""
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except _Duplicate as error:
        raise FileFormatError(f"{path.name}: its header names {_short(error.key)} twice. It is damaged.") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else "it is not valid JSON"
        raise FileFormatError(
            f"{path.name} is damaged or not a safetensors file: the header cannot be read, {reason}. Fetch it again."
        ) from None
    if not isinstance(table, dict):
        raise FileFormatError(f"{path.name}: the header is not a table of tensors. {SAFETENSORS_HINT}")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise FileFormatError(f"{path.name}: __metadata__ in the header is not a table of texts. The file is damaged.")
    return table, {_printable(key): _printable(value) for key, value in metadata.items() if isinstance(value, str)}


class _Duplicate(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise _Duplicate(key)
        table[key] = value
    return table


def _entry(name: str, line: Any, path: Path, data_start: int) -> TensorEntry:
    """One line of the header, with its size checked against its shape."""
    where = f"{path.name}, tensor {_short(name)}"
    if not isinstance(line, Mapping):
        raise FileFormatError(f"{where}: the header has no dtype, shape and data_offsets for it. The file is damaged.")
    dtype, shape, offsets = line.get("dtype"), line.get("shape"), line.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SAFETENSORS:
        raise FileFormatError(f"{where}: unknown dtype {_short(dtype)}; known are {', '.join(sorted(SAFETENSORS))}.")
    if not (_counts(shape) and len(shape) <= MAX_DIMS and all(side <= MAX_SIDE for side in shape)):
        raise FileFormatError(f"{where}: {_short(shape)} is not a shape. The file is damaged.")
    if not (_counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise FileFormatError(f"{where}: {_short(offsets)} are not data_offsets. The file is damaged.")
    first, last = offsets
    values, nbytes = SAFETENSORS[dtype]
    if (last - first) * values != prod(shape) * nbytes:
        raise FileFormatError(
            f"{where}: {dtype} {list(shape)} takes {prod(shape) * nbytes // values} bytes, but its range in the file "
            f"has {_short(last - first)}. The file is damaged."
        )
    return TensorEntry(name, dtype, tuple(shape), data_start + first, last - first)


def _check_ranges(entries: list[TensorEntry], path: Path, data_start: int, size: int) -> None:
    """Check that the ranges cover the rest of the file exactly: no overlap, no gap, no byte left over."""
    end = data_start
    for entry in entries:
        if entry.offset != end:
            what = "overlaps the tensor before it" if entry.offset < end else "leaves a gap before it"
            raise FileFormatError(f"{path.name}: the range of {_short(entry.name)} {what}. The file is damaged.")
        end += entry.nbytes
    if end > size:
        raise FileFormatError(
            f"{path.name} is cut short: its tensors end at byte {_short(end)}, the file at byte {size}. "
            "Fetch it again; the download is incomplete."
        )
    if end < size:
        raise FileFormatError(f"{path.name} has {size - end} bytes after its last tensor. The file is damaged.")


def _counts(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of non-negative whole numbers (true and false do not count)."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _printable(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON may contain and a terminal cannot show."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _short(value: Any) -> str:
    """A value from a possibly hostile file, short enough for a sentence."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**30 else "a number that is far too large"
    elif isinstance(value, (list, Mapping)):
        text = f"[{', '.join(_short(item) for item in value[:8])}]" if isinstance(value, list) else "a table"
    else:
        text = str(value)
    return text if len(text) <= 100 else text[:99] + "…"
