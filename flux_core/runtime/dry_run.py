"""What a model will need besides weights, found by running it on the meta device: shapes without memory.

Every tensor the run makes is followed from birth to death; the most bytes alive at once are its peak. The matrices it
multiplies with are noted in order of use, which is the order in which they can be streamed. What kernels take inside
themselves is not seen: a measurement after the first step replaces the estimate.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.linear import Linear
from ..quant.held import DenseProducts


@dataclass(frozen=True)
class DryRun:
    """Peak bytes of everything the run made, and the modules whose matrices it took, in order."""

    peak: int
    order: tuple[str, ...]


class _Births(TorchDispatchMode):
    """Counts bytes of storages that appear in results, until they die."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch's compiler is not used here, and would take two seconds to import."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._die, key, storage.nbytes())

    def _die(self, key: int, nbytes: int) -> None:
        self.known.discard(key)
        self.alive -= nbytes


class _Noted(DenseProducts):
    """Stands for a matrix: shape only, and a note of each use."""

    def __init__(self, name: str, shape: tuple[int, int], order: list[str]) -> None:
        self.name, self.shape, self.order = name, shape, order

    @contextmanager
    def dense(self, dtype: torch.dtype) -> Iterator[Tensor]:
        self.order.append(self.name)
        yield _outside(lambda: torch.empty(self.shape, dtype=dtype, device="meta"))


def _outside(make: Callable[[], Tensor]) -> Tensor:
    """Made where no one counts: weights are accounted for elsewhere."""
    with torch.utils._python_dispatch._disable_current_modes():
        return make()


@contextmanager
def _all_noted(module: nn.Module, order: list[str]) -> Iterator[None]:
    linears = [(name, part) for name, part in module.named_modules() if isinstance(part, Linear)]
    kept = [(part, part.weight, part.held) for _, part in linears]
    for name, part in linears:
        part.weight, part.held = None, _Noted(name, (part.out_features, part.in_features), order)
    try:
        yield
    finally:
        for part, weight, held in kept:
            part.weight, part.held = weight, held


def dry_run(module: nn.Module, call: Callable[[], object]) -> DryRun:
    """Run `call`, which uses `module`; both live on the meta device, and so must everything handed to it."""
    order: list[str] = []
    births = _Births()
    with torch.inference_mode(), _all_noted(module, order), births:
        result = call()
        del result
    return DryRun(births.peak, tuple(order))
