"""The adaLN rows of a run under a budget: one pass over their matrices before the run, looked up in a table during it.

Another seed reads no matrix, nor does another LoRA or strength, whose part is added to the rows of the bare model.
Another prompt does: the rows depend on its pooled vector.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

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
from .dry_run import META, dry_run
from .modulation import ModulationTable, Rows, modulations, modulators, with_branches

VECTOR = ("time_in.", "vector_in.", "guidance_in.")  # layers that make the vector all modulation depends on

Call = tuple[Tensor, Tensor, Tensor | None]  # timesteps [B], pooled [B, vec], guidance [B] | None


class RowStore:
    """The table of one model, and the matrices that it is filled from."""

    def __init__(self, manager: Manager, weights: ManagedModel, bare: FluxBody) -> None:
        """bare: the model without LoRAs."""
        self.manager, self.weights, self.bare = manager, weights, bare
        self.table = ModulationTable()

    def of_run(self, run: Run, module: FluxBody, uses: Sequence[LoraUse]) -> RunRows:
        """Rows for a run of `module`, which has the LoRAs of `uses`. All that the run will ask for are in the table."""
        rows = RunRows(self, module, _inseparable(module, uses))
        calls = _calls(run, self.weights.dtype)
        self.table.expected = frozenset(rows.key(call) for call in calls)
        rows.fill(calls)
        return rows

    def compute(self, module: FluxBody, vectors: dict[Hashable, Tensor]) -> None:
        """Put the rows of these vectors [B, D] into the table, by one pass over the matrices. Raises BudgetTooSmall."""
        weights, count = self.weights, sum(vector.shape[0] for vector in vectors.values())
        everything = torch.empty(count, module.sizes.hidden, dtype=weights.dtype, device=META)
        observed = dry_run(module, lambda copy: modulations(copy, [everything]))

        def workload(fixed: Mapping[str, int]) -> Workload:
            return weights.workload(observed.uses, fixed)

        made = sum(stored.shape[0] for stored in weights.stored.values()) * count * weights.dtype.itemsize
        with self.manager.opened(weights, workload, self.manager.machine(weights, 64), 2 * made):
            self.table.fill(module, vectors)
        weights.close()


class RunRows:
    """What one run asks of the table."""

    def __init__(self, store: RowStore, module: FluxBody, loras: Hashable) -> None:
        """loras: names those whose part cannot be added to rows later, and is in the table; empty for none."""
        self.store, self.module, self.loras = store, module, loras

    def has(self, inputs: DenoiserInputs) -> bool:
        return self.has_call(_call(inputs))

    def add(self, inputs: DenoiserInputs) -> None:
        """Compute what was not foreseen. The model itself must not be open."""
        self.fill([_call(inputs)])

    def of(self, inputs: DenoiserInputs) -> Rows:
        """Out of the table, with what the branches of the run's model add. Raises KeyError if it is not there."""
        return self.of_call(_call(inputs))

    def has_call(self, call: Call) -> bool:
        return not self.store.table.missing([self.key(call)])

    def expect(self, calls: Sequence[Call]) -> None:
        """Compute what of these is missing, and keep them all. The model itself must not be open."""
        self.store.table.expected = frozenset(self.key(call) for call in calls)
        self.fill(calls)

    def of_call(self, call: Call) -> Rows:
        """As `of`, by what the rows depend on."""
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
        """Names a row by the exact bits it depends on. Waits for nothing if they are on the CPU."""
        timesteps, pooled, guidance = call
        parts = [timesteps, pooled, *([] if guidance is None else [guidance])]
        bits = torch.cat([part.flatten().to("cpu", torch.float32) for part in parts]).numpy().tobytes()
        return self.loras, timesteps.shape[0], guidance is None, bits


def _inseparable(module: FluxBody, uses: Sequence[LoraUse]) -> Hashable:
    """Names the LoRAs whose part in the table cannot be added to it later; empty, as nearly always, for none.

    Those change what all rows depend on, or look at a matrix themselves (DoRA, OFT).
    """
    touched = [path for use in uses for path in use.lora.changes]
    if any(linear.reweighings for linear in modulators(module)) or any(path.startswith(VECTOR) for path in touched):
        return tuple(use.identity for use in uses)
    return ()


def _call(inputs: DenoiserInputs) -> Call:
    return inputs.timesteps, inputs.pooled, inputs.guidance


def _calls(run: Run, dtype: torch.dtype) -> list[Call]:
    """Every timestep of every condition, as the guider will ask for it, on the CPU."""
    batch = run.shape[0]
    calls: list[Call] = []
    for condition in run.conditions:
        pooled, value = repeat_to_batch(condition.pooled, batch), condition.guidance
        guidance = None if value is None else torch.full((batch,), value).to(dtype)
        times = [time for time in dict.fromkeys(run.timesteps) if time > 0]
        calls += [(torch.full((batch,), time), pooled, guidance) for time in times]
    return calls
