"""Ends a process together with all processes that it has started.

On POSIX systems the process is the leader of a group (`start_new_session=True`), which is ended as a whole. Windows has
no such groups: the descendants are listed while the process still runs, and each is ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import psutil

GROUPS = hasattr(os, "killpg")


class ProcessTree:
    """A process and its descendants. Create it before the process has been waited for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._members: dict[int, psutil.Process] = {}  # on systems without groups

    def terminate(self) -> None:
        """Request all to end. On Windows this kills them."""
        if GROUPS:
            _end_group(self.pid, gently=True)
            return
        for process in self._look():
            with contextlib.suppress(psutil.Error):
                process.terminate()

    def kill(self) -> None:
        """Kill all, also those whose parent has ended since `terminate`."""
        if GROUPS:
            _end_group(self.pid)
            return
        for process in self._look():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _look(self) -> list[psutil.Process]:
        """All processes found so far, with the descendants that each has now."""
        with contextlib.suppress(psutil.Error):
            self._members.setdefault(self.pid, psutil.Process(self.pid))
        for process in list(self._members.values()):
            with contextlib.suppress(psutil.Error):
                self._members |= {child.pid: child for child in process.children(recursive=True)}
        return list(self._members.values())


def end_own(code: int = 0) -> None:
    """Kill this process and all that it has started. Does not return."""
    if GROUPS and _leads_a_group():
        _end_group(os.getpid())
    elif not GROUPS:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
    os._exit(code)


def _end_group(leader: int, gently: bool = False) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGTERM if gently else signal.SIGKILL)


def _leads_a_group() -> bool:
    return sys.platform != "win32" and os.getpgrp() == os.getpid()
