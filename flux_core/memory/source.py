"""Pieces out of weight files: positional reads that leave the page cache alone.

The cache is of no use here. It keeps what was read last, and of a set larger than it that is walked through in a circle
nothing is ever found again; meanwhile it pushes out what others need. So reads are direct where the system allows it,
in whole blocks and straight into their destination, else cached pages are dropped behind.

Knows no device and no plan.
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
CHUNK = 16 << 20  # of one read: larger ones are no faster, smaller ones cost


class FileSource:
    """`pieces[i]` is what the walk calls piece i. One descriptor a file, safe from any thread."""

    slack = 2 * BLOCK

    def __init__(self, pieces: Sequence[Stored], direct: bool = True) -> None:
        """direct=False reads through the page cache, for files that fit there with room to spare."""
        self.pieces = tuple(pieces)
        self.bytes_read = 0
        self._direct: dict[Path, int | None] = {}
        self._cached: dict[Path, int] = {}  # to tell the cache what is not needed again
        for file in {id(stored.file): stored.file for stored in self.pieces}.values():
            for _, path, size, mtime_ns in file.files:
                if path not in self._cached:
                    self._cached[path] = self._open(path, os.O_RDONLY, size, mtime_ns)
                    self._direct[path] = self._open_direct(path, size, mtime_ns) if direct and DIRECT else None
        self._places = [self._place(stored) for stored in self.pieces]

    def lead(self, piece: int) -> int:
        place = self._places[piece]
        return 0 if place is None else place[1] % BLOCK

    def read(self, piece: int, start: int, nbytes: int, window: memoryview) -> Wait:
        place = self._places[piece]
        if place is None:
            return lambda: self._read_cached(piece, start, window[:nbytes])
        descriptor, offset = place
        return lambda: self._read_blocks(piece, descriptor, offset + start, nbytes, window)

    def read_exact(self, piece: int, into: memoryview) -> Wait:
        return lambda: self._read_cached(piece, 0, into)

    def _place(self, stored: Stored) -> tuple[int, int] | None:
        """Descriptor and offset for direct reads, if the piece lies in one part and its numbers stay aligned."""
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
            raise MissingFileError(f"{path} is gone since it was opened. Put it back and run again.") from error
        weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
            raise FileFormatError(f"{path} was replaced while it was in use. Run again, and it is loaded anew.")
        return descriptor

    def _read_blocks(self, piece: int, descriptor: int, offset: int, nbytes: int, window: memoryview) -> None:
        """Whole blocks around [offset, offset + nbytes); the data begins at window[offset % BLOCK]."""
        begin, lead = offset - offset % BLOCK, offset % BLOCK
        needed, done = lead + nbytes, 0
        end = -(-needed // BLOCK) * BLOCK
        while done < needed:
            try:
                count = read_at(descriptor, window[done : min(end, done + CHUNK)], begin + done)
            except OSError as error:
                raise self._failed(piece, error) from error
            if done + count < needed and count % BLOCK:
                count -= count % BLOCK  # a block came in part: ask for it again
            if count == 0:
                path = self.pieces[piece].file.path
                raise FileFormatError(
                    f"{path} ended while {self.pieces[piece].name} was read: it was cut short after it was opened. "
                    "Restore the file and run again."
                )
            done += count
        self.bytes_read += nbytes

    def _read_cached(self, piece: int, start: int, into: memoryview) -> None:
        stored = self.pieces[piece]
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

    def _failed(self, piece: int, error: OSError) -> SluiceError:
        stored = self.pieces[piece]
        return SluiceError(
            f"Reading {stored.name} from {stored.file.path} failed: {error.strerror or error}. Check the disk it is on."
        )
