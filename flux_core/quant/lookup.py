"""Looks up values in tables: several neighbouring codes are one index, and an entry has as many values.

Independent of formats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .workspace import scratch


def look_up(table: Tensor, codes: Tensor, values: Tensor) -> None:
    """values[i] = table[codes[i]]. codes: integers of any type; table and values of one type, contiguous.

    `index_select` uses only one core of a CPU; `gather` uses all.
    """
    threads = torch.get_num_threads() if codes.device.type == "cpu" else 1
    if threads == 1 or codes.numel() % threads:
        index = scratch("index", tuple(codes.shape), torch.int32, codes.device)
        torch.index_select(table, 0, index.copy_(codes), out=values)
        return
    index = scratch("index", (threads, codes.numel() // threads), torch.int64, codes.device)
    index.view(-1).copy_(codes)
    torch.gather(table.expand(threads, -1), 1, index, out=values.view(threads, -1))


def nibbles_into(packed: Tensor, levels: Tensor, out: Tensor, high_first: bool = False) -> None:
    """Decode bytes of two four-bit codes: packed uint8 [n] -> out float32 [2 n], each code's level.

    levels: float32 [16], on the device of the codes. high_first: the first code is the upper half of the byte.
    """
    low, high = levels.repeat(16), levels.repeat_interleave(16)
    pair = (high, low) if high_first else (low, high)
    table = torch.stack(pair, dim=1).view(torch.int64).view(-1)
    look_up(table, packed, out.view(-1).view(torch.int64))
