"""Finds the memory and the work of a model by running it on the meta device, where tensors have shapes and no memory.

The model is run as it will run later, including LoRAs. Three things are observed:

    peak        the lifetime of every tensor of the run; the most bytes that exist at once
    order       which weights its Linears use, in order: the schedule by which they can be streamed. A weight that is
                used again (shared, or needed once more in the backward pass) occurs once per use
    work        floating-point operations between one use and the next, of products and of attention, by the shapes;
                the bytes that all other operations read and write; and the number of operations

Memory that kernels use internally is not seen: a measurement after the first step replaces the estimate.

A model consists mostly of sequences of identical blocks. Each kind of block is run once, and its observation is
repeated for the other blocks of the kind that have inputs of the same shapes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..memory.workload import ObservedUse
from ..models.copies import deep
from ..models.linear import Linear
from ..models.tensor_trees import map_tensors, shapes_of, tensors_of
from ..quant.held import DenseProducts, IntegerWeight
from ..quant.int8 import FEWEST_ROWS
from .meta_results import META, MetaResults, new_like
from .observed_work import moved_by, work_of

KINDS_OF_WORK = 8  # the numbers of an ObservedUse

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class DryRun:
    """Peak bytes of all tensors of the run besides weights, and the uses of weights in order."""

    peak: int
    uses: tuple[ObservedUse, ...]

    @property
    def backward(self) -> bool:
        """Whether gradients were computed through weights."""
        return any(use.transposed for use in self.uses)

    @property
    def order(self) -> tuple[str, ...]:
        """The names of the weights in order of first use."""
        return tuple(dict.fromkeys(use.name for use in self.uses))


def dry_run(module: Module, call: Callable[[Module], object], gradients: bool = False, repeat: bool = True) -> DryRun:
    """Run `call(copy)`, with a copy of `module` on the meta device; all other inputs must be on the meta device too.

    module: on any device, with its weights loaded or not. gradients: record them, for a call with a backward pass.
    repeat: run only one of several identical blocks; ignored with gradients.
    """
    observer = _Observer()
    copy = on_meta(module)
    for name, linear in copy.named_modules():
        if isinstance(linear, Linear):
            shape, integers = (linear.out_features, linear.in_features), isinstance(linear.held, IntegerWeight)
            linear.held = _Observed(f"{name}.weight", shape, observer, integers)
            linear.weight = None
    observer.ignore(weights_of(copy))
    if repeat and not gradients:
        _repeat_blocks(copy, observer)
    with torch.enable_grad() if gradients else torch.inference_mode(), _WholeAttention(observer), observer:
        result = call(copy)
        del result
    return DryRun(observer.peak, tuple(observer.uses()))


def on_meta(module: Module) -> Module:
    """A copy of a module tree without memory: parameters, buffers and side branches are only shapes."""
    copy = deep(module)
    with nullcontext() if torch.is_grad_enabled() else torch.inference_mode():
        for part in copy.modules():
            for table in (part._parameters, part._buffers):
                table.update({name: shape_of(tensor) for name, tensor in table.items() if tensor is not None})
            if isinstance(part, Linear):
                part.branches = map_tensors(part.branches, shape_of)
                part.reweighings = map_tensors(part.reweighings, shape_of)
    return copy


def weights_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and the tensors of side branches."""
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        if isinstance(part, Linear):
            yield from tensors_of((part.branches, part.reweighings))


def branch_shapes(module: nn.Module) -> Hashable:
    """A value that is equal for modules of the same kind whose side branches have the same memory and work, at any
    strength.
    """
    linears = [(name, part) for name, part in module.named_modules() if isinstance(part, Linear)]
    branches = [(name, shapes_of(part.branches), shapes_of(part.reweighings)) for name, part in linears]
    return tuple(each for each in branches if each[1:] != ((), ()))


def shape_of(tensor: Tensor) -> Any:
    """The same tensor without memory, on the meta device."""
    made = new_like(tensor).requires_grad_(tensor.requires_grad)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


