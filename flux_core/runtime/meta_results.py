"""The results of operations on the meta device, computed without PyTorch's own functions in Python.

Of most operations PyTorch computes the result on the meta device in Python, and the first of these functions imports
torch._dynamo and sympy: more than a second, for nothing that is used here. The operations that inference meets have a
rule in this file. Any other is left to PyTorch, as is one with arguments that its rule does not describe; this takes
longer and gives the same result.

A result is its number type, shape and strides. tests/cpu/test_meta_results.py compares them with PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, META = torch.device("cpu"), torch.device("meta")
# Beside the operations that PyTorch calls pointwise: the result has the shape of the argument.
SAME_SHAPE = {
    "aten.empty_like.default",
    "aten.full_like.default",
    "aten.ones_like.default",
    "aten.softmax.int",
    "aten.tril.default",
    "aten.triu.default",
    "aten.zeros_like.default",
}
SEQUENCES = {"aten.arange.default", "aten.arange.start", "aten.arange.start_step", "aten.linspace.default"}


class MetaResults(TorchDispatchMode):
    """A context in which operations on the meta device follow the rules of this file."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # a class of torch's without annotations

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else PyTorch would import its compiler, in order to leave this class out when it compiles."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = result_of(func, args, kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result


def result_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation (an OpOverload) whose tensors are on the meta device; NotImplemented without a rule.

    Operations that write into an argument return that argument.
    """
    name = str(func)
    if name in SEQUENCES and kwargs.get("device") == META:
        return _made(func, args, kwargs)
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not given or any(tensor.device != META for tensor in given):
        return NotImplemented
    if func._schema.is_mutable:
        return _written(func, args, kwargs)
    rule = RULES.get(name)
    if rule is not None:
        return rule(*args, **kwargs)
    if torch.Tag.pointwise in func.tags or name in SAME_SHAPE:
        return _elementwise(func, args, kwargs, given)
    return NotImplemented


def new_like(tensor: Tensor) -> Tensor:
    """An uninitialised tensor on the meta device with the number type, shape and order of axes of this one, on any
    device: what torch.empty_like(tensor, device="meta") gives.
    """
    return _with_order(torch.empty_like(_sample(tensor)), tensor.shape)


def _contiguous(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Strides are given, because PyTorch computes `empty_like` and `empty_permuted` in Python."""
    return torch.empty(tuple(shape), dtype=dtype, device=META)


# --- by a small sample on the CPU -----------------------------------------------------------------------------------


def _elementwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: Sequence[Tensor]) -> Any:
    """PyTorch computes the same operation with at most two numbers along each axis; the result is enlarged.

    So the number type and the order of the axes in memory are PyTorch's.
    """
    shape = _broadcast([tensor.shape for tensor in given])
    if shape is None:
        return NotImplemented
    small, options = tree_map(_sample, args), {key: _sample(value) for key, value in kwargs.items()}
    if "device" in options:
        options["device"] = CPU
    try:
        sample = func(*small, **options)
    except (RuntimeError, ValueError, TypeError):
        return NotImplemented  # PyTorch tells what is wrong, in terms of the arguments
    if not isinstance(sample, Tensor) or sample.shape != _at_most_two(shape):
        return NotImplemented
    return _with_order(sample, shape)


def _sample(value: Any) -> Any:
    """Ones on the CPU, at most two along each axis, the axes in the order of the tensor. Other values unchanged."""
    if not isinstance(value, Tensor):
        return value
    sizes, strides, step = _at_most_two(value.shape), [0] * value.ndim, 1
    for axis in sorted(range(value.ndim), key=value.stride):
        if value.stride(axis):
            strides[axis] = step
            step *= max(1, sizes[axis])
    return torch.ones(step, dtype=value.dtype).as_strided(sizes, strides)


