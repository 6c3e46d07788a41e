"""FLUX.1 under a budget: its adaLN outputs out of a table, its blocks through a stream.

Before a run the table is filled and a plan made; then the plain forward of the model runs, which knows of neither. The
run owns the loop over the blocks: a block that runs out of memory is run again, with residents given up for it. Knows
no nodes and no solver.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..adapters.apply import adapted
from ..adapters.lora import LoraUse
from ..images.resize import repeat_to_batch
from ..memory.managed_model import ManagedModel, Tensors, bind_rest
from ..memory.manager import DRIFT, Manager
from ..memory.report import JobReport
from ..memory.workload import MiB, Workload
from ..models.denoiser_inputs import DenoiserInputs
from ..models.flux import Flux
from ..models.flux_config import FluxConfig
from ..models.tensor_trees import map_tensors, shapes_of, tensors_of
from ..sampling.guider import Network, Run
from .dry_run import DryRun, branch_shapes, dry_run, shape_of
from .flux_workload import TEXT_TOKENS, FluxShape, Job, flux_workload
from .modulation import ModulationTable, Rows, modulation_linears, modulators, rows_like, with_branches

TRANSFORMER, MODULATION = 2, 0  # who gets room that two want
VECTOR = ("time_in.", "vector_in.", "guidance_in.")  # layers that make the vector all modulation depends on
RETRIES = 3  # of what ran out of memory

Result = TypeVar("Result")
Call = tuple[Tensor, Tensor, Tensor | None]  # timesteps [B], y [B, vec], guidance [B] | None


class ManagedFlux:
    """A FLUX transformer on one device, computing in one number type."""

    def __init__(
        self, manager: Manager, config: FluxConfig, tensors: Tensors, dtype: torch.dtype, round_to: torch.dtype | None
    ) -> None:
        """Reads the small tensors only. Raises FileFormatError if the file is incomplete."""
        self.manager, self.dtype, self.config = manager, dtype, config
        self.shape = FluxShape.from_shapes({name: stored.shape for name, stored in tensors.items()})
        self.table = ModulationTable()
        self.activations: dict[Hashable, int] = {}  # by what was run: estimated, then as measured
        self.report: JobReport | None = None
        with torch.device("meta"):
            self.module = Flux(config)
        planned = flux_workload("", self.shape, lambda name: 0, Job(), lambda name: True)
        walks = {
            "transformer": [piece.name for piece in planned.pieces],
            "modulation": [f"{name}.weight" for name in modulation_linears(self.module)],
        }
        self.blocks, self.modulation = (
            manager.admit(ManagedModel(label, rank, manager.slabs, self.module, tensors, walks[label], dtype, round_to))
            for label, rank in (("transformer", TRANSFORMER), ("modulation", MODULATION))
        )
        bind_rest(self.module, tensors, manager.device, dtype, round_to)

    @contextmanager
    def opened(self, run: Run, uses: Sequence[LoraUse] = ()) -> Iterator[Network]:
        """The network with the LoRAs of `uses`, ready for one run. Raises BudgetTooSmall."""
        job = job_of(run, self.dtype)
        module = adapted(self.module, uses, self.manager.device, self.dtype)
        network = _Network(self, module, uses, job, heaviest_inputs(run, self.dtype))
        self.blocks.reserve_scratch()
        calls = _calls(run, self.dtype)
        self.table.expected = frozenset(row_key(network.loras, *call) for call in calls)
        self.fill_table(calls, module, network.loras)
        machine = self.manager.machine(self.blocks, job.image_tokens + job.text_tokens)
        with self.manager.opened(self.blocks, network.workload, machine, network.activations()) as plan:
            self.report = network.report = self.manager.report(self.blocks, plan)
            try:
                yield network
            finally:
                network.close()

    def fill_table(self, calls: Sequence[Call], module: Flux, loras: Hashable) -> None:
        """Have the rows of these calls, by one pass over the adaLN matrices.

        module: the model of the run, whose branches are in the rows if `loras` names any.
        """
        wanted = {row_key(loras, *call): call for call in calls}
        missing = self.table.missing(list(wanted))
        if not missing:
            return
        with torch.inference_mode():
            vectors = {key: module.vector(*wanted[key], self.dtype) for key in missing}
            count = sum(vector.shape[0] for vector in vectors.values())
            outputs = sum(size[0] for size in self.shape.modulation_matrices().values()) * count * self.dtype.itemsize

            def workload(fixed: Mapping[str, int]) -> Workload:
                return self.modulation.chain(count, fixed)

            machine = self.manager.machine(self.modulation, 64)
            with self.manager.opened(self.modulation, workload, machine, 2 * outputs):
                self.table.fill(module if loras else self.module, vectors)
        self.modulation.close()

    def rows(self, call: Call, module: Flux, loras: Hashable) -> Rows:
        """Out of the table, with what the branches of the run's model add. KeyError for a call that is not there."""
        rows = self.table[row_key(loras, *call)]
        if loras or not any(linear.branches for linear in modulators(module)):
            return rows
        return with_branches(module, rows, module.vector(*call, self.dtype))

    def close(self) -> None:
        """Give back what is held on the device; the next run starts from the file."""
        for model in (self.blocks, self.modulation):
            model.close()