class _Observer(MetaResults):
    """Observes every operation: counts the bytes of storages from their first result to their end, and the work."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()
        self._uncounted = False
        self._weight: int | None = None  # the storage of the weight in use
        self._names: list[str] = []
        # before the first use, then after each: the operations of ObservedUse in its order
        self._work: list[list[float]] = [[0.0] * KINDS_OF_WORK]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = super().__torch_dispatch__(func, types, args, kwargs)
        products, attention = work_of(func, args, kwargs, result)
        work = self._work[-1]
        work[7] += "empty" not in str(func._overloadpacket)  # a repeated block makes its results in this way
        work[0] += products
        work[1] += attention
        if not attention and not self._of_weight(args):
            work[6 if products else 5] += moved_by(func, args, kwargs, result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Mark tensors as weights: they are counted elsewhere, also where an operation returns one unchanged."""
        self._known.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def use(self, name: str, numbers: int) -> None:
        """Record the use of a weight with this many numbers: the work that follows belongs to it."""
        self._names.append(name)
        self._work.append([0.0] * KINDS_OF_WORK)
        self._work[-1][4] = numbers

    @contextmanager
    def product_of(self, weight: Tensor) -> Iterator[None]:
        """Operations with a streamed weight in this context are its product, whose time depends on its FLOP."""
        self._weight = weight.untyped_storage()._cdata
        try:
            yield
        finally:
            self._weight = None

    def _of_weight(self, args: tuple[Any, ...]) -> bool:
        return any(isinstance(arg, Tensor) and arg.untyped_storage()._cdata == self._weight for arg in args)

    def multiply_integers(self, operations: float) -> None:
        """Record a product in integers."""
        self._work[-1][2] += operations

    def multiply_transposed(self, flop: float) -> None:
        """Record that the products since the last use of a weight, `flop` of them, are with its transpose."""
        self._work[-1][0] -= flop
        self._work[-1][3] += flop

    def attention(self, flop: float) -> None:
        """Record work that no operation shows."""
        self._work[-1][1] += flop

    def uses(self) -> Iterator[ObservedUse]:
        """Work before the first use is added to the last one, because one step follows another."""
        first, *after = self._work
        if after:
            after[-1] = [one + other for one, other in zip(first, after[-1], strict=True)]
        for name, work in zip(self._names, after, strict=True):
            yield ObservedUse(name, *work)

    def watch(self, run: Callable[[], Any], prefix: str) -> tuple[Any, _Observation]:
        """Run a part of the model. Returns its result and what it did."""
        before, uses, work = self.peak, len(self._names), [*self._work[-1]]
        base = self.peak = self.alive
        result = run()
        extra, self.peak = self.peak - base, max(before, self.peak)
        mine = [[now - then for now, then in zip(self._work[uses], work, strict=True)], *self._work[uses + 1 :]]
        names = tuple(name.removeprefix(prefix) for name in self._names[uses:])
        return result, _Observation(extra, names, tuple(map(tuple, mine)))

    def again(self, seen: _Observation, prefix: str) -> None:
        """Record the same observation again under another prefix."""
        self.peak = max(self.peak, self.alive + seen.extra)
        first, *after = seen.work
        self._work[-1] = [now + more for now, more in zip(self._work[-1], first, strict=True)]
        self._names += [prefix + name for name in seen.names]
        self._work += [[*work] for work in after]

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Tensors created in this context are not activations: weights are counted elsewhere."""
        self._uncounted = True
        try:
            yield
        finally:
            self._uncounted = False

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        nbytes = 0 if self._uncounted else storage.nbytes()
        self._known.add(key)
        self.alive += nbytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._die, key, nbytes)

    def _die(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.alive -= nbytes


class _WholeAttention(TorchFunctionMode):
    """Keeps attention as one operation that saves what a fused kernel saves. Outside inference mode the meta device
    would decompose it, unlike any real device.
    """

    def __init__(self, observer: _Observer) -> None:
        super().__init__()
        self.observer = observer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and not torch.is_inference_mode_enabled():
            query, key, value = args[:3]
            return _FusedAttention.apply(query, key, value, self.observer)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _FusedAttention(torch.autograd.Function):
    """Memory and work of attention in tiles (Dao et al. 2022): scores are computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, observer: _Observer) -> Tensor:
        out = torch.empty_like(query)
        ctx.observer, ctx.flop = observer, 4.0 * query.numel() * key.shape[-2]
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        observer.attention(ctx.flop)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        ctx.observer.attention(2.5 * ctx.flop)
        sums = torch.empty_like(query, dtype=torch.float32)  # of the gradient of the queries
        slopes = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del sums
        return *slopes, None


