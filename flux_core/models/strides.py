"""One memory layout for the inputs of a model, so that its numbers depend on values and shapes alone.

Kernels choose an algorithm by the strides of their input: a convolution of a channels-first image rounds differently
from one of the same image in channels-last memory. Every model calls a function of this file on its inputs.
"""

from __future__ import annotations

from torch import Tensor


def row_major(x: Tensor) -> Tensor:
    """x with the strides of a new tensor of its shape: x itself if it has them, else a copy or a view.

    `contiguous()` is not enough: it keeps any stride of an axis of length one, and some kernels read those too.
    """
    strides, step = [], 1
    for length in reversed(x.shape):
        strides.append(step)
        step *= max(length, 1)
    return x if x.stride() == tuple(reversed(strides)) else x.contiguous().view(-1).view(x.shape)


def channels_last(x: Tensor) -> Tensor:
    """x [B, C, H, W] with the strides of a new tensor [B, H, W, C], the layout of images."""
    return row_major(x.movedim(1, -1)).movedim(-1, 1)
