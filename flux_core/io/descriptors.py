"""Functions of POSIX systems for an open file, with substitutes: reads at an offset, hints about the page cache."""

from __future__ import annotations

import os
import sys

POSITIONAL = hasattr(os, "preadv")  # threads may read through one descriptor at the same time
MOST_AT_ONCE = 1 << 30  # bytes of one read: macOS refuses 2 GiB and more


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read into `buffer` from a file's byte `offset` on; returns the number of bytes, 0 at the end of the file.

    The file's position is neither used nor changed. Only where POSITIONAL. Raises OSError.
    """
    if sys.platform == "win32":
        raise NotImplementedError("Windows has no preadv")
    return os.preadv(descriptor, [buffer[:MOST_AT_ONCE]], offset)


def drop_cached(descriptor: int, offset: int = 0, nbytes: int = 0) -> None:
    """Tell the system to drop cached pages of a file (0 bytes: all from `offset` on), if it supports such hints."""
    if sys.platform == "linux" and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)
