"""Temporary folders of measurements, which do not outlive them: also not where SIGTERM or SIGKILL ends the program."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

PREFIX = "sluice-bench-"  # then the process id, and random letters
_NAME = re.compile(rf"{PREFIX}(\d+)-\w+")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder of this process. Those of processes that ended without removing theirs are removed first.

    In it SIGTERM raises SystemExit(143), as a shell reports it, so that the measurement also ends its processes.
    """
    remove_left()
    with (
        _ended_by_sigterm(),
        tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as folder,
    ):
        yield Path(folder)


def remove_left() -> None:
    """Remove the folders whose processes have ended. Folders of other users cannot be removed and stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        named = _NAME.fullmatch(folder.name)
        if named and not psutil.pid_exists(int(named[1])):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
