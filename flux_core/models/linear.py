"""The one linear layer of every model here: y = x W^T + b, plus side branches.

W is an ordinary parameter, or is lent for the length of one multiplication by whoever holds it (quantised, streamed
or shared bytes). This file does not know where such bytes lie, in which format, or on which device.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeldMatrix(Protocol):
    """A matrix that lives elsewhere and is lent out."""

    def take(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in `dtype`, on the device of the layer's input, valid until `give_back`."""
        ...

    def give_back(self) -> None:
        """The multiplication has been issued; the memory may be used again."""
        ...


class Branch(Protocol):
    """A side branch: what is added to some of the outputs, `rows` [start, end); None means all."""

    @property
    def rows(self) -> tuple[int, int] | None: ...

    def __call__(self, x: Tensor) -> Tensor: ...


class Reweighing(Protocol):
    """A change that depends on the matrix itself, or comes before one that does: a new matrix, in any float type."""

    def reweigh(self, weight: Tensor) -> Tensor: ...


class Linear(nn.Module):
    """nn.Linear that computes in the dtype of its input, whatever dtype the weights are stored in.

    Parameters are left uninitialised: a checkpoint is loaded into them, or the model's `init_weights` fills them.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(out_features, in_features))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.held: HeldMatrix | None = None
        self.branches: tuple[Branch, ...] = ()
        self.reweighings: tuple[Reweighing, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]. Columns beyond `in` are for branches that widen the layer (FLUX control LoRAs)."""
        return self.add_branches(self._multiply(x[..., : self.in_features]), x)

    def add_branches(self, y: Tensor, x: Tensor) -> Tensor:
        """The product y [..., out] with x, and what the side branches add to it; y may be overwritten."""
        for branch in self.branches:
            y = y + branch(x) if branch.rows is None else _add_to_rows(y, branch(x), slice(*branch.rows))
        return y

    def _multiply(self, x: Tensor) -> Tensor:
        if x.ndim > 2:  # as one matrix, even where x is a slice of something wider: no copy of it, bias in the product
            return self._multiply(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.held is None:
            assert self.weight is not None, "neither a parameter nor held elsewhere"
            return F.linear(x, self._reweighed(self.weight.to(x.dtype)), bias)
        try:
            return F.linear(x, self._reweighed(self.held.take(x.dtype)), bias)
        finally:
            self.held.give_back()

    def _reweighed(self, weight: Tensor) -> Tensor:
        dtype = weight.dtype
        for reweighing in self.reweighings:
            weight = reweighing.reweigh(weight)
        return weight.to(dtype) if self.reweighings else weight

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def _add_to_rows(y: Tensor, branch: Tensor, rows: slice) -> Tensor:
    if not torch.is_grad_enabled():
        y[..., rows] += branch
        return y
    padded = torch.zeros_like(y)
    padded[..., rows] = branch
    return y + padded