@dataclass(frozen=True)
class _Observation:
    """What a part of a model did: bytes beyond those that existed before, weights used, work before and after each
    use.
    """

    extra: int
    names: tuple[str, ...]  # within the part
    work: tuple[tuple[float, ...], ...]


def _repeat_blocks(model: nn.Module, observer: _Observer) -> None:
    """Make every block of a list reuse the observation of an identical block with inputs of the same shapes."""
    known: dict[Hashable, tuple[Any, _Observation] | None] = {}
    for path, parts in model.named_modules():
        if isinstance(parts, nn.ModuleList):
            for number, block in enumerate(parts):
                block.forward = _looked_up(block, f"{path}.{number}.", observer, known)


def _looked_up(
    block: nn.Module, prefix: str, observer: _Observer, known: dict[Hashable, tuple[Any, _Observation] | None]
) -> Callable[..., Any]:
    """`block.forward`, run only if no identical block was run with tensors of these shapes."""
    forward = block.forward

    def call(*args: Any) -> Any:
        settings = tuple(arg for arg in args if not isinstance(arg, Tensor))
        key = _make_of(block), shapes_of(args), settings
        seen = known.get(key)
        if seen is not None:
            result, observation = seen
            observer.again(observation, prefix)
            return map_tensors(result, torch.empty_like)
        result, observation = observer.watch(lambda: forward(*args), prefix)
        given = {tensor.untyped_storage()._cdata for tensor in tensors_of(args)}
        with observer.uncounted():
            shapes = map_tensors(result, torch.empty_like)
        made = list(tensors_of(result))
        fresh = made and not any(tensor.untyped_storage()._cdata in given for tensor in made)
        known[key] = (shapes, observation) if fresh else None
        return result

    return call


def _make_of(block: nn.Module) -> Hashable:
    """A value that is equal for identical blocks: those with the same parts, sizes, settings and branches."""
    parts = []
    for name, part in block.named_modules():
        settings = tuple((key, value) for key, value in vars(part).items() if isinstance(value, (int, float, str)))
        sizes = tuple((key, shapes_of(tensor)) for key, tensor in part._parameters.items())
        branches = (shapes_of(part.branches), shapes_of(part.reweighings)) if isinstance(part, Linear) else ()
        held = part.held if isinstance(part, Linear) else None
        integers = isinstance(held, _Observed) and held.integers
        parts.append((name, type(part), settings, sizes, branches, integers))
    return tuple(parts)


class _Observed(DenseProducts):
    """A placeholder of a weight: it has the shape and records each use."""

    def __init__(self, name: str, shape: tuple[int, int], observer: _Observer, integers: bool) -> None:
        """integers: whether it is multiplied in integers."""
        self.name, self.shape, self.observer, self.integers = name, shape, observer, integers

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if not self.integers or x.shape[0] < FEWEST_ROWS:
            return super().multiply(x, bias)
        self.observer.use(self.name, prod(self.shape))
        self.observer.multiply_integers(2.0 * x.numel() * self.shape[0])
        out = x.new_empty(x.shape[0], self.shape[0])
        torch.empty_like(x, dtype=torch.int8)  # the codes of x exist at the same time
        return out

    def multiply_transposed(self, grad: Tensor) -> Tensor:
        found = super().multiply_transposed(grad)
        self.observer.multiply_transposed(2.0 * grad.numel() * self.shape[1])
        return found

    @contextmanager
    def dense(self, dtype: torch.dtype) -> Iterator[Tensor]:
        self.observer.use(self.name, prod(self.shape))
        with self.observer.uncounted():
            weight = torch.empty(self.shape, dtype=dtype, device=META)
        with self.observer.product_of(weight):
            yield weight