def _at_most_two(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(min(size, 2) for size in shape)


def _with_order(sample: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor without gaps whose axes have the order in memory that those of the sample have."""
    strides, step = [0] * len(shape), 1
    for axis in sorted(range(len(shape)), key=lambda axis: (sample.stride(axis), -axis)):
        strides[axis] = step
        step *= max(1, shape[axis])
    return torch.empty_strided(tuple(shape), strides, dtype=sample.dtype, device=META)


def _broadcast(shapes: Sequence[Sequence[int]]) -> tuple[int, ...] | None:
    """The shape of an element-wise operation of tensors with these shapes; None if they do not fit."""
    longest = max(map(len, shapes))
    axes = list(zip(*((1,) * (longest - len(shape)) + tuple(shape) for shape in shapes), strict=True))
    if any(len({*sizes} - {1}) > 1 for sizes in axes):
        return None
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in axes)


def _made(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Sequences of numbers are short: they are made on the CPU."""
    there: Tensor = func(*args, **{**kwargs, "device": CPU})
    return _contiguous(there.shape, there.dtype)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument that the operation writes to, unless it can have another shape afterwards."""
    returned = func._schema.returns
    if torch.Tag.inplace_view in func.tags or len(returned) != 1:
        return NotImplemented
    first = func._schema.arguments[0].alias_info
    if first is not None and first.is_write:
        return args[0]
    given = [leaf.shape for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    out = kwargs.get("out")
    if torch.Tag.pointwise in func.tags and out is not None and given and _broadcast(given) == tuple(out.shape):
        return out
    return NotImplemented


# --- by their shapes ------------------------------------------------------------------------------------------------


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    fits = x.ndim > 1 and weight.ndim == 2 and x.shape[-1] == weight.shape[1] and _one_type(x, weight, bias)
    return _contiguous((*x.shape[:-1], weight.shape[0]), x.dtype) if fits else NotImplemented


def _matmul(x: Tensor, other: Tensor) -> Any:
    fits = x.ndim >= other.ndim > 1 and x.shape[-1] == other.shape[-2] and _one_type(x, other)
    batch = _broadcast([x.shape[:-2], other.shape[:-2]]) if fits else None
    return NotImplemented if batch is None else _contiguous((*batch, x.shape[-2], other.shape[-1]), x.dtype)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *_: Any, **options: Any) -> Any:
    batch = query.shape[:-2]
    fits = key.shape[:-2] == value.shape[:-2] == batch and key.shape[-2] == value.shape[-2] and _one_type(query, key)
    if not fits or query.ndim != 4 or options.get("enable_gqa"):
        return NotImplemented
    return _contiguous((*query.shape[:-1], value.shape[-1]), query.dtype)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any
) -> Any:
    fits = tuple(x.shape[-len(shape) :]) == tuple(shape) and _one_type(x, weight, bias)
    return _contiguous(x.shape, x.dtype) if fits else NotImplemented


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Any:
    return _layer_norm(x, shape, weight) if new_like(x).is_contiguous() else NotImplemented


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any
) -> Any:
    fits = x.ndim == 4 and x.shape[1] % groups == 0 and _one_type(x, weight, bias)
    return _contiguous(x.shape, x.dtype) if fits else NotImplemented


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Any:
    fits = x.ndim == 4 and x.shape[1] == weight.shape[1] * groups and _one_type(x, weight, bias)
    if not fits or isinstance(padding, str):
        return NotImplemented
    sides = zip(x.shape[2:], weight.shape[2:], *(_pair(each) for each in (stride, padding, dilation)), strict=True)
    size = [(n + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for n, kernel, step, pad, gap in sides]
    return _contiguous((x.shape[0], weight.shape[0], *size), x.dtype) if min(size) > 0 else NotImplemented


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    first = tensors[0]
    axis = dim % max(1, first.ndim)
    others = {(*tensor.shape[:axis], 0, *tensor.shape[axis + 1 :]) for tensor in tensors}
    if not first.ndim or len(others) != 1 or not _not_channels_last(tensors) or not _one_type(*tensors):
        return NotImplemented
    size = sum(tensor.shape[axis] for tensor in tensors)
    return _contiguous((*first.shape[:axis], size, *first.shape[axis + 1 :]), first.dtype)


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    if len({tensor.shape for tensor in tensors}) != 1 or not _not_channels_last(tensors):
        return NotImplemented
    return _cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


def _not_channels_last(tensors: Sequence[Tensor]) -> bool:
    """Tensors in channels-last memory are joined to one in channels-last memory."""
    return all(tensor.ndim < 4 or tensor.stride(1) != 1 for tensor in tensors)


def _repeat(x: Tensor, times: Sequence[int]) -> Any:
    shape = (1,) * (len(times) - x.ndim) + tuple(x.shape)
    return _contiguous([size * count for size, count in zip(shape, times, strict=True)], x.dtype)


def _embedding(weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> Any:
    return _contiguous((*indices.shape, *weight.shape[1:]), weight.dtype)


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """Numbers of the first axes."""
    shapes = {tuple(each.shape) for each in indices if each is not None and each.dtype == torch.int64}
    if not x.is_contiguous() or len(shapes) != 1 or any(each is None or each.dtype != torch.int64 for each in indices):
        return NotImplemented
    return _contiguous((*shapes.pop(), *x.shape[len(indices) :]), x.dtype)


def _upsample(x: Tensor, size: Sequence[int] | None, factors: Sequence[float] | None = None) -> Any:
    if x.ndim != 4 or (size is None and factors is None):
        return NotImplemented
    size = size or [int(n * factor) for n, factor in zip(x.shape[2:], factors or (), strict=True)]
    if x.is_contiguous():
        return _contiguous((*x.shape[:2], *size), x.dtype)
    if not x.is_contiguous(memory_format=torch.channels_last) or x.stride(0) < x.stride(2):
        return NotImplemented
    return _contiguous((x.shape[0], *size, x.shape[1]), x.dtype).movedim(-1, 1)


def _reduced(x: Tensor, axes: Sequence[int] | int | None = None, keep: bool = False, **options: Any) -> Any:
    """Sums and means of floating-point numbers."""
    if not x.is_contiguous() or not x.is_floating_point() or any(options.values()):
        return NotImplemented
    return _without(x, axes, keep, x.dtype)


def _all_or_any(x: Tensor, axis: int | None = None, keep: bool = False) -> Any:
    return _without(x, axis, keep, torch.bool) if x.is_contiguous() else NotImplemented


def _without(x: Tensor, axes: Sequence[int] | int | None, keep: bool, dtype: torch.dtype) -> Tensor:
    gone = {axis % x.ndim for axis in ([axes] if isinstance(axes, int) else axes or range(x.ndim))}
    shape = [1 if axis in gone else size for axis, size in enumerate(x.shape) if keep or axis not in gone]
    return _contiguous(shape, dtype)


def _norm(x: Tensor, order: float = 2, axes: Sequence[int] | None = None, keep: bool = False, **options: Any) -> Any:
    return _reduced(x, axes, keep, **options)


def _one_type(*tensors: Tensor | None) -> bool:
    return len({tensor.dtype for tensor in tensors if tensor is not None}) == 1


def _pair(value: Sequence[int]) -> Sequence[int]:
    return value if len(value) == 2 else (value[0], value[0])


# By name, because a PyTorch of another version need not have all of them.
RULES: dict[str, Callable[..., Any]] = {
    "aten.linear.default": _linear,
    "aten.matmul.default": _matmul,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.layer_norm.default": _layer_norm,
    "aten.rms_norm.default": _rms_norm,
    "aten.group_norm.default": _group_norm,
    "aten.conv2d.default": _conv2d,
    "aten.cat.default": _cat,
    "aten.stack.default": _stack,
    "aten.repeat.default": _repeat,
    "aten.embedding.default": _embedding,
    "aten.index.Tensor": _index,
    "aten.upsample_nearest2d.vec": _upsample,
    "aten.all.default": _all_or_any,
    "aten.all.dim": _all_or_any,
    "aten.any.default": _all_or_any,
    "aten.any.dim": _all_or_any,
    "aten.logsumexp.default": _reduced,
    "aten.mean.default": _reduced,
    "aten.mean.dim": _reduced,
    "aten.sum.default": _reduced,
    "aten.sum.dim_IntList": _reduced,
    "aten.linalg_vector_norm.default": _norm,
}
