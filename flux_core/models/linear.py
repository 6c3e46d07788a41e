"""The one linear layer of every model here: y = x W^T + b, plus side branches.

W is an ordinary parameter, or a `HeldWeight`: an object that has the bytes (quantised, streamed, shared) and computes
the product. Independent of: where such bytes are, their format, their device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .copies import shallow
from .products import before_product


class HeldWeight(Protocol):
    """A matrix W [out, in] that is no parameter of the layer. No returned tensor shares memory with W."""

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + bias: x [n, in], bias [out] or None -> [n, out], in the dtype and on the device of x."""
        ...

    def multiply_transposed(self, grad: Tensor) -> Tensor:
        """grad W, the gradient of x: grad [n, out] -> [n, in], in the dtype of grad."""
        ...

    def dense(self, dtype: torch.dtype) -> AbstractContextManager[Tensor]:
        """W as numbers [out, in], for changes that depend on the matrix. Its memory is reused when the context ends."""
        ...

    def fetched(self, dtype: torch.dtype) -> AbstractContextManager[HeldWeight]:
        """The same weight for several products in `dtype`, with its bytes fetched once. Products have the same bits.

        After the context has ended (going backwards, for example) it is fetched for each use."""
        ...


class Branch(Protocol):
    """A side branch: its values are added to some of the outputs, `rows` [start, end); None means all."""

    @property
    def rows(self) -> tuple[int, int] | None: ...

    def __call__(self, x: Tensor) -> Tensor: ...


class Reweighing(Protocol):
    """A change that depends on the matrix, or precedes one that does: it returns a new matrix, of any float type."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the change; they may have gradients."""
        ...

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
        self.held: HeldWeight | None = None
        self.branches: tuple[Branch, ...] = ()
        self.reweighings: tuple[Reweighing, ...] = ()

    @property
    def own_weight(self) -> nn.Parameter:
        """The matrix [out, in] of a layer that owns its weights, as in training."""
        assert self.weight is not None, "held elsewhere"
        return self.weight

    @property
    def own_bias(self) -> nn.Parameter:
        """The bias [out] of a layer that has one."""
        assert self.bias is not None, "a layer without bias"
        return self.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]. Columns beyond `in` are for branches that widen the layer (FLUX control LoRAs)."""
        before_product()
        own = x if x.shape[-1] == self.in_features else x[..., : self.in_features]
        return self.add_branches(self._multiply(own), x)

    def add_branches(self, y: Tensor, x: Tensor) -> Tensor:
        """The product y [..., out] of x plus the values of the side branches; y may be overwritten."""
        for branch in self.branches:
            before_product()
            if branch.rows is None:
                y = y + branch(x)
            else:
                y[..., slice(*branch.rows)] += branch(x)
        return y

    @contextmanager
    def fetched(self, dtype: torch.dtype) -> Iterator[Linear]:
        """The layer for several products in `dtype`, with its matrix fetched once. Products have the same bits."""
        if self.held is None:
            yield self
            return
        with self.held.fetched(dtype) as held:
            layer = shallow(self)
            layer.held = held
            yield layer

    def _multiply(self, x: Tensor) -> Tensor:
        if x.ndim > 2 and (self.held is not None or not x.is_contiguous()):
            # as one matrix, even where x is a slice of something wider: no copy of it, and the bias in the product
            out: Tensor = self._multiply(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
            return out
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.held is not None:
            tensors = [tensor for reweighing in self.reweighings for tensor in reweighing.tensors]
            apply: Callable[..., Tensor] = _HeldProduct.apply
            return apply(x, bias, self.held, self.reweighings, *tensors)
        assert self.weight is not None, "neither a parameter nor held elsewhere"
        return F.linear(x, _reweighed(self.weight.to(x.dtype), self.reweighings), bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def _reweighed(weight: Tensor, reweighings: Sequence[Reweighing]) -> Tensor:
    dtype = weight.dtype
    for reweighing in reweighings:
        weight = reweighing.reweigh(weight)
    return weight.to(dtype)


class _HeldProduct(torch.autograd.Function):
    """y = x W^T + b for a held weight, W changed by reweighings if there are any.

    A product with gradients is computed from numbers, also where W is otherwise multiplied in integers.
    Keeps nothing of W: its memory is reused after the forward pass, so the backward pass fetches it again. Keeps x only
    if the tensors of a reweighing need gradients, which depend on it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, held: HeldWeight, reweighings: Sequence[Reweighing], *tensors: Tensor
    ) -> Tensor:
        ctx.held, ctx.reweighings = held, reweighings
        ctx.save_for_backward(x if any(ctx.needs_input_grad[4:]) else None)
        if not reweighings and not any(ctx.needs_input_grad):
            return held.multiply(x, bias)
        with held.dense(x.dtype) as weight:
            return F.linear(x, _reweighed(weight, reweighings), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, needs_bias, _, _, *trained = ctx.needs_input_grad
        for_bias = grad.sum(0) if needs_bias else None
        if not ctx.reweighings:
            return ctx.held.multiply_transposed(grad) if needs_x else None, for_bias, None, None
        tensors = [tensor for reweighing in ctx.reweighings for tensor in reweighing.tensors]
        wanted = [tensor for tensor, needed in zip(tensors, trained, strict=True) if needed]
        with ctx.held.dense(grad.dtype) as weight, torch.set_grad_enabled(bool(wanted)):
            changed = _reweighed(weight, ctx.reweighings)
            for_x = grad @ changed.detach() if needs_x else None
            (x,) = ctx.saved_tensors
            found = iter(torch.autograd.grad(changed, wanted, grad.t() @ x) if wanted else ())
        return for_x, for_bias, None, None, *(next(found) if needed else None for needed in trained)
