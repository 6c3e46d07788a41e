"""The work of one PyTorch operation, from the shapes of its tensors: FLOP of products and attention, else bytes."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def work_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[float, float]:
    """FLOP of one operation: (of a product, of attention). Element-wise operations count as none: `moved_by` counts
    their bytes, because memory bandwidth limits them.

    Without gradients composite operations are observed whole; they are counted as the operations into which PyTorch
    decomposes them.
    """
    operation = func._overloadpacket
    if operation is aten.linear:
        return 2.0 * args[0].numel() * args[1].shape[0], 0.0
    if operation is aten.matmul:
        return 2.0 * result.numel() * args[0].shape[-1], 0.0
    if operation in (aten.conv1d, aten.conv2d):
        return 2.0 * result.numel() * prod(args[1].shape[1:]), 0.0
    if operation is aten.scaled_dot_product_attention:
        query, key, value = args[:3]
        scores = query.numel() // query.shape[-1] * key.shape[-2]
        return 0.0, 2.0 * scores * (query.shape[-1] + value.shape[-1])
    formula = flop_registry.get(operation)
    if formula is None:
        return 0.0, 0.0
    flop = float(formula(*args, **kwargs, out_val=result))
    return (0.0, flop) if "attention" in str(operation) else (flop, 0.0)


def moved_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> float:
    """Bytes of the tensors that an operation reads and writes. Views and uninitialised tensors move none."""
    results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not func._schema.is_mutable:
        there = {tensor.untyped_storage()._cdata for tensor in given}
        results = [tensor for tensor in results if tensor.untyped_storage()._cdata not in there]
    if not results or "empty" in str(func._overloadpacket):
        return 0.0
    return float(
        sum(min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()) for tensor in results + given)
    )
