"""Reads of weight bytes: from (file, offset) straight into the caller's buffer, from many threads at once.

It never uses mmap, never reads a whole file and has no cache. Where the system can read at an offset, all threads share
one descriptor per file; elsewhere (Windows) each read has a handle that no other read uses at that moment, because a
handle has one position. All are closed when the `WeightFile` is dropped. The owner of the buffer decides where it is
allocated.

Independent of: formats, tensors, devices.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

from ..errors import FileFormatError, MissingFileError, SluiceError
from ..io import descriptors
from ..io.paths import openable
from .stored import Range, Shard, Stored, WeightFile, shard_at

_readers: weakref.WeakKeyDictionary[WeightFile, Reader] = weakref.WeakKeyDictionary()
_readers_lock = threading.Lock()


class Reader:
    """Reads byte ranges of one `WeightFile`. Safe to use from many threads at once."""

    def __init__(self, file: WeightFile) -> None:
        self._files = file.files
        kind = _SharedDescriptor if descriptors.POSITIONAL else _OwnHandles
        self._shards = [kind(shard) for shard in file.files]

    def read(self, ranges: Iterable[Range], buffer: memoryview) -> None:
        """Fill `buffer` (writable, contiguous bytes) completely with the ranges one after the other."""
        filled = 0
        for offset, nbytes in ranges:
            index = shard_at(self._files, offset)
            self._read(index, offset - self._files[index][0], buffer[filled : filled + nbytes])
            filled += nbytes

    def _read(self, index: int, offset: int, buffer: memoryview) -> None:
        path = self._files[index][1]
        while len(buffer):
            try:
                count = self._shards[index].read(offset, buffer)
            except OSError as error:
                raise SluiceError(f"Reading {path} failed at byte {offset}: {error.strerror or error}.") from error
            if count == 0:
                raise FileFormatError(
                    f"{path} ended at byte {offset}, but {len(buffer)} more bytes were expected: another program has "
                    "truncated it. Restore the file and run again."
                )
            offset += count
            buffer = buffer[count:]


class _SharedDescriptor:
    """A shard that all threads read through one descriptor, opened at the first read."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def read(self, offset: int, buffer: memoryview) -> int:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = _open(self._shard[1])
                weakref.finalize(self, os.close, self._descriptor)
        _check_unchanged(self._descriptor, self._shard)
        return descriptors.read_at(self._descriptor, buffer, offset)


class _OwnHandles:
    """A shard with as many handles as there are simultaneous reads. No read waits, nothing is copied."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._idle: list[io.FileIO] = []

    def read(self, offset: int, buffer: memoryview) -> int:
        try:
            handle = self._idle.pop()
        except IndexError:
            handle = io.FileIO(_open(self._shard[1]), closefd=True)
            weakref.finalize(self, handle.close)
        _check_unchanged(handle.fileno(), self._shard)
        handle.seek(offset)
        count = handle.readinto(buffer[: descriptors.MOST_AT_ONCE])
        self._idle.append(handle)
        return count or 0


def _check_unchanged(descriptor: int, shard: Shard) -> None:
    """Raises FileFormatError if the file has changed since its header was read."""
    _, path, size, mtime_ns = shard
    status = os.fstat(descriptor)
    if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
        raise FileFormatError(f"{path} was replaced while it was in use. Run again to load the new file.")


def _open(path: Path) -> int:
    try:
        return os.open(openable(path), os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} was removed after it had been opened. Put it back and run again.") from error
    except OSError as error:
        raise SluiceError(f"{path} cannot be opened for reading: {error.strerror or error}.") from error


def reader_of(file: WeightFile) -> Reader:
    """The only reader of this file; it opens the file at the first read."""
    with _readers_lock:
        reader = _readers.get(file)
        if reader is None:
            reader = _readers[file] = Reader(file)
        return reader


def read_into(stored: Stored, buffer: memoryview) -> None:
    """Fill `buffer` with the raw bytes of `stored` (exactly `stored.nbytes` of them, writable, any item type).

    Raises FileFormatError if the file changed or ended early, MissingFileError if it is gone, SluiceError if the
    disk fails; each names the file and the place.
    """
    bytes_ = buffer.cast("B") if buffer.format != "B" or buffer.ndim != 1 else buffer
    if len(bytes_) != stored.nbytes:
        raise ValueError(f"{stored.name} has {stored.nbytes} bytes, the buffer {len(bytes_)}")
    reader_of(stored.file).read(stored.ranges, bytes_)
