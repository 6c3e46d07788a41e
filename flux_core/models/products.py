"""Where a model asks whether to go on: before each product of matrices, each convolution and each attention.

Such an operation cannot be interrupted, and on a CPU the largest of a full-size model take most of a second. So nothing
longer than one of them lies between two questions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cancel import check_cancelled


def before_product() -> None:
    """Raises Interrupted if the run is to end. Not part of a graph that torch.compile makes."""
    if not torch.compiler.is_compiling():
        check_cancelled()


class Convolution(nn.Conv2d):
    """nn.Conv2d that asks first."""

    def forward(self, input: Tensor) -> Tensor:
        before_product()
        return super().forward(input)
