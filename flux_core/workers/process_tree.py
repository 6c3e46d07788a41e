"""A process together with everything that it starts: ended as a whole.

POSIX systems end the group that the process leads (`start_new_session=True` makes it one). Windows has no such groups:
there the descendants are looked up while the process still lives, and each is ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import psutil

GROUPS = hasattr(os, "killpg")


class ProcessTree:
    """The descendants of a process and itself. The process must not have been waited for when one is made."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._members: dict[int, psutil.Process] = {}  # where there are no groups

    def terminate(self) -> None:
        """Ask all to end. On Windows this is as final as `kill`."""
        if GROUPS:
            _end_group(self.pid, gently=True)
            return
        for process in self._look():
            with contextlib.suppress(psutil.Error):
                process.terminate()

    def kill(self) -> None:
        """End all at once, also those whose parent has ended since `terminate`."""
        if GROUPS:
            _end_group(self.pid)
            return
        for process in self._look():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _look(self) -> list[psutil.Process]:
        """Everyone seen until now, with the descendants that each has at this moment."""
        with contextlib.suppress(psutil.Error):
            self._members.setdefault(self.pid, psutil.Process(self.pid))
        for process in list(self._members.values()):
            with contextlib.suppress(psutil.Error):
                self._members |= {child.pid: child for child in process.children(recursive=True)}
        return list(self._members.values())


def end_own(code: int = 0) -> None:
    """End this process and everything that it has started, at once. Does not return."""
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
