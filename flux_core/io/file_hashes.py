"""SHA-256 of model files, computed once: kept by path, size and modification time in a JSON file of the user folder.

A file of 12 GB takes ten to thirty seconds, so large files are hashed while nothing else runs, and `known` returns None
until then.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from .saving import write_whole

SMALL = 64 << 20  # smaller files are hashed at once when needed
CHUNK = 4 << 20


class FileHashes:
    """The hashes computed so far. Safe to use from any thread. A cache file that cannot be read is ignored."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        try:
            kept = json.loads(file.read_bytes())
            self._kept: dict[str, list[object]] = kept if isinstance(kept, dict) else {}
        except (OSError, ValueError):
            self._kept = {}

    def known(self, path: Path) -> str | None:
        """64 hexadecimal digits; None if the file is large and has not been hashed, or does not exist."""
        try:
            status = path.stat()
        except OSError:
            return None
        kept = self._kept.get(str(path))
        if isinstance(kept, list) and kept[:2] == [status.st_size, status.st_mtime_ns]:
            return str(kept[2])
        return self.compute(path) if status.st_size <= SMALL else None

    def compute(self, path: Path, stop: Callable[[], bool] = lambda: False) -> str | None:
        """Hash the whole file and keep the result; None if `stop` returns true in between, or it cannot be read."""
        hashed = hashlib.sha256()
        try:
            status = path.stat()
            with path.open("rb") as file:
                while data := file.read(CHUNK):
                    if stop():
                        return None
                    hashed.update(data)
        except OSError:
            return None
        with self._lock:
            self._kept[str(path)] = [status.st_size, status.st_mtime_ns, hashed.hexdigest()]
            self._save()
        return hashed.hexdigest()

    def compute_missing(self, paths: Iterable[Path], stop: Callable[[], bool] = lambda: False) -> None:
        """Hash the files that are not known yet, until `stop` returns true."""
        for path in paths:
            if not stop() and self.known(path) is None:
                self.compute(path, stop)

    def _save(self) -> None:
        if not self._file.parents[1].is_dir():  # a command line of one run makes no user folder
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, json.dumps(self._kept, indent=0).encode())
        except OSError:
            pass


def hashes_of(user: Path) -> FileHashes:
    """Those of a user folder."""
    return FileHashes(user / "sluice" / "hashes.json")
