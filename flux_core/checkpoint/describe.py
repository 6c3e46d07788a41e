"""The facts that `inspect` prints about a weight file, as data and as text.

Independent of: how the file was read, the command line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from ..quant.encoding import Encoding
from .detect import detect
from .files import open_weights
from .kinds import KINDS, Detected
from .stored import WeightFile

LONGEST_METADATA = 200  # characters; trainers store whole configurations
TOLD = {  # the entries of the metadata that are shown
    "general.name": "name", "modelspec.title": "title", "ss_output_name": "title given",
    "modelspec.trigger_phrase": "trigger phrase", "ss_base_model_version": "trained on",
}  # fmt: skip


def describe(path: str | Path) -> dict[str, Any]:
    """All facts in the header, as JSON-ready data. Raises the errors of `open_weights`."""
    file = open_weights(path)
    found = detect(file)
    kind = KINDS[found.kind]
    return {
        "path": str(file.path),
        "container": _container(file),
        "kind": found.kind,
        "noun": found.noun,
        "node": kind.node,
        "folder": kind.folder,
        "size_bytes": file.size,
        "tensors": len(file.entries),
        "parameters": _parameters(file, found),
        "formats": _formats(file, found),
        "facts": dict(found.facts),
        "parts": _parts(found),
        "refusals": dict(found.refusals),
        "metadata": {key: text[:LONGEST_METADATA] for key, text in sorted(file.metadata.items())},
    }


def as_text(facts: dict[str, Any]) -> str:
    """The result of `describe` as text."""
    rows = [("file", f"{facts['container']}, {_size(facts['size_bytes'])}, {facts['tensors']:,} tensors, "
                     f"{facts['parameters']:,} parameters")]  # fmt: skip
    rows += [(name, _extent(row)) for name, row in facts["formats"].items()]
    rows += [(name.replace("_", " "), _plain(value)) for name, value in facts["facts"].items() if value != ""]
    rows += [("cannot be used", reason) for reason in facts["refusals"].values()]
    if len(facts["parts"]) > 1:
        rows += [(f"holds {name}", _extent(part)) for name, part in facts["parts"].items()]
    rows += [(label, _line(facts["metadata"][key])) for key, label in TOLD.items() if facts["metadata"].get(key)]
    if facts["node"]:
        rows.append(("belongs in", f"models/{facts['folder']}, loaded by {facts['node']}"))
    return "\n".join([f"{Path(facts['path']).name}: {facts['noun']}", *(f"  {name:<18}{text}" for name, text in rows)])


def _container(file: WeightFile) -> str:
    return file.container if len(file.files) == 1 else f"{len(file.files)} shards of {file.container}"


def _parameters(file: WeightFile, found: Detected) -> int:
    """The number of parameters of the file's models; for a file without models, of all its tensors."""
    if found.parts:
        return sum(stored.numel for part in found.parts.values() for stored in part.values())
    return sum(prod(entry.shape) for entry in file.entries.values())


def _formats(file: WeightFile, found: Detected) -> dict[str, dict[str, int]]:
    """The number of tensors per format: for a model by their encodings, otherwise by the formats in the header."""
    tensors: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for stored in (stored for part in found.parts.values() for stored in part.values()):
        for name, size in _ways(stored.encoding, stored.nbytes):
            tensors[name] += 1
            nbytes[name] += size
    for entry in () if found.parts else file.entries.values():
        tensors[entry.format] += 1
        nbytes[entry.format] += entry.nbytes
    return {name: {"tensors": tensors[name], "bytes": size} for name, size in nbytes.most_common()}


def _ways(encoding: Encoding, nbytes: int) -> Iterator[tuple[str, int]]:
    """The readable names of the formats in which a matrix, or each of its parts, is stored."""
    if encoding.parts:
        for part in encoding.parts:
            yield from _ways(part.encoding, part.nbytes)
        return
    words = [encoding.format]
    if encoding.scale is not None:
        words.append("scaled")
    if encoding.rotation:
        words.append(f"rotated by {encoding.rotation}")
    if encoding.side("nested_absmax") is not None:
        words.append("nested")
    yield ", ".join(words), nbytes


def _parts(found: Detected) -> dict[str, dict[str, int]]:
    return {
        name: {"tensors": len(tensors), "bytes": sum(stored.nbytes for stored in tensors.values())}
        for name, tensors in found.parts.items()
    }


def _plain(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _line(text: str) -> str:
    """A text from a file as one line without control characters for a terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _extent(row: dict[str, int]) -> str:
    return f"{row['tensors']:,} tensors, {_size(row['bytes'])}"


def _size(nbytes: int) -> str:
    """A size with three digits, in the units of memory."""
    power = max(p for p in range(4) if nbytes >= 1024**p or p == 0)
    value = nbytes / 1024**power
    digits = 0 if power == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
