"""From a path to a checked `WeightFile`: safetensors or GGUF by the first bytes, one file or several shards.

Independent of: what a model is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import FileFormatError, MissingFileError, SluiceError
from ..io.paths import openable
from ..io.shards import INDEX, first_of_each, shard_name
from . import gguf_file, safetensors_file
from .stored import Shard, TensorEntry, WeightFile

MAX_INDEX = 64 << 20
ENDINGS = (".safetensors", ".sft", ".gguf")
QUANTISED = "_quantization_metadata"  # what ComfyUI writes in a header about the layers of this file
_READ = {"safetensors": safetensors_file.read_header, "GGUF": gguf_file.read_header}


def open_weights(path: str | Path) -> WeightFile:
    """Read and check the header of a weight file, or of every shard of one. No tensor is read.

    path: a file, any shard of a set, an index of shards, or a folder with one model. Raises MissingFileError if there
    is nothing or a shard is missing, FileFormatError if it is not a weight file or is damaged.
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(INDEX):
        return _open_shards(path, _names_of_index(path))
    shard = shard_name(path.name)
    if shard is not None and shard.count > 1:
        return _open_shards(path.with_name(shard.names[0]), shard.names)
    return _open_file(path)


def _open_file(path: Path) -> WeightFile:
    try:
        with open(openable(path), "rb") as stream:
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
    """A diffusers or transformers folder: one model, in one file or in shards."""
    indexes = sorted(folder.glob(f"*.safetensors{INDEX}"))
    files = [folder / name for name in first_of_each(p.name for p in folder.iterdir() if p.suffix in ENDINGS)]
    if len(indexes) == 1:
        return _open_shards(indexes[0], _names_of_index(indexes[0]))
    if len(files) == 1:
        return open_weights(files[0])
    raise FileFormatError(
        f"{folder} is a folder with {len(files)} weight files and {len(indexes)} indexes; only one model is allowed. "
        "Name the file, or the folder that holds just this model (for diffusers: its `transformer` folder)."
    )


def _open_shards(path: Path, names: Sequence[str]) -> WeightFile:
    """The shards of a model, one after another, as one file. They are in the folder of `path`, which is the path of the
    whole.
    """
    if missing := [name for name in names if not (path.parent / name).exists()]:
        raise MissingFileError(
            f"{path.parent} has only {len(names) - len(missing)} of the {len(names)} files of this model; "
            f"{missing[0]} is missing. Fetch all of them, or take a model in one file."
        )
    parts = [_open_file(path.parent / name) for name in names]
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    shards: list[Shard] = []
    start = 0
    for part in parts:
        if doubled := next((key for key in part.entries if key in entries), None):
            raise FileFormatError(f"{path.parent}: {doubled[:80]!r} is in two shards. Fetch the folder again.")
        entries |= {key: replace(entry, offset=entry.offset + start) for key, entry in part.entries.items()}
        metadata = _joined(metadata, part.metadata)
        shards.append((start, part.path, part.size, part.mtime_ns))
        start += part.size
    newest = max(mtime_ns for *_, mtime_ns in shards)
    return WeightFile(path, start, newest, entries, metadata, tuple(shards), parts[0].container)


def _joined(metadata: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """The combined metadata of two shards: entries per layer are merged, for all others the first shard counts."""
    both = {**more, **metadata}
    if QUANTISED in metadata and QUANTISED in more:
        try:
            layers = json.loads(metadata[QUANTISED])["layers"] | json.loads(more[QUANTISED])["layers"]
        except (ValueError, KeyError, TypeError):
            return both  # the reader reports the error
        both[QUANTISED] = json.dumps({"layers": layers})
    return both


def _names_of_index(index: Path) -> list[str]:
    try:
        if index.stat().st_size > MAX_INDEX:
            raise ValueError("too long")
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except FileNotFoundError as error:
        raise MissingFileError(f"There is no file {index}. Check the name, or put the file there.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{index} is not an index of safetensors shards. Fetch it again.") from error
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise FileFormatError(f"{index} must name files of its own folder. Fetch it again.")
    return names
