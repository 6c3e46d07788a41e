"""Saving images: ComfyUI's file names, and atomic writes.

    output/{subfolders}/{name}_{counter:05}_.png        counter = 1 + the highest number found, then the next free one

A complete file gets its final name by one hard link from a temporary file beside it: a killed process leaves at most
a `.sluice-*.tmp`, which is never counted or read, and two processes never overwrite each other's images. Uses no
images and no nodes.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, SluiceError
from .paths import WINDOWS, openable, refused_in

TEMPORARY_PREFIX = ".sluice-"
LONGEST_NAME = 240  # bytes; file systems allow 255, and a number and a suffix follow
_IN_USE = (5, 32)  # Windows' errors for a file that is open elsewhere: access denied, sharing violation


@dataclass
class Place:
    """A name with a running number in a folder. `save` may be called once for each image of a batch."""

    folder: Path
    subfolder: str  # of the output folder, as reported to the browser
    name: str
    counter: int

    def save(self, data: bytes, batch_number: int = 0, suffix: str = "_.png") -> str:
        """Write a file under the next free number and return its name. SluiceError if it cannot be written."""
        stem = self.name.replace("%batch_num%", str(batch_number))
        try:
            with _temporary(self.folder, data) as temporary:
                while True:
                    file_name = f"{stem}_{self.counter:05}{suffix}"
                    self.counter += 1
                    if _appear(temporary, self.folder / file_name):
                        return file_name
        except (OSError, ValueError) as error:
            reason = f"Nothing could be saved in {self.folder} as {_shortened(stem)!r}: {_reason(error)}."
            raise SluiceError(f"{reason}{_advice(error)}") from error


def place(prefix: str, root: str | os.PathLike[str], width: int = 0, height: int = 0) -> Place:
    """The place of images with this file name prefix, below the folder `root`; missing folders are created.

    `%width% %height%` (pixels) and `%year% %month% %day% %hour% %minute% %second%` (local time) are filled in here,
    `%batch_num%` when saving. Slashes make subfolders, as backslashes do in workflows from Windows; the colon of a
    drive letter becomes an underscore. Raises InputError if they lead out of `root`, by `..`, an absolute path
    or a symbolic link.
    """
    subfolder, name = os.path.split(os.path.normpath(_filled(prefix, width, height)))
    folder = _folder(prefix, subfolder, name, root)
    try:
        os.makedirs(openable(folder), exist_ok=True)
        taken = os.listdir(openable(folder))
    except (OSError, ValueError) as error:
        raise _unusable(prefix, root, error) from error
    return Place(
        Path(folder), subfolder.replace(os.sep, "/"), name, 1 + max((_number(file, name) for file in taken), default=0)
    )


def check_prefix(prefix: str, root: str | os.PathLike[str]) -> None:
    """Check before there is an image that `place` accepts this prefix; creates nothing. Raises InputError."""
    subfolder, name = os.path.split(os.path.normpath(_filled(prefix, 1, 1)))
    folder = _folder(prefix, subfolder, name, root)
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise InputError(f"The file name prefix {_shortened(prefix)!r} is too long for a file name.")
    there = next(path for path in (Path(folder), *Path(folder).parents) if os.path.lexists(path))
    if not there.is_dir():
        raise _unusable(prefix, root, NotADirectoryError(f"{there} is no folder"))
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unusable(prefix, root, PermissionError(f"{there} cannot be written to"))


def _folder(prefix: str, subfolder: str, name: str, root: str | os.PathLike[str]) -> str:
    """The folder of a prefix. Raises InputError if it is not below `root`, or if this system refuses its names."""
    if "\0" in prefix:
        raise InputError("The file name prefix holds a NUL character.")
    if reason := refused_in(os.path.join(subfolder, name)):
        raise InputError(f"The file name prefix {_shortened(prefix)!r} cannot be used: {reason}.")
    try:
        base = os.path.realpath(root)
        folder = os.path.realpath(os.path.join(base, subfolder))
        inside = os.path.commonpath((base, folder)) == base
    except (OSError, ValueError) as error:
        raise _unusable(prefix, root, error) from error
    if not inside:
        raise InputError(
            f"The file name prefix {_shortened(prefix)!r} leads to {folder}, outside the output folder {base}."
        )
    return folder


def _unusable(prefix: str, root: str | os.PathLike[str], error: Exception) -> InputError:
    return InputError(f"Nothing can be saved in {root} as {_shortened(prefix)!r}: {_reason(error)}.{_advice(error)}")


def _advice(error: Exception) -> str:
    """What to do about an error of the file system: a sentence with a space before it, or nothing."""
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return " Allow this user to write there, or start with another output folder (--out)."
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return " Choose another file name prefix, or another output folder (--out)."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return " Free some space there, or start with another output folder (--out)."
    return ""


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def write_whole(path: str | os.PathLike[str], data: bytes | Iterable[bytes | memoryview]) -> None:
    """Replace a file atomically: at every moment it is either the old one or the new one.

    data: the content, or its parts in order.
    """
    path = Path(path)
    with _temporary(path.parent, data) as temporary:
        replace(temporary, path)


def replace(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a file to the name of another, in one step, which removes the other.

    Windows refuses this while a program has the other file open, and virus scanners and indexers open each new file for
    a moment: there it is tried for about three seconds. Raises OSError.
    """
    for pause in (0.02, 0.04, 0.1, 0.2, 0.4, 0.8, 1.6):
        try:
            os.replace(openable(source), openable(target))
            return
        except PermissionError as error:
            if getattr(error, "winerror", None) not in _IN_USE:
                raise
            time.sleep(pause)
    os.replace(openable(source), openable(target))


