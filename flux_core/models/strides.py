"""One memory layout for whatever a model is given, so that its numbers depend on values and shapes alone.

Kernels choose their way by the strides of their input: a convolution of a picture that lies channel by channel rounds
differently from one of the same picture pixel by pixel. Every model calls a function of this file where it begins.
"""

from __future__ import annotations

from torch import Tensor


def row_major(x: Tensor) -> Tensor:
    """x with the strides that a new tensor of its shape has: x itself where it has them, else a copy or a view.

    `contiguous()` is not enough: it keeps any stride of an axis of length one, and some kernels look at those too.
    """
    strides, step = [], 1
    for length in reversed(x.shape):
        strides.append(step)
        step *= max(length, 1)
    return x if x.stride() == tuple(reversed(strides)) else x.contiguous().view(-1).view(x.shape)


def channels_last(x: Tensor) -> Tensor:
    """x [B, C, H, W] with the memory of a `row_major` [B, H, W, C], which is how pictures are kept."""
    return row_major(x.movedim(1, -1)).movedim(-1, 1)