class _Network:
    """What a solver calls: rows out of the table, blocks run again when memory runs out, every call reported.

    Beside a GPU the host is one call ahead and no more: there is always work queued, and a cancel is soon heard.
    """

    def __init__(
        self, flux: ManagedFlux, module: Flux, uses: Sequence[LoraUse], job: Job, sample: DenoiserInputs
    ) -> None:
        """module: the model of the run, with the LoRAs of `uses`; sample: the heaviest of its inputs, on meta."""
        self.flux, self.module, self.uses, self.job, self.sample = flux, module, uses, job, sample
        self.loras = _inseparable(module, uses)
        self.report: JobReport | None = None
        self.allowed = flux.manager.allowed
        self.called = False
        self._under_way: deque[tuple[Callable[[], float], Callable[[], float], float, int]] = deque()

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        flux, report = self.flux, self.report
        assert report is not None
        rows = self._rows((inputs.timesteps, inputs.pooled, inputs.guidance))
        self._follow()
        stream, source = flux.blocks.stream, flux.blocks.source
        assert stream is not None
        began, waited, read = flux.manager.slabs.moment(), stream.waited, source.bytes_read

        def call() -> Tensor:
            return self.module(inputs, modulation=rows, run_block=self._run_block)

        out = self._with_room(call)
        ended = flux.manager.slabs.moment()
        self._under_way.append((began, ended, stream.waited - waited, source.bytes_read - read))
        self._tell(0 if report.plan.machine.link is None else 1)
        report.restarts = stream.restarts
        if not self.called:
            self.called = True
            self._measure()
        return out

    def _tell(self, left: int) -> None:
        """Wait for all calls but so many, and report them."""
        assert self.report is not None
        while len(self._under_way) > left:
            began, ended, waited, read = self._under_way.popleft()
            self.report.step(ended() - began(), waited, read)

    def workload(self, fixed: Mapping[str, int]) -> Workload:
        blocks = self.flux.blocks
        return flux_workload(blocks.file_name, self.flux.shape, blocks.nbytes, self.job, blocks.decoded, fixed)

    def activations(self) -> int:
        """As measured, if this was run before; else by a dry run."""
        if self._key not in self.flux.activations:
            self.flux.activations[self._key] = self.flux.manager.memory.taken_bytes(self._dry_run().peak)
        return self.flux.activations[self._key]

    def close(self) -> None:
        assert self.report is not None
        self._tell(0)
        self.report.peak = max(self.report.peak, self.flux.manager.memory.peak_bytes())
        self.report.close()

    @property
    def _key(self) -> Hashable:
        return shapes_of(self.sample), self.sample.reference_method, branch_shapes(self.module)

    def _measure(self) -> None:
        """After the first call: what it took is what later ones will take.

        Above the estimate, room is made at once; well below it, what is left over goes to weights.
        """
        flux, report = self.flux, self.report
        assert report is not None
        over = flux.manager.overrun(flux.blocks)
        if over is None:  # the estimate has to do
            return
        measured = max(0, self.activations() + over + report.plan.workload.fixed["workspace"])
        self.flux.activations[self._key] = measured
        if over > 0 or (over < -DRIFT and report.plan.slots):
            self._settle()

    def _dry_run(self) -> DryRun:
        """Of the model as it will run, LoRAs included: those for control pictures change the shape of its input."""
        vector = self.sample.x.new_empty(self.sample.x.shape[0], self.flux.config.hidden)
        rows = rows_like(self.module, vector)
        return dry_run(self.module, lambda module: module(self.sample, modulation=rows))

    def _rows(self, call: Call) -> Rows:
        if self.flux.table.missing([row_key(self.loras, *call)]):
            self.flux.blocks.park()
            self.flux.fill_table([call], self.module, self.loras)
            self._settle()
        return self.flux.rows(call, self.module, self.loras)

    def _follow(self) -> None:
        """Since the last step the budget may have been changed, or others may have taken room, or left some."""
        flux, report, manager = self.flux, self.report, self.flux.manager
        assert report is not None
        if manager.allowed is not self.allowed or not flux.blocks.ready:
            self._settle()
            return
        short = manager.budget_drift(flux.blocks, report.limit)
        if short < 0:
            self._settle()
        elif short and manager.evict(flux.blocks, short):
            manager.memory.trim()
            assert flux.blocks.plan is not None
            report.follow(flux.blocks.plan, manager.limit)

    def _settle(self) -> None:
        """Plan again, for what the budget and the activations are now."""
        flux, report = self.flux, self.report
        assert report is not None
        self.allowed = flux.manager.allowed
        flux.blocks.park()
        report.peak = max(report.peak, flux.manager.memory.peak_bytes())
        plan = flux.manager.replan(flux.blocks, self.workload, report.plan.machine, self.activations())
        report.follow(plan, flux.manager.limit)

    def _run_block(self, block: nn.Module, *args: object) -> object:
        """A block leaves its inputs as they are, so it can be run again."""
        stream = self.flux.blocks.stream
        assert self.report is not None and stream is not None
        self.report.glance(stream.passing)
        return self._with_room(lambda: block(*args))

    def _with_room(self, work: Callable[[], Result]) -> Result:
        """Out of memory, it is done again with residents given up for it."""
        assert self.report is not None
        needed = 256 * MiB
        for _ in range(RETRIES):
            try:
                return work()
            except torch.OutOfMemoryError:
                pass  # outside this clause the tensors of what failed are gone
            if not self.flux.manager.evict(self.flux.blocks, needed):
                break
            assert self.flux.blocks.plan is not None
            self.report.follow(self.flux.blocks.plan, self.report.limit)
            needed *= 2
        return work()


