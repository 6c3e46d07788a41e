"""The parts of a training step's time as PyTorch's profiler sees them, under the names of the prediction's parts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch.profiler import ProfilerActivity, profile

from ..memory.workload import PARTS

Result = TypeVar("Result")
MATRIX = 1 << 20  # numbers: a larger operand of a product is a matrix of the model
PRODUCTS, TRANSPOSED, DECODING, ATTENTION, SMALL, OTHERS = PARTS


def with_parts(work: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    """The result of `work`, and its seconds by part; what no operation shows, Python's own time, is in the last part.

    Only the operations of the calling thread are seen, and so the work must be on a CPU.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        began = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - began
    parts = dict.fromkeys(PARTS, 0.0)
    for event in seen.events() or ():
        parts[_part(event.name, event.input_shapes)] += event.self_cpu_time_total / 1e6
    parts[OTHERS] = seconds - sum(parts[part] for part in PARTS if part != OTHERS)
    return result, parts


def _part(name: str, shapes: Iterable[Any]) -> str:
    """The part to which an operation's own time belongs."""
    if "Held" in name or "NoValues" in name:  # decodes the matrix; its product is an operation of its own
        return DECODING
    if "attention" in name:
        return ATTENTION
    if name not in ("aten::addmm", "aten::mm", "aten::bmm"):
        return OTHERS
    large = any(len(shape) == 2 and shape[0] * shape[1] >= MATRIX and min(shape) > 1024 for shape in shapes if shape)
    if not large:
        return SMALL
    return PRODUCTS if name == "aten::addmm" else TRANSPOSED


def table(predicted: dict[str, float], measured: dict[str, float] | None) -> str:
    """Both as lines of text, with the load of the machine."""
    lines = [
        f"  {part:20} predicted {seconds:6.2f} s" + (f", measured {measured[part]:6.2f} s" if measured else "")
        for part, seconds in predicted.items()
    ]
    load = f"  load of the last minute: {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return "\n".join([*lines, load])
