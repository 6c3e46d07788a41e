"""A Python without the functions that Windows lacks, for it and all its child processes: put this folder on PYTHONPATH.

Python's own modules and psutil keep what they need: they are imported before, or given a copy of the module. What is
taken away is listed here by name; that a file in use cannot be replaced there is left to tests of its own.
"""

import asyncio.unix_events
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile  # noqa: F401 - looks at what `os` has when it is imported
from types import SimpleNamespace
from typing import Any

import psutil

HIDDEN: dict[Any, tuple[str, ...]] = {
    os: (
        *("preadv", "pread", "pwritev", "posix_fadvise", "posix_fallocate", "O_DIRECT", "O_CLOEXEC"),
        *("killpg", "getpgrp", "getpgid", "setpgid", "setsid", "getsid", "fork"),
        *("sysconf", "sched_getaffinity", "sched_setaffinity", "getloadavg", "nice", "mkfifo", "chown"),
    ),
    signal: ("SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "pthread_kill", "sigwait"),
    vars(asyncio.unix_events)["_UnixSelectorEventLoop"]: ("add_signal_handler", "remove_signal_handler"),
}

modules: tuple[Any, ...] = (subprocess, psutil, psutil._psposix, psutil._common, asyncio.unix_events)
for module in modules:
    if hasattr(module, "signal"):
        module.signal = SimpleNamespace(**vars(signal))
    if hasattr(module, "os"):
        module.os = SimpleNamespace(**vars(os))
del shutil  # imported for its own sake, as tempfile

for holder, names in HIDDEN.items():
    for name in names:
        delattr(holder, name)
for name in ("fcntl", "resource"):
    sys.modules[name] = None  # type: ignore[assignment]  # as Python itself marks what must not be imported


class _NoProcessLibrary(ctypes.CDLL):
    def __init__(self, name: Any, *arguments: Any, **options: Any) -> None:
        if name is None:
            raise TypeError("there is no library of the process itself")
        super().__init__(name, *arguments, **options)


ctypes.CDLL = _NoProcessLibrary  # type: ignore[misc]
