"""RAM, the folders of models, how fast they are read and how much room their disks have."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..checkpoint.files import open_weights
from ..checkpoint.stored import whole
from ..errors import SluiceError
from ..io.folders import TINY_MODELS, Folders
from ..memory import meter, rates
from ..memory.budget import format_size
from ..memory.workload import GiB
from .finding import Finding

LITTLE_RAM, LITTLE_FREE = 14 * GiB, 4 * GiB
LITTLE_ROOM = 2 * GiB  # on the disk of the output folder
SLOW_DISK = 0.4e9  # bytes/s: below it, streaming fp8 weights from disk takes over half a minute a step
SAMPLED = 64 << 20  # smallest file whose rate says anything


def ram_finding() -> Finding:
    total, free = meter.total_ram(), meter.available_ram()
    text = f"{format_size(total)}, {format_size(free)} of it free"
    if total < LITTLE_RAM:
        return Finding(
            "RAM", text, "Weights that do not fit are read from disk at every step: prefer GGUF or fp8 files."
        )
    if free < LITTLE_FREE:
        return Finding("RAM", text, "Close other programs, or weights are read from disk at every step.")
    return Finding("RAM", text)


def pinning_finding(on_gpu: bool) -> Finding | None:
    """How much RAM a GPU may read directly; None without one."""
    if not on_gpu:
        return None
    total = meter.total_ram()
    room = max(0, total - max(4 * GiB, total // 4))
    subsystem = "microsoft" in os.uname().release.lower() if hasattr(os, "uname") else False
    text = f"up to {format_size(room)} can be pinned for copies to the card"
    if subsystem:
        return Finding(
            "pinned RAM", text, "Windows' Linux subsystem pins at most half of its RAM: raise it in .wslconfig."
        )
    return Finding("pinned RAM", text)


def disk_findings(folders: Folders) -> Iterator[Finding]:
    """How fast the largest file of each model folder is read, once for each disk."""
    seen: set[int] = set()
    for category in ("diffusion_models", "checkpoints", "text_encoders"):
        for folder in folders.directories(category):
            largest = _largest(folder)
            if largest is None or (disk := largest.stat().st_dev) in seen:
                continue
            try:
                rate = _rate(largest)
            except (SluiceError, OSError):
                continue
            seen.add(disk)
            slow = "Move the models to a faster disk (NVMe), or give more --ram." if rate < SLOW_DISK else ""
            yield Finding("disk", f"{folder} is read at {rate / 1e9:.2f} GB/s", slow)


def room_findings(places: Iterable[Path]) -> Iterator[Finding]:
    """Free space where images and settings are written."""
    for place in dict.fromkeys(places):
        there = next(path for path in (place, *place.parents) if path.exists())
        if not os.access(there, os.W_OK):
            yield Finding(
                "folder", f"{place}", f"It cannot be written: change its rights, or choose another ({there})."
            )
            continue
        free = shutil.disk_usage(there).free
        little = "Free some space: images and unfinished downloads need it." if free < LITTLE_ROOM else ""
        yield Finding("folder", f"{place}: {format_size(free)} free", little)


def _largest(folder: Path) -> Path | None:
    if folder.is_relative_to(TINY_MODELS) or not folder.is_dir():
        return None
    files = [file for file in folder.rglob("*") if file.suffix in (".safetensors", ".sft", ".gguf") and file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size, default=None)
    return largest if largest and largest.stat().st_size >= SAMPLED else None


def _rate(path: Path) -> float:
    file = open_weights(path)
    entries = sorted(file.entries.values(), key=lambda entry: -entry.nbytes)
    return rates.disk_rate([whole(file, entry) for entry in entries[:32]])