def _inseparable(module: Flux, uses: Sequence[LoraUse]) -> Hashable:
    """Names the LoRAs whose part in the table cannot be added to it later; empty, as nearly always, for none.

    Those change what all rows depend on, or look at a matrix themselves (DoRA).
    """
    touched = [path for use in uses for path in use.lora.changes]
    if any(linear.reweighings for linear in modulators(module)) or any(path.startswith(VECTOR) for path in touched):
        return tuple(use.identity for use in uses)
    return ()


def heaviest_inputs(run: Run, dtype: torch.dtype) -> DenoiserInputs:
    """Of all inputs that a run will give the network, those with the most tokens: shapes only, on the meta device."""
    x = torch.empty(run.shape, device="meta")
    everything = [map_tensors(condition, shape_of).inputs(x, 1.0, dtype) for condition in run.conditions]
    heaviest = max(everything, key=lambda inputs: sum(tensor.nbytes for tensor in tensors_of(inputs)))
    return map_tensors(heaviest, shape_of)


def job_of(run: Run, dtype: torch.dtype) -> Job:
    """What one step of a run has to do."""
    batch, _, height, width = run.shape
    text = max((condition.context.shape[1] for condition in run.conditions), default=TEXT_TOKENS)
    references = max((_tokens(condition.references) for condition in run.conditions), default=0)
    return Job(8 * height, 8 * width, batch, text, dtype.itemsize, references)


def _tokens(latents: Sequence[Tensor]) -> int:
    return sum(-(-latent.shape[-2] // 2) * -(-latent.shape[-1] // 2) for latent in latents)


def _calls(run: Run, dtype: torch.dtype) -> list[Call]:
    """What the network will be asked for, as the guider will ask it: every timestep of every condition. On the CPU."""
    batch = run.shape[0]
    calls: list[Call] = []
    for condition in run.conditions:
        y, value = repeat_to_batch(condition.pooled, batch), condition.guidance
        guidance = None if value is None else torch.full((batch,), value).to(dtype)
        times = [time for time in dict.fromkeys(run.timesteps) if time > 0]
        calls += [(torch.full((batch,), time), y, guidance) for time in times]
    return calls


def row_key(loras: Hashable, timesteps: Tensor, y: Tensor, guidance: Tensor | None) -> Hashable:
    """Names a row of the table by the exact bits it depends on: waits for nothing if they are on the CPU."""
    parts = [timesteps, y, *([] if guidance is None else [guidance])]
    bits = torch.cat([part.flatten().to("cpu", torch.float32) for part in parts]).numpy().tobytes()
    return loras, timesteps.shape[0], guidance is None, bits
