"""Positional reads of weight bytes: from (file, offset) straight into the caller's buffer.

Never mmap, never a whole file, never a cache of its own. One descriptor per file, shared by all threads; it is closed
when the `WeightFile` is dropped. Whoever owns the buffer decides where bytes live.

Does not know: formats, tensors, devices.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable

from ..errors import FileFormatError, MissingFileError, SluiceError
from .stored import Range, Stored, WeightFile, shard_at

_POSITIONAL = hasattr(os, "preadv")
_readers: weakref.WeakKeyDictionary[WeightFile, Reader] = weakref.WeakKeyDictionary()
_readers_lock = threading.Lock()


class Reader:
    """Reads byte ranges of one `WeightFile`. Safe to use from many threads at once."""

    def __init__(self, file: WeightFile) -> None:
        self._files = file.files
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, ranges: Iterable[Range], buffer: memoryview) -> None:
        """Fill `buffer` (writable, contiguous bytes) with the ranges one after the other, to the last byte."""
        filled = 0
        for offset, nbytes in ranges:
            index = shard_at(self._files, offset)
            self._read(index, offset - self._files[index][0], buffer[filled : filled + nbytes])
            filled += nbytes

    def _read(self, index: int, offset: int, buffer: memoryview) -> None:
        descriptor = self._descriptor(index)
        path = self._files[index][1]
        while len(buffer):
            try:
                count = self._read_some(descriptor, offset, buffer)
            except OSError as error:
                raise SluiceError(f"Reading {path} failed at byte {offset}: {error.strerror or error}.") from error
            if count == 0:
                raise FileFormatError(
                    f"{path} ended at byte {offset} while {len(buffer)} more were to be read: it is being cut short "
                    "by another program. Restore the file and run again."
                )
            offset += count
            buffer = buffer[count:]

    def _read_some(self, descriptor: int, offset: int, buffer: memoryview) -> int:
        if _POSITIONAL:
            return os.preadv(descriptor, [buffer], offset)
        with self._lock:  # a shared file position needs one reader at a time
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, min(len(buffer), 1 << 24))
        buffer[: len(data)] = data
        return len(data)

    def _descriptor(self, index: int) -> int:
        """Of a shard that is still as it was when its header was read."""
        _, path, size, mtime_ns = self._files[index]
        with self._lock:
            if index not in self._descriptors:
                self._descriptors[index] = _open(path)
                weakref.finalize(self, os.close, self._descriptors[index])
        status = os.fstat(self._descriptors[index])
        if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
            raise FileFormatError(f"{path} was replaced while it was in use. Run again, and it is loaded anew.")
        return self._descriptors[index]


def _open(path: os.PathLike[str]) -> int:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} is gone since it was opened. Put it back and run again.") from error
    except OSError as error:
        raise SluiceError(f"{path} cannot be opened for reading: {error.strerror or error}.") from error


def reader_of(file: WeightFile) -> Reader:
    """The one reader of this file; it opens the file at the first read."""
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
