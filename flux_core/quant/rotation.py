"""The rotation of ConvRot (arXiv 2512.03673): groups of columns times a regular Hadamard matrix.

H = H4 (x) H4 (x) ... of 4^k columns, H4 = [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], divided by its
root. It is symmetric and its own inverse, so the same product rotates and undoes the rotation. Here it is applied
without the root, so that sums of whole numbers stay exact; the caller divides by `root(group)`, a power of two.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .workspace import scratch

INNER = 16  # size of the two factors as which H is applied


def root(group: int) -> float:
    """The number by which the result of `rotate` must be divided."""
    return float(1 << (group.bit_length() // 2))


def rotate(x: Tensor, group: int) -> None:
    """Each `group` neighbouring columns of x [rows, columns], float32 and contiguous, times H without its root."""
    inner = min(INNER, group)
    outer = group // inner
    spare = scratch("rotated", tuple(x.shape), torch.float32, x.device)
    torch.mm(x.view(-1, inner), hadamard(inner, x.device), out=spare.view(-1, inner))
    if outer == 1:
        x.copy_(spare)
        return
    torch.matmul(hadamard(outer, x.device), spare.view(-1, outer, inner), out=x.view(-1, outer, inner))


@cache
def hadamard(size: int, device: torch.device) -> Tensor:
    """float32 [size, size] of 1 and -1."""
    with torch.inference_mode(False):
        four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32)
        matrix = torch.ones(1, 1)
        while matrix.shape[0] < size:
            matrix = torch.kron(matrix, four)
        return matrix.to(device)
