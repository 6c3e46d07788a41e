"""The points at which a model checks for cancelling: before each product of matrices, convolution and attention.

Such an operation cannot be interrupted, and on a CPU the largest of a full-size model take most of a second. So the
time between two checks is at most that of one operation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cancel import check_cancelled


def before_product() -> None:
    """Raises Interrupted if the run was cancelled. Not part of a graph that torch.compile makes."""
    if not torch.compiler.is_compiling():
        check_cancelled()


class Convolution(nn.Conv2d):
    """nn.Conv2d that checks for cancelling first."""

    def forward(self, input: Tensor) -> Tensor:
        before_product()
        return super().forward(input)
