"""The adaLN rows of a run under a budget: one pass over their matrices before the run, lookups in a table during it.

Another seed reads no matrix. Neither does another LoRA or strength, whose part is added to the rows of the model
without LoRAs. Another prompt does, because the rows depend on its pooled vector.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from ..adapters.lora import LoraUse
from ..images.resize import repeat_to_batch
from ..memory.managed_model import ManagedModel
from ..memory.manager import Manager
from ..memory.workload import Workload
from ..models.denoiser_inputs import DenoiserInputs
from ..models.flux_body import FluxBody
from ..sampling.guider import Run
from .dry_run import dry_run
from .meta_results import META
from .modulation import ModulationTable, Rows, modulations, modulators, with_branches

VECTOR = ("time_in.", "vector_in.", "guidance_in.")  # layers of the vector on which all modulation depends

Call = tuple[Tensor, Tensor, Tensor | None]  # timesteps [B], pooled [B, vec], guidance [B] | None


class RowStore:
    """The table of one model, and the matrices from which it is filled."""

    def __init__(self, manager: Manager, weights: ManagedModel, bare: FluxBody) -> None:
        """bare: the model without LoRAs."""
        self.manager, self.weights, self.bare = manager, weights, bare
        self.table = ModulationTable()

    def of_run(self, run: Run, module: FluxBody, uses: Sequence[LoraUse]) -> RunRows:
        """Rows for a run of `module`, which has the LoRAs of `uses`. The table then has all rows that the run will
        need.
        """
        rows = RunRows(self, module, _inseparable(module, uses))
        calls = _calls(run, self.weights.dtype)
        self.table.expected = frozenset(rows.key(call) for call in calls)
        rows.fill(calls)
        return rows

    def compute(self, module: FluxBody, vectors: dict[Hashable, Tensor]) -> None:
        """Add the rows of these vectors [B, D] to the table with one pass over the matrices. Raises BudgetTooSmall."""
        workload, activations = self.needs(module, sum(vector.shape[0] for vector in vectors.values()))
        with self.manager.opened(self.weights, workload, self.manager.machine(self.weights, 64), activations):
            self.table.fill(module, vectors)
        self.weights.close()

    def needs(self, module: FluxBody, count: int) -> tuple[Callable[[Mapping[str, int]], Workload], int]:
        """The workload of computing `count` rows, from what else is on the device, and the bytes of activations."""
        weights = self.weights
        everything = torch.empty(count, module.sizes.hidden, dtype=weights.dtype, device=META)
        observed = dry_run(module, lambda copy: modulations(copy, [everything]))

        def workload(fixed: Mapping[str, int]) -> Workload:
            return weights.workload(observed.uses, fixed)

        return workload, 2 * self.nbytes(count)

    def nbytes(self, count: int) -> int:
        """Bytes of `count` rows."""
        return sum(stored.shape[0] for stored in self.weights.stored.values()) * count * self.weights.dtype.itemsize


class RunRows:
    """The rows of one run."""

    def __init__(self, store: RowStore, module: FluxBody, loras: Hashable) -> None:
        """loras: names of the LoRAs whose part is in the table because it cannot be added to rows later; often
        empty.
        """
        self.store, self.module, self.loras = store, module, loras

    def has(self, inputs: DenoiserInputs) -> bool:
        return self.has_call(_call(inputs))

    def add(self, inputs: DenoiserInputs) -> None:
        """Compute rows that were not foreseen. The model must not be open."""
        self.fill([_call(inputs)])

    def of(self, inputs: DenoiserInputs) -> Rows:
        """The rows from the table, with the outputs of the branches of the run's model added. Raises KeyError if they
        are missing.
        """
        return self.of_call(_call(inputs))

    def has_call(self, call: Call) -> bool:
        return not self.store.table.missing([self.key(call)])

    def expect(self, calls: Sequence[Call]) -> None:
        """Compute the missing ones of these rows, and keep all of them and no others. The model must not be open."""
        self.store.table.expected = frozenset(self.key(call) for call in calls)
        self.store.table.drop_others()
        self.fill(calls)

    def of_call(self, call: Call) -> Rows:
        """`of` for the values on which the rows depend."""
        rows = self.store.table[self.key(call)]
        if self.loras or not any(linear.branches for linear in modulators(self.module)):
            return rows
        return with_branches(self.module, rows, self.module.vector(*call, self.store.weights.dtype))

    def fill(self, calls: Sequence[Call]) -> None:
        wanted = {self.key(call): call for call in calls}
        missing = self.store.table.missing(list(wanted))
        if not missing:
            return
        with torch.inference_mode():
            vectors = {key: self.module.vector(*wanted[key], self.store.weights.dtype) for key in missing}
            self.store.compute(self.module if self.loras else self.store.bare, vectors)

    def key(self, call: Call) -> Hashable:
        """A key with the exact bits on which a row depends. No synchronisation is needed if they are on the CPU."""
        timesteps, pooled, guidance = call
        parts = [timesteps, pooled, *([] if guidance is None else [guidance])]
        bits = torch.cat([part.flatten().to("cpu", torch.float32) for part in parts]).numpy().tobytes()
        return self.loras, timesteps.shape[0], guidance is None, bits


def _inseparable(module: FluxBody, uses: Sequence[LoraUse]) -> Hashable:
    """The names of the LoRAs whose part cannot be added to rows later; nearly always empty.

    These are LoRAs that change a layer on which all rows depend, or that depend on a matrix (DoRA, OFT).
    """
    touched = [path for use in uses for path in use.lora.changes]
    if any(linear.reweighings for linear in modulators(module)) or any(path.startswith(VECTOR) for path in touched):
        return tuple(use.identity for use in uses)
    return ()


def _call(inputs: DenoiserInputs) -> Call:
    return inputs.timesteps, inputs.pooled, inputs.guidance


def _calls(run: Run, dtype: torch.dtype) -> list[Call]:
    """Every timestep of every condition that the guider will use, on the CPU."""
    batch = run.shape[0]
    calls: list[Call] = []
    for condition in run.conditions:
        pooled, value = repeat_to_batch(condition.pooled, batch), condition.guidance
        guidance = None if value is None else torch.full((batch,), value).to(dtype)
        times = [time for time in dict.fromkeys(run.timesteps) if time > 0]
        calls += [(torch.full((batch,), time), pooled, guidance) for time in times]
    return calls
