"""Reads weights from their files at given offsets, without filling the page cache.

The page cache does not help here. It keeps what was read last; if a model larger than the cache is read again and again
in the same order, every page is gone before it is needed again, and pages of other programs are gone too. So reads are
direct where the system allows it: in whole blocks, straight into their destination. Elsewhere the cached pages are
dropped after each read.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.reader import read_into
from ..checkpoint.stored import Stored
from ..errors import FileFormatError, MissingFileError, SluiceError
from ..io.descriptors import POSITIONAL, drop_cached, read_at
from ..io.paths import openable
from ..quant.encoding import Encoding
from .device import Wait

BLOCK = 4096
DIRECT = getattr(os, "O_DIRECT", 0) if POSITIONAL else 0
CHUNK = 16 << 20  # bytes of one read: larger reads are no faster, smaller ones are slower


class FileSource:
    """The weights of one model, numbered as in its schedule. One descriptor per file; any thread may read."""

    slack = 2 * BLOCK

    def __init__(self, weights: Sequence[Stored], direct: bool = True) -> None:
        """direct=False reads through the page cache, for files that are much smaller than it."""
        self.weights = self.stored = tuple(weights)
        self.bytes_read = 0
        self._direct: dict[Path, int | None] = {}
        self._cached: dict[Path, int] = {}  # descriptors for reads through the cache, and to drop cached pages
        for file in {id(stored.file): stored.file for stored in self.weights}.values():
            for _, path, size, mtime_ns in file.files:
                if path not in self._cached:
                    self._cached[path] = self._open(path, os.O_RDONLY, size, mtime_ns)
                    self._direct[path] = self._open_direct(path, size, mtime_ns) if direct and DIRECT else None
        self._places = [self._place(stored) for stored in self.weights]

    def lead(self, weight: int) -> int:
        place = self._places[weight]
        return 0 if place is None else place[1] % BLOCK

    def read(self, weight: int, start: int, nbytes: int, window: memoryview) -> Wait:
        place = self._places[weight]
        if place is None:
            return lambda: self._read_cached(weight, start, window[:nbytes])
        descriptor, offset = place
        return lambda: self._read_blocks(weight, descriptor, offset + start, nbytes, window)

    def read_exact(self, weight: int, into: memoryview) -> Wait:
        return lambda: self._read_cached(weight, 0, into)

    def _place(self, stored: Stored) -> tuple[int, int] | None:
        """Descriptor and offset for direct reads, if the weight is one byte range whose values stay aligned."""
        path, offset = stored.file.locate(stored.ranges[0][0])
        descriptor = self._direct[path]
        if descriptor is None or len(stored.ranges) > 1 or offset % 8:
            return None
        return descriptor, offset

    def _open_direct(self, path: Path, size: int, mtime_ns: int) -> int | None:
        try:
            return self._open(path, os.O_RDONLY | DIRECT, size, mtime_ns)
        except OSError:  # a file system without direct reads
            return None

    def _open(self, path: Path, flags: int, size: int, mtime_ns: int) -> int:
        try:
            descriptor = os.open(openable(path), flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise MissingFileError(f"{path} was removed after it was opened. Put it back and run again.") from error
        weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
            raise FileFormatError(f"{path} was replaced while it was in use. Run again to load the new file.")
        return descriptor

    def _read_blocks(self, weight: int, descriptor: int, offset: int, nbytes: int, window: memoryview) -> None:
        """Read the whole blocks around [offset, offset + nbytes); the data begin at window[offset % BLOCK]."""
        begin, lead = offset - offset % BLOCK, offset % BLOCK
        needed, done = lead + nbytes, 0
        end = -(-needed // BLOCK) * BLOCK
        while done < needed:
            try:
                count = read_at(descriptor, window[done : min(end, done + CHUNK)], begin + done)
            except OSError as error:
                raise self._failed(weight, error) from error
            if done + count < needed and count % BLOCK:
                count -= count % BLOCK  # part of a block was read: read the block again
            if count == 0:
                path = self.weights[weight].file.path
                raise FileFormatError(
                    f"{path} ended while {self.weights[weight].name} was read: it was cut short after it was opened. "
                    "Restore the file and run again."
                )
            done += count
        self.bytes_read += nbytes

    def _read_cached(self, weight: int, start: int, into: memoryview) -> None:
        stored = self.weights[weight]
        wanted, filled, skipped = len(into), 0, start
        for offset, nbytes in stored.ranges:
            if skipped >= nbytes:
                skipped -= nbytes
                continue
            size = min(nbytes - skipped, wanted - filled)
            part = Stored(stored.name, (size,), Encoding("U8"), ((offset + skipped, size),), stored.file)
            read_into(part, into[filled : filled + size])
            filled, skipped = filled + size, 0
            if filled == wanted:
                break
        self._drop_cache(stored)
        self.bytes_read += wanted

    def _drop_cache(self, stored: Stored) -> None:
        for offset, nbytes in stored.ranges:
            path, local = stored.file.locate(offset)
            drop_cached(self._cached[path], local, nbytes)

    def _failed(self, weight: int, error: OSError) -> SluiceError:
        stored = self.weights[weight]
        return SluiceError(
            f"Reading {stored.name} from {stored.file.path} failed: {error.strerror or error}. Check the disk it is on."
        )
