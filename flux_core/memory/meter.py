"""How much memory there is and how much this process has: RAM by the system's own count, containers included.

Knows no torch; a GPU's memory is asked of its device.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from .workload import GiB, MiB

_CGROUP = Path("/sys/fs/cgroup")
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's mallopt


def resident_bytes() -> int:
    """This process's resident set."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import psutil

        return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most it ever was, or since `reset_peak` where the system can forget."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak() -> None:
    """Count the peak from now on; where the system cannot, it stays that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def return_freed() -> None:
    """From now on large memory that is freed goes back to the system at once, in the whole process.

    glibc keeps what it is given back below 32 MiB, in a heap for every thread: activations of one model would stay in
    the resident set while the next one runs. Other C libraries are left as they are.
    """
    _mallopt({_MMAP_THRESHOLD: MiB, _TRIM_THRESHOLD: MiB, _ARENA_MAX: 1})


def keep_freed() -> None:
    """From now on what is freed is kept for the next step: new pages for all activations cost a tenth of its time."""
    _mallopt({_MMAP_THRESHOLD: GiB, _TRIM_THRESHOLD: GiB, _ARENA_MAX: 1})


def _mallopt(options: dict[int, int]) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option, value in options.items():
        mallopt(option, value)


def trim() -> None:
    """Give back what the C library keeps."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass


def available_ram() -> int:
    """Bytes this process could still take: what the system calls available, within the limits of a container."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_container_room()])


def total_ram() -> int:
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _container_limits())])


def automatic_ram() -> int:
    """A budget for this process that leaves others room: an eighth of the RAM, at least one GiB."""
    return resident_bytes() + max(0, available_ram() - max(GiB, total_ram() // 8))


def _container_room() -> list[int]:
    return [max(0, limit - used) for limit, used in _container_limits()]


def _container_limits() -> list[tuple[int, int]]:
    """(limit, used) of this process's control groups, version 2 from its own up to the root, or version 1."""
    found = []
    for group in _groups():
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                texts = (group / limit).read_text().strip(), (group / used).read_text().strip()
            except OSError:
                continue
            if all(text.isdecimal() for text in texts) and int(texts[0]) < 2**60:
                found.append((int(texts[0]), int(texts[1])))
    return found


def _groups() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = _CGROUP / "memory" if controllers else _CGROUP
            own = root / path.lstrip("/")
            groups += [own, *(parent for parent in own.parents if parent == root or root in parent.parents)]
    return groups
