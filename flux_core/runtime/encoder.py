"""An encoder under a budget: streamed whole, through whatever room there is, each time something new is encoded.

Uses no tokenizer and no prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.load import Resident
from ..memory.managed_model import ManagedModel, Tensors, bind_rest
from ..memory.manager import Manager
from ..memory.report import JobReport
from ..memory.running import Demand, running
from ..memory.workload import Workload
from ..models.tensor_trees import map_tensors, shapes_of
from .dry_run import DryRun, branch_shapes, dry_run, shape_of

ENCODER = 1  # priority: of two models that need the same room, the higher one gets it


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
        self._observed: dict[Hashable, DryRun] = {}
        names = dry_run(self.module, lambda module: module(*sample)).order
        self.model = manager.admit(
            ManagedModel(label, ENCODER, manager.allocator, self.module, tensors, names, dtype, holder.round_to)
        )
        bind_rest(self.module, tensors, manager.device, holder.dtype, holder.round_to)
        self.report: JobReport | None = None

    def run(self, *args: Any, module: nn.Module | None = None, tokens: int | None = None) -> Any:
        """What the encoder makes of these arguments. Out of memory, it runs again with less beside it.

        module: a copy of `self.module` to run instead, with LoRAs. tokens: how many there are, if the first argument's
        first two sides do not say so. Raises BudgetTooSmall.
        """
        module = module or self.module
        self.model.reserve_scratch()
        machine = self.manager.machine(self.model, tokens or prod(args[0].shape[:2]))
        with running(self.manager, self.model, self._demand(module, args), machine) as model:
            self.report = model.report
            return model.step(lambda: module(*args))

    def _demand(self, module: nn.Module, args: tuple[Any, ...]) -> Demand:
        """What a run of `module`, LoRAs and all, with arguments like these will take and do."""
        settings = tuple(arg for arg in args if not isinstance(arg, Tensor))
        key = shapes_of(args), settings, branch_shapes(module)
        if key not in self._observed:
            sample = map_tensors(args, shape_of)
            self._observed[key] = dry_run(module, lambda copy: copy(*sample))
            self.activations[key] = self._observed[key].peak
        observed = self._observed[key]

        def workload(fixed: Mapping[str, int]) -> Workload:
            return self.model.workload(observed.uses, fixed)

        return Demand(workload, self.activations, key)

    def close(self) -> None:
        self.model.close()
