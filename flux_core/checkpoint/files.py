"""From a path to a checked `WeightFile`: safetensors or GGUF by their first bytes, or a folder of shards.

Does not know: what a model is.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from ..errors import FileFormatError, MissingFileError, SluiceError
from . import gguf_file, safetensors_file
from .stored import Shard, TensorEntry, WeightFile

MAX_INDEX = 64 << 20
_READ = {"safetensors": safetensors_file.read_header, "GGUF": gguf_file.read_header}


def open_weights(path: str | Path) -> WeightFile:
    """Read and check the header of a weight file (or of every shard of a folder). No tensor is read.

    Raises MissingFileError if there is nothing, FileFormatError if it is no weight file or a damaged one.
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(".index.json"):
        return _open_shards(path, path.parent)
    return _open_file(path)


def _open_file(path: Path) -> WeightFile:
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            container = "GGUF" if stream.read(4) == b"GGUF" else "safetensors"
            stream.seek(0)
            entries, metadata = _READ[container](stream, path, status.st_size)
    except FileNotFoundError as error:
        raise MissingFileError(f"There is no file {path}. Check the name, or put the file there.") from error
    except OSError as error:
        raise SluiceError(f"{path} cannot be read: {error.strerror or error}.") from error
    shard = (0, path, status.st_size, status.st_mtime_ns)
    return WeightFile(path, status.st_size, status.st_mtime_ns, entries, metadata, (shard,), container)


def _open_folder(folder: Path) -> WeightFile:
    """A diffusers or transformers folder: an index of shards, or exactly one weight file."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        return _open_shards(indexes[0], folder)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return _open_file(files[0])
    raise FileFormatError(
        f"{folder} is a folder with {len(files)} .safetensors files and {len(indexes)} indexes; one model is needed. "
        "Name the file, or the folder that holds just this model (for diffusers: its `transformer` folder)."
    )


def _open_shards(index: Path, folder: Path) -> WeightFile:
    """Lay the shards an index names end to end, so that they read as one file."""
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    shards: list[Shard] = []
    start = 0
    for name in _shard_names(index):
        part = _open_file(folder / name)
        if doubled := next((key for key in part.entries if key in entries), None):
            raise FileFormatError(f"{folder}: {doubled[:80]!r} is in two shards. Fetch the folder again.")
        entries |= {key: replace(entry, offset=entry.offset + start) for key, entry in part.entries.items()}
        metadata |= part.metadata
        shards.append((start, part.path, part.size, part.mtime_ns))
        start += part.size
    newest = max(mtime_ns for *_, mtime_ns in shards)
    return WeightFile(index, start, newest, entries, metadata, tuple(shards), "safetensors")


def _shard_names(index: Path) -> list[str]:
    try:
        if index.stat().st_size > MAX_INDEX:
            raise ValueError("too long")
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except FileNotFoundError as error:
        raise MissingFileError(f"There is no file {index}. Check the name, or put the file there.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{index} is no index of safetensors shards. Fetch it again.") from error
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise FileFormatError(f"{index} must name files of its own folder. Fetch it again.")
    return names
