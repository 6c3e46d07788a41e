"""The files of a job that runs on another machine: its inputs, named by content, and its results, named here.

Inputs are found by their names in the prompt: any text that is the name of a file in the folders for inputs, outputs or
temporary files. Results get their names and numbers here, because they are stored here; a job that is run again writes
the same files again.

Independent of: connections, the queue.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, SluiceError
from ..io.digests import Digests
from ..io.folders import Folders, annotated, confined
from ..io.paths import is_file
from ..io.saving import place, write_whole
from ..io.shards import shard_name

LARGEST_RESULT = 1 << 30  # bytes of one file
_REMEMBERED = 10_000  # results whose names are kept for a job that is run again
_NUMBERED = re.compile(r"(?P<name>.*?)_(?P<number>\d{5,})(?P<ending>_?\.[A-Za-z0-9]{1,8})", re.S)

Json = dict[str, Any]


class NeededFiles:
    """The files that other machines may fetch: files of jobs that were sent to them, by their digests."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._digests = Digests()
        self._offered: dict[str, Path] = {}

    def of(self, prompt: Mapping[str, Any], models: Iterable[str]) -> list[Json]:
        """{"folder", "name", "size", "sha256"} of each file that a prompt names. New files are read to compute the
        digest.
        """
        found = [(kind, name, path) for kind, name, path in self._inputs(prompt)]
        for model in models:
            category, _, name = model.partition("/")
            found += [(f"models/{category}", *one) for one in self._parts(category, name)]
        listed = []
        for folder, name, path in found:
            try:
                sha256, size = self._digests.of(path), path.stat().st_size
            except OSError as error:
                raise SluiceError(f"{path} cannot be read: {error.strerror}.") from error
            self._offered[sha256] = path
            listed.append({"folder": folder, "name": name, "size": size, "sha256": sha256})
        return listed

    def path(self, sha256: str) -> Path | None:
        """The file with a digest that was sent to a worker, if it is unchanged."""
        path = self._offered.get(sha256)
        return path if path is not None and path.is_file() and self._digests.of(path) == sha256 else None

    def _inputs(self, prompt: Mapping[str, Any]) -> Iterator[tuple[str, str, Path]]:
        roots = {"input": self._folders.input, "output": self._folders.output, "temp": self._folders.temp}
        texts = {
            value
            for node in prompt.values()
            for value in node.get("inputs", {}).values()
            if isinstance(value, str) and 0 < len(value) < 1000
        }
        for text in sorted(texts):
            name, kind = annotated(text)
            try:
                path = confined(roots[kind], name)
            except (InputError, ValueError):
                continue
            if is_file(path):
                yield kind, name, path

    def _parts(self, category: str, name: str) -> Iterator[tuple[str, Path]]:
        """All files of a model: a single file, or its shards and their index."""
        shard = shard_name(name)
        for part in [*shard.names, shard.index] if shard else [name]:
            path = self._folders.find(category, part)
            if path is not None and is_file(path):
                yield part, path


@dataclass
class _Incoming:
    about: Json
    data: bytearray


class Results:
    """Files that workers made, received for this server's folders. One for each worker and its session."""

    def __init__(self, folders: Folders, names: dict[tuple[str, int], Json]) -> None:
        """names: shared by all workers: the name here of the n-th file of a job."""
        self._roots = {"output": folders.output, "temp": folders.temp}
        self._by_job = names
        self._here: dict[tuple[str, str, str], Json] = {}  # (type, subfolder, filename) on the worker -> the same here
        self._coming: _Incoming | None = None

    def receive(self, about: Json, last: bool, data: bytes) -> None:
        """Receive a part of a file; the last part saves it. Raises SluiceError if it cannot be written, or for bad
        names.
        """
        if self._coming is None or self._coming.about != about:
            self._coming = _Incoming(about, bytearray())
        self._coming.data += data
        if len(self._coming.data) > LARGEST_RESULT:
            self._coming = None
            raise SluiceError(f"A result is larger than {LARGEST_RESULT >> 30} GiB.")
        if last:
            whole, self._coming = bytes(self._coming.data), None
            self._save(about, whole)

    def _save(self, about: Json, data: bytes) -> None:
        kind, subfolder, filename = (str(about[key]) for key in ("type", "subfolder", "filename"))
        root = self._roots.get(kind)
        if root is None or not filename or os.path.basename(filename.replace("\\", "/")) != filename:
            raise SluiceError(f"A worker sent a file with the name {filename[:100]!r} for the folder {kind[:20]!r}.")
        key = str(about["prompt_id"]), int(about["index"])
        known = self._by_job.get(key)
        if known is not None and known["type"] == kind:  # the job is run again
            write_whole(confined(root, os.path.join(known["subfolder"], known["filename"])), data)
        else:
            numbered = _NUMBERED.fullmatch(filename)
            stem, dot, ending = filename.rpartition(".")
            name, suffix = (numbered["name"], numbered["ending"]) if numbered else (stem, dot + ending)
            where = place(f"{subfolder}/{name}" if subfolder else name, root)
            known = {"filename": where.save(data, suffix=suffix), "subfolder": where.subfolder, "type": kind}
            self._by_job[key] = known
            while len(self._by_job) > _REMEMBERED:
                del self._by_job[next(iter(self._by_job))]
        self._here[kind, subfolder, filename] = known

    def renamed(self, message: Any) -> Any:
        """A worker's message with the names that its files have here."""
        if isinstance(message, dict):
            try:
                known = self._here.get((message["type"], message.get("subfolder", ""), message["filename"]))
            except (KeyError, TypeError):
                known = None
            return {**message, **known} if known else {key: self.renamed(value) for key, value in message.items()}
        return [self.renamed(one) for one in message] if isinstance(message, list) else message
