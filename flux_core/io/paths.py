r"""The rules of Windows for paths: names of devices, drive letters, and a limit of 260 characters.

    CON, NUL, COM1.txt        devices, in every folder and with every ending
    name:stream, C:name       another stream of a file, a file on another drive
    \\?\C:\models\...         the form of a path that may be up to 32767 characters long

On other systems these are ordinary names, and the functions return paths unchanged.
"""

from __future__ import annotations

import ntpath
import os
import re

WINDOWS = os.name == "nt"
LONGEST_PLAIN = 247  # characters of a path that every call of Windows takes as it is
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³]) *(\.|$)", re.IGNORECASE)
_DRIVE = re.compile("[A-Za-z]:")
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')


def has_drive(part: str) -> bool:
    """Whether a part of a path begins with a drive letter: on Windows the whole path would lie on that drive."""
    return _DRIVE.match(part) is not None


def refused(part: str) -> str | None:
    """Why this system stores no file and no folder under this name (one part of a path), or None if it does."""
    if not WINDOWS:
        return None
    if _DEVICE.match(part):
        return f"{part!r} is the name of a device on Windows"
    if found := _FORBIDDEN.search(part):
        return f"Windows allows no {found[0]!r} in file names"
    if part.endswith((".", " ")) and part not in (".", ".."):
        return f"Windows drops the {part[-1]!r} at the end of {part!r}"
    return None


def refused_in(path: str) -> str | None:
    """As `refused`, for the first part of a path that is refused. A drive at its beginning is ignored."""
    parts = re.split(r"[\\/]", ntpath.splitdrive(path)[1])
    return next((reason for part in parts if (reason := refused(part))), None)


def openable(path: str | os.PathLike[str]) -> str:
    """The path as this system opens it, also if it is longer than Windows takes plain paths to be."""
    text = os.fspath(path)
    return extended(os.path.abspath(text)) if WINDOWS and len(text) > LONGEST_PLAIN else text


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file exists, for paths of any length."""
    return os.path.isfile(openable(path))


def walkable(folder: str | os.PathLike[str]) -> str:
    """A folder to search with all subfolders: on Windows in the form without the limit, for files at every depth."""
    return extended(os.path.abspath(folder)) if WINDOWS else os.fspath(folder)


def extended(path: str) -> str:
    r"""An absolute path of Windows in the form without a limit: `\\?\C:\...`, `\\?\UNC\server\share\...`."""
    path = ntpath.normpath(path)
    if path.startswith(("\\\\?\\", "\\\\.\\")):
        return path
    if path.startswith("\\\\"):
        return "\\\\?\\UNC" + path[1:]
    return "\\\\?\\" + path if has_drive(path) else path
