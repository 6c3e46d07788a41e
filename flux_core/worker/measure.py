"""Measures a job: its time, its peak of memory, the time per step and the time that is left.

The peak is the highest that the system or PyTorch's allocator noted while the job ran. It is reset at the start of the
job and by each run of a model, which reports its own peak (`memory.job`, shown in the Memory tab): the job's peak is
the highest of these and of what is noted when a node starts or ends.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping
from typing import Any

from ..memory import meter

_STEPS_A_SECOND = 10  # the pace is reported at most this often


class Measure:
    """The measurements of one job."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._peak_ram, self._peak_vram = 0, 0
        self._node, self._first, self._told = "", (0.0, 0.0), 0.0  # time and value of the first step seen
        _reset_peak()

    def look(self) -> None:
        """Note the peak of RAM until now, before a run of a model resets it."""
        self._peak_ram = max(self._peak_ram, meter.peak_resident_bytes())

    def ran(self, peak: int, on_card: bool) -> None:
        """A run of a model has ended. peak: bytes of the card's memory, or of RAM, as the run has reported them."""
        if on_card:
            self._peak_vram = max(self._peak_vram, peak)
        else:
            self._peak_ram = max(self._peak_ram, peak)

    def facts(self) -> dict[str, Any]:
        """The seconds, and the peaks of memory in bytes (None for a card that is not there)."""
        self.look()
        noted = _peak_vram()
        vram = None if noted is None else max(noted, self._peak_vram)
        return {"seconds": time.monotonic() - self._start, "peak_ram": self._peak_ram, "peak_vram": vram}

    def began(self, node_id: str) -> None:
        """A node starts: its first step is timed from here."""
        self._node, self._first = node_id, (time.monotonic(), 0.0)

    def stepped(self, progress: Mapping[str, Any]) -> dict[str, Any] | None:
        """The pace after a step; None if it was reported shortly before."""
        now, value, maximum = time.monotonic(), float(progress["value"]), float(progress["max"])
        if progress["node"] != self._node:
            self.began(progress["node"])
        since, seen = self._first
        pace = (now - since) / (value - seen) if value > seen else 0.0
        if seen == 0.0 and value < maximum:  # the first step also loads the model: leave it out of the next ones' pace
            self._first = (now, value)
        if now - self._told < 1 / _STEPS_A_SECOND and value < maximum:
            return None
        self._told = now
        left = pace * (maximum - value)
        return {
            "prompt_id": progress["prompt_id"], "node_id": progress["node"], "step": value, "steps": maximum,
            "seconds_per_step": pace, "seconds_left": left,
            "text": f"{value:.0f}/{maximum:.0f}, {pace:.2f} s/it, {left:.0f} s left",
        }  # fmt: skip


def release_memory() -> None:
    """Return the memory of objects without references to the system."""
    gc.collect()
    meter.trim()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _peak_vram() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_reserved())


def _reset_peak() -> None:
    meter.reset_peak()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
