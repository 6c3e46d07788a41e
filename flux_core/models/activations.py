"""tanh-GELU, as FLUX's blocks use it, and its table for sixteen-bit numbers on a CPU.

There are 65,536 numbers of such a type, and a CPU computes one GELU in the time of three look-ups. PyTorch's own
function fills the table, so all results are equal to those of that function.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..processor.c_functions import look_up_rows

LOOKED_UP = 1 << 17  # numbers at a time for each thread, whose indices fit into a core's cache


def gelu(x: Tensor) -> Tensor:
    """tanh-GELU."""
    return F.gelu(x, approximate="tanh")


def gelu_(x: Tensor) -> Tensor:
    """tanh-GELU in the memory of x, which may be a part of a wider tensor."""
    if x.device.type != "cpu" or x.element_size() != 2 or x.requires_grad or torch.compiler.is_compiling():
        out: Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
        return out
    rows = x.flatten(0, -2) if x.ndim > 1 else x[None]
    if rows.data_ptr() != x.data_ptr():  # a copy, because no view has these rows
        return x.copy_(gelu(x))
    table = _table(x.dtype)
    if rows.stride(1) == 1 and look_up_rows(table, rows):
        return x
    count = max(1, LOOKED_UP * torch.get_num_threads() // max(1, rows.shape[1]))
    index = torch.empty(min(count, len(rows)), rows.shape[1], dtype=torch.int64)
    for part in rows.view(torch.uint16).split(count):
        here = index[: len(part)].copy_(part)
        torch.gather(table.expand(len(part), -1), 1, here, out=part.view(torch.int16))
    return x


@cache
def _table(dtype: torch.dtype) -> Tensor:
    """All 65,536 numbers of a two-byte type -> their GELU, as integers.

    In parts that PyTorch computes with one thread: where threads divide a tensor, the last bits of some numbers differ.
    """
    with torch.inference_mode(False), torch.no_grad():
        numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
        return torch.cat([gelu(part) for part in numbers.split(1 << 12)]).view(torch.int16)
