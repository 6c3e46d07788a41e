"""Textual inversion: the vectors of an `embedding:name`, read from .safetensors files.

Finds a name in the embeddings folders and picks the tensor meant for one encoder. Pickled files (.pt, .bin) may run
code when opened, so they are refused by name. Uses no tokenizer, no encoder and no prompt.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.files import open_weights
from ..checkpoint.reader import read_into
from ..checkpoint.stored import TensorEntry, WeightFile, whole
from ..errors import FileFormatError
from .tokenizer import Lookup, Vector

ENDINGS = ("", ".safetensors", ".pt", ".bin")
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def lookup(folders: Sequence[Path], encoder: str) -> Lookup:
    """A function that returns the rows of a name for one encoder: "clip_l" or "t5xxl".

    It returns None for a name without a file, and raises FileFormatError for a file that cannot be used.
    """

    def rows(name: str) -> Sequence[Vector] | None:
        path = find(name, folders)
        if path is None:
            return None
        if path.suffix.lower() != ".safetensors":
            raise FileFormatError(
                f"The embedding {path} is not a .safetensors file. Other formats may run code when they are opened "
                "and are not read: get it as .safetensors, or convert it."
            )
        status = path.stat()
        return _read(path, encoder, status.st_size, status.st_mtime_ns)

    return rows


def find(name: str, folders: Iterable[Path]) -> Path | None:
    """The file of a name, with or without its ending, in the folders or below them; never outside."""
    for root in folders:
        for folder in _folders_below(root):
            for ending in ENDINGS:
                path = Path(os.path.abspath(folder / f"{name}{ending}"))
                if path.is_relative_to(os.path.abspath(folder)) and path.is_file():
                    return path
    return None


def _folders_below(root: Path) -> Iterator[Path]:
    for place, subfolders, _ in os.walk(root, followlinks=True):
        here = Path(os.path.realpath(place))
        # A link to a folder that contains it would lead to an endless walk.
        subfolders[:] = sorted(s for s in subfolders if not here.is_relative_to(os.path.realpath(here / s)))
        yield Path(place)


@lru_cache(maxsize=64)
def _read(path: Path, encoder: str, size: int, mtime_ns: int) -> tuple[Vector, ...]:
    """All rows of the tensor for this encoder. Size and time are parameters so that a changed file is read again."""
    file = open_weights(path)
    tensors = [_values(file, entry) for entry in _chosen(file, encoder)]
    source = (file.identity, encoder)
    rows = [row for tensor in tensors for row in tensor.reshape(-1, tensor.shape[-1])]
    return tuple(Vector(source, number, row) for number, row in enumerate(rows))


def _chosen(file: WeightFile, encoder: str) -> list[TensorEntry]:
    """The tensor named like the encoder; else the tensors in a LoRA file; else the first tensor."""
    if encoder in file.entries:
        return [file.entries[encoder]]
    for ending in (".string_to_param.*", f".{encoder}"):
        bundled = [e for name, e in file.entries.items() if name.startswith("bundle_emb.") and name.endswith(ending)]
        if bundled:
            return bundled
    if not file.entries:
        raise FileFormatError(f"The embedding {file.path} contains no tensor. Fetch it again.")
    return [min(file.entries.values(), key=lambda entry: entry.offset)]


def _values(file: WeightFile, entry: TensorEntry) -> Tensor:
    """One tensor as float32, at least one-dimensional."""
    if entry.format not in _DTYPES or not entry.shape or not entry.nbytes:
        raise FileFormatError(
            f"The embedding {file.path} contains {entry.name} as {entry.format} {list(entry.shape)}, "
            "but rows of floating-point numbers are needed."
        )
    buffer = bytearray(entry.nbytes)
    read_into(whole(file, entry), memoryview(buffer))
    return torch.frombuffer(buffer, dtype=_DTYPES[entry.format]).reshape(entry.shape).float()
