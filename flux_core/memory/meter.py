"""RAM: how much the machine or its container has, how much is free, how much this process uses. Needs no torch."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from .workload import GiB, MiB

_CGROUP, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_ACCOUNTS = (  # a control group's limit, its use, and memory.stat's line for cached file pages not used recently
    ("memory.max", "memory.current", "inactive_file "),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # options of glibc's mallopt


def resident_bytes() -> int:
    """The resident set of this process."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        import psutil

        return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The largest resident set since `reset_peak`, or since the process started where that cannot be reset."""
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
    """Measure the peak from now on. Has no effect on systems that cannot reset it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def return_freed() -> None:
    """From now on memory of 1 MiB or more returns to the system as soon as it is freed, in the whole process.

    By default glibc keeps freed memory below 32 MiB, in one heap per thread: activations of one model would stay in the
    resident set while the next one runs. Other C libraries are not changed.
    """
    _mallopt({_MMAP_THRESHOLD: MiB, _TRIM_THRESHOLD: MiB, _ARENA_MAX: 1})


def keep_freed() -> None:
    """From now on freed memory is kept for the next step: new pages for its activations would take 10 % of its time."""
    _mallopt({_MMAP_THRESHOLD: GiB, _TRIM_THRESHOLD: GiB, _ARENA_MAX: 1})


def _mallopt(options: dict[int, int]) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option, value in options.items():
        mallopt(option, value)


def trim() -> None:
    """Return freed memory that the C library keeps to the system."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass


def available_ram() -> int:
    """Bytes that this process could still allocate: what the system calls available, within a container's limits."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_container_room()])


def total_ram() -> int:
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _container_limits())])


def automatic_ram() -> int:
    """The RAM budget "auto": what this process uses and what is free, less a reserve for other programs.

    The reserve is an eighth of the RAM and at least 1 GiB, but never more than half of what is free, so that a busy
    machine leaves something to use.
    """
    free = available_ram()
    return resident_bytes() + free - min(max(GiB, total_ram() // 8), free // 2)


def _container_room() -> list[int]:
    return [max(0, limit - used) for limit, used in _container_limits()]


def _container_limits() -> list[tuple[int, int]]:
    """(limit, used) of each control group (version 1 or 2) from this process's own up to the root.

    Cached file pages that were not used recently do not count as used: the system drops them when memory is needed, and
    after the download of a model they can fill the whole group.
    """
    found = []
    for group in _groups():
        for limit, used, cached in _ACCOUNTS:
            try:
                texts = (group / limit).read_text().strip(), (group / used).read_text().strip()
                statistics = (group / "memory.stat").read_text()
            except OSError:
                continue
            if all(text.isdecimal() for text in texts) and int(texts[0]) < 2**60:
                pages = next((int(line.split()[1]) for line in statistics.splitlines() if line.startswith(cached)), 0)
                found.append((int(texts[0]), max(0, int(texts[1]) - pages)))
    return found


def _groups() -> list[Path]:
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            root = _CGROUP / "memory" if controllers else _CGROUP
            own = root / path.lstrip("/")
            groups += [own, *(parent for parent in own.parents if parent == root or root in parent.parents)]
    return groups
