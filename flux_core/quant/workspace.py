"""Scratch memory for decoding: some megabytes per thread and device, allocated once and reused for every matrix.

Decoders work in chunks that fit in the processor's cache, so their scratch does not grow with the matrix. The matrix
itself is decoded into scratch that all matrices of a thread share.

Independent of: formats.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from ..processor.threads import MAX_THREADS

CHUNK_CPU = (
    1 << 20
)  # values per thread: enough to make the overhead of a call small, few enough for a processor's caches
CHUNK_DEVICE = 1 << 22  # accelerators work best with few large kernels

_local = threading.local()


def chunk_values(device: torch.device) -> int:
    """How many values to decode at a time; a multiple of 256, so that no block is split. Threads beyond MAX_THREADS
    share them.
    """
    return CHUNK_CPU * min(torch.get_num_threads(), MAX_THREADS) if device.type == "cpu" else CHUNK_DEVICE


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory of this shape, the same for every call of this thread with this `name`, dtype and device."""
    held: dict[tuple[str, torch.dtype, torch.device], Tensor] = _local.__dict__.setdefault("held", {})
    key = name, dtype, device
    count = prod(shape)
    if key not in held or held[key].numel() < count:
        with torch.inference_mode(False):  # this memory outlives the block in which it was first needed
            held[key] = torch.empty(max(count, 1), dtype=dtype, device=device)
    return held[key][:count].view(shape)


def matrix_scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for one decoded matrix. Matrices of all shapes and types share it: one is used at a time in a thread."""
    return scratch("matrix", (prod(shape) * dtype.itemsize,), torch.uint8, device).view(dtype).view(shape)


def fill_rows(out: Tensor, fill: Callable[[slice, Tensor], None]) -> None:
    """Write `out` [rows, columns] some rows at a time: fill(rows, floats) writes float32 [rows, columns].

    The floats are `out` itself if it is float32, else scratch that is rounded into it.
    """
    count = max(1, chunk_values(out.device) // max(1, out.shape[1]))
    for start in range(0, out.shape[0], count):
        target = out[start : start + count]
        direct = out.dtype is torch.float32
        floats = target if direct else scratch("floats", tuple(target.shape), torch.float32, out.device)
        fill(slice(start, start + len(target)), floats)
        if not direct:
            target.copy_(floats)


def release() -> None:
    """Return this thread's scratch to the allocator."""
    _local.__dict__.pop("held", None)
