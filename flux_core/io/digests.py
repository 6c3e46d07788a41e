"""SHA-256 of files, read once for each version of a file. Uses no formats.

A file counts as unchanged while its size and its time of modification stay the same.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

_BLOCK = 1 << 20


class Digests:
    """The digests computed so far. Safe to use from several threads."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int, int], str] = {}
        self._lock = threading.Lock()

    def of(self, path: Path) -> str:
        """64 hexadecimal digits. Reads the whole file the first time. Raises OSError."""
        stat = path.stat()
        key = path, stat.st_size, stat.st_mtime_ns
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = digest(path)
            with self._lock:
                self._known[key] = known
        return known


def digest(path: Path) -> str:
    """64 hexadecimal digits. Raises OSError."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()
