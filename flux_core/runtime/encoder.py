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
from .dry_run import dry_run

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
            self.module, self.sketch = make(), make()
        self.activations: dict[Hashable, int] = {}
        names = [f"{name}.weight" for name in dry_run(self.sketch, lambda: self.sketch(*sample)).order]
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
        with self.opened(*args) as bare:
            module = module or bare
            for _ in range(RETRIES):
                try:
                    return module(*args)
                except torch.OutOfMemoryError:
                    pass  # outside this clause the failed run's tensors are gone
                if not self.manager.make_room(self.model, needed):
                    break
                needed *= 2
            return module(*args)

    @contextmanager
    def opened(self, *args: Any) -> Iterator[nn.Module]:
        """The module, ready to run once with these arguments. Raises BudgetTooSmall."""
        self.model.reserve_scratch()
        tokens = prod(args[0].shape[:2])

        def workload(fixed: Mapping[str, int]) -> Workload:
            return self.model.chain(tokens, fixed)

        machine = self.manager.machine(self.model, tokens)
        with self.manager.opened(self.model, workload, machine, self._activations(args)) as plan:
            self.report, stream = self.manager.report(self.model, plan), self.model.stream
            assert stream is not None
            began, waited, read = time.perf_counter(), stream.waited, self.model.source.bytes_read
            try:
                yield self.module
            finally:
                seconds = time.perf_counter() - began
                self.report.step(seconds, stream.waited - waited, self.model.source.bytes_read - read)
                self.report.peak = self.manager.memory.peak_bytes()
                self.report.close()

    def _activations(self, args: tuple[Any, ...]) -> int:
        sample = [arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args]
        key = tuple(arg.shape if isinstance(arg, Tensor) else arg for arg in args)
        if key not in self.activations:
            self.activations[key] = dry_run(self.sketch, lambda: self.sketch(*sample)).peak
        return self.activations[key]

    def close(self) -> None:
        self.model.close()
