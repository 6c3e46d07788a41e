"""An encoder under a budget: all its weights are streamed through the available memory for each encoding.

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
from ..parallel.share import DeviceShare
from .dry_run import DryRun, branch_shapes, dry_run, shape_of

ENCODER = 1  # priority: if two models need the same memory, the one with the higher priority gets it


class ManagedEncoder:
    """One encoder on one device. Its matrices are rounded according to `holder`, which loads all other tensors."""

    def __init__(
        self,
        manager: Manager,
        label: str,
        make: Callable[[], nn.Module],
        tensors: Tensors,
        dtype: torch.dtype,
        holder: Resident,
        sample: tuple[Any, ...],
        share: DeviceShare | None = None,
    ) -> None:
        """make: creates the module on the meta device; sample: arguments of some run, also on the meta device. share:
        of this device, if several hold some rows of each matrix.

        Raises FileFormatError if the file is incomplete.
        """
        self.manager, self.label = manager, label
        with torch.device("meta"):
            self.module = make()
        self.activations: dict[Hashable, int] = {}
        self._observed: dict[Hashable, DryRun] = {}
        names = dry_run(self.module, lambda module: module(*sample)).order
        self._share = share
        cut, self._agreement = (None, None) if share is None else (share.weights, share.agreement)
        if cut:
            cut.narrow(self.module, tensors)
        own = cut.tensors(tensors) if cut else tensors
        self.model = manager.admit(
            ManagedModel(label, ENCODER, manager.allocator, self.module, own, names, dtype, holder.round_to)
        )
        if cut:
            cut.wrap(self.module, tensors)
        bind_rest(self.module, tensors, manager.device, holder.dtype, holder.round_to)
        self.report: JobReport | None = None

    def run(self, *args: Any, module: nn.Module | None = None, tokens: int | None = None) -> Any:
        """The output for these arguments. If memory runs out, it runs again after other models were freed.

        module: a copy of `self.module` with LoRAs that runs instead. tokens: their number, if the first two dimensions
        of the first argument do not give it. Raises BudgetTooSmall.
        """
        module = module or self.module
        self.model.reserve_scratch()
        machine = self.manager.machine(self.model, tokens or prod(args[0].shape[:2]))
        with running(self.manager, self.model, self._demand(module, args), machine) as model:
            self.report = model.report
            if self._share is not None:
                self.report.count_exchange(self._share.exchange_seconds)
            agreement = self._agreement
            if agreement is None:
                return model.step(lambda: module(*args))
            return model.step(lambda: agreement.of(lambda: module(*args)), together=True)

    def _demand(self, module: nn.Module, args: tuple[Any, ...]) -> Demand:
        """The memory and work of a run of `module`, including LoRAs, with arguments like these."""
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