@contextmanager
def appearing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream for a new file that is too large for memory: it gets its name when the block has ended without an error.

    Raises SluiceError if it cannot be written, or if a file of that name exists by then; no other file is left.
    """
    path = Path(path)
    temporary = os.path.join(path.parent, f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if not _appear(temporary, path):
            raise SluiceError(f"{path} is there already. Give another name, or remove it first.")
    except OSError as error:
        raise SluiceError(f"{path} cannot be written: {_reason(error)}.") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _filled(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    values = {
        "width": str(width),
        "height": str(height),
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return re.sub(r"(^|/)([A-Za-z]):", r"\1\2_", prefix.replace("\\", "/"))


def _number(file: str, name: str) -> int:
    """The number after `name_` in a file name, up to the next `_` or dot; 0 if the file is not one of ours."""
    if os.path.normcase(file[: len(name) + 1]) != os.path.normcase(name + "_"):
        return 0
    digits = re.match(r"[0-9]{1,18}(?=_|\.|$)", file[len(name) + 1 :])
    return int(digits[0]) if digits else 0


@contextmanager
def _temporary(folder: Path, data: bytes | Iterable[bytes | memoryview]) -> Iterator[str]:
    """The path of a temporary file with this content, flushed to disk, removed when the block ends."""
    path = openable(os.path.join(folder, f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp"))
    try:
        with open(path, "xb") as file:
            for part in (data,) if isinstance(data, bytes) else data:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        with suppress(OSError):  # it has its name already; or a scanner of Windows has it open: then it stays
            os.unlink(path)


def _appear(temporary: str, target: Path) -> bool:
    """Give a finished file its name atomically, and only if the name is free."""
    try:
        if WINDOWS:
            os.rename(temporary, openable(target))  # fails for an existing name there
        else:
            os.link(temporary, target)
        return True
    except FileExistsError:
        return False
    except OSError:
        return _appear_without_links(temporary, target)


def _appear_without_links(temporary: str, target: Path) -> bool:
    """For file systems without hard links: an exclusive claim beside the target keeps other processes of ours away."""
    claim = target.with_name(f"{TEMPORARY_PREFIX}{target.name}.claim")
    try:
        os.close(os.open(openable(claim), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False  # a process is writing this number, or was killed while it wrote: use the next one
    try:
        if os.path.exists(openable(target)):
            return False
        replace(temporary, target)
        return True
    finally:
        os.unlink(openable(claim))


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
