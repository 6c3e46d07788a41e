"""A text encoder under a budget: streamed whole, through whatever room there is, each time a new prompt is encoded.

Knows no tokenizer and no prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.load import Resident
from ..memory.managed_model import ManagedModel, Tensors, bind_rest
from ..memory.manager import Manager
from ..memory.report import JobReport
from ..memory.workload import MiB, Workload
from ..models.tensor_trees import map_tensors, shapes_of
from .dry_run import branch_shapes, dry_run, shape_of

ENCODER = 1  # who gets room that two want
RETRIES, OVER = 3, 256 * MiB  # of a run that was out of memory, and how much more it gets: twice as much each time


class ManagedEncoder:
    """One encoder on one device. Its matrices are rounded as `holder` rounds them, the rest is loaded by it."""

    def __init__(
        self,
        manager: Manager,
        label: str,
        make: Callable[[], nn.Module],
        tensors: Tensors,
        dtype: torch.dtype,
        holder: Resident,
        sample: tuple[Any, ...],
    ) -> None:
        """make: the module, called on the meta device; sample: arguments of some run, on the meta device too.

        Raises FileFormatError if the file is incomplete.
        """
        self.manager, self.label = manager, label
        with torch.device("meta"):
            self.module = make()
        self.activations: dict[Hashable, int] = {}
        names = dry_run(self.module, lambda module: module(*sample)).order
        self.model = manager.admit(
            ManagedModel(label, ENCODER, manager.slabs, self.module, tensors, names, dtype, holder.round_to)
        )
        bind_rest(self.module, tensors, manager.device, holder.dtype, holder.round_to)
        self.report: JobReport | None = None

    def run(self, *args: Any, module: nn.Module | None = None) -> Any:
        """What the encoder makes of these arguments. Out of memory, it runs again with less beside it.

        module: a copy of `self.module` to run instead, with LoRAs.

        Raises BudgetTooSmall.
        """
        needed = OVER
        module = module or self.module
        with self.opened(module, *args):
            for _ in range(RETRIES):
                try:
                    return module(*args)
                except torch.OutOfMemoryError:
                    pass  # outside this clause the failed run's tensors are gone
                if not self.manager.evict(self.model, needed):
                    break
                needed *= 2
            return module(*args)

    @contextmanager
    def opened(self, module: nn.Module, *args: Any) -> Iterator[None]:
        """`module`, the encoder's own or a copy of it, may run once with these arguments. Raises BudgetTooSmall."""
        self.model.reserve_scratch()
        tokens = prod(args[0].shape[:2])

        def workload(fixed: Mapping[str, int]) -> Workload:
            return self.model.chain(tokens, fixed)

        machine = self.manager.machine(self.model, tokens)
        with self.manager.opened(self.model, workload, machine, self._activations(module, args)) as plan:
            self.report, stream = self.manager.report(self.model, plan), self.model.stream
            assert stream is not None
            began, waited, read = time.perf_counter(), stream.waited, self.model.source.bytes_read
            try:
                yield
            finally:
                seconds = time.perf_counter() - began
                self.report.step(seconds, stream.waited - waited, self.model.source.bytes_read - read)
                self.report.peak = self.manager.memory.peak_bytes()
                self.report.close()

    def _activations(self, module: nn.Module, args: tuple[Any, ...]) -> int:
        settings = tuple(arg for arg in args if not isinstance(arg, Tensor))
        key = shapes_of(args), settings, branch_shapes(module)
        if key not in self.activations:
            sample = map_tensors(args, shape_of)
            self.activations[key] = dry_run(module, lambda copy: copy(*sample)).peak
        return self.activations[key]

    def close(self) -> None:
        self.model.close()
