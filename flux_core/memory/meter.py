"""How much memory there is and how much this process has: RAM by the system's own count, containers included.

Knows no torch; a GPU's memory is asked of its device.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from .workload import GiB, MiB

_CGROUP, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_ACCOUNTS = (  # files of a control group, and what its memory.stat calls pages of files not looked at for a while
    ("memory.max", "memory.current", "inactive_file "),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's mallopt


def resident_bytes() -> int:
    """This process's resident set."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * mmap.PAGESIZE
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
    """A budget for this process that leaves others room: an eighth of the RAM and at least one GiB, as far as there is
    so much, but never more than half of what is free: on a busy machine something has to be left for us as well.
    """
    free = available_ram()
    return resident_bytes() + free - min(max(GiB, total_ram() // 8), free // 2)


def _container_room() -> list[int]:
    return [max(0, limit - used) for limit, used in _container_limits()]


def _container_limits() -> list[tuple[int, int]]:
    """(limit, used) of this process's control groups from its own up to the root, of version 2 or 1.

    Not counted as used are cached pages of files that nobody looks at: the system drops those when room is needed, and
    after downloading a model they may be all there is.
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
