"""Looks up values in tables: several neighbouring codes are one index, and an entry has as many values.

On a CPU `index_select` is PyTorch's fastest look-up, but it uses one core. Therefore many codes are divided among
threads that each use one core: 1.5 times as fast on two cores as `gather`, which uses all of them.

Independent of formats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..processor.threads import run_parts, thread_count
from .workspace import scratch

CODES = 1 << 19  # at a time for each thread: the overhead of a call is small, and their indices fit in a core's caches


def look_up(table: Tensor, codes: Tensor, values: Tensor) -> None:
    """values[i] = table[codes[i]]. codes [n]: integers; table [m] and values [n] of one type, contiguous."""
    if codes.device.type != "cpu":
        index = scratch("index", tuple(codes.shape), torch.int32, codes.device)
        torch.index_select(table, 0, index.copy_(codes), out=values)
        return
    threads = thread_count(codes.numel())
    count = max(1, -(-codes.numel() // threads))
    index = scratch("index", (threads, min(count, CODES)), torch.int32, codes.device)
    run_parts(lambda *part: _look_up(table, *part), zip(codes.split(count), values.split(count), index, strict=False))


def _look_up(table: Tensor, codes: Tensor, values: Tensor, index: Tensor) -> None:
    """index: memory for the indices, int32; as many codes at a time as it has room for."""
    with torch.inference_mode():
        for some, out in zip(codes.split(len(index)), values.split(len(index)), strict=True):
            torch.index_select(table, 0, index[: len(some)].copy_(some), out=out)


def nibbles_into(packed: Tensor, levels: Tensor, out: Tensor, high_first: bool = False) -> None:
    """Decode bytes of two four-bit codes: packed uint8 [n] -> out float32 [2 n], each code's level.

    levels: float32 [16], on the device of the codes. high_first: the first code is the upper half of the byte.
    """
    low, high = levels.repeat(16), levels.repeat_interleave(16)
    pair = (high, low) if high_first else (low, high)
    table = torch.stack(pair, dim=1).view(torch.int64).view(-1)
    look_up(table, packed, out.view(-1).view(torch.int64))
