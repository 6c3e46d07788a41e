"""Models under a budget: FLUX.1 with its modulation table and streamed blocks, and text encoders, streamed whole.

Each wraps a module whose matrices a manager lends out. Before a run the table is filled, a plan made, and then the
plain forward of the model runs: nothing in it knows of any of this. Knows no nodes, no solver, no files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..binding import Resident, bind
from ..checkpoint.stored import Stored
from ..quant.formats import PLAIN
from ..transformer import Flux, FluxConfig
from .dryrun import DryRun, dry_run
from .manager import Manager
from .modulation import ModulationTable, Rows, modulation_linears
from .report import JobReport
from .tenant import Tenant
from .units import FluxShape, Job, Walk, flux_workload
from .workload import MiB, Workload

Tensors = Mapping[str, Stored]
Network = Callable[..., Tensor]

TRANSFORMER, ENCODER = 2, 1  # who gets room that two want
RETRIES = 3  # of one block that ran out of memory, each with more residents given up


class ManagedFlux:
    """A FLUX transformer on one device, computing in one number type."""

    def __init__(
        self, manager: Manager, config: FluxConfig, tensors: Tensors, dtype: torch.dtype, round_to: torch.dtype | None
    ) -> None:
        """Reads the small tensors only. Raises FileFormatError if the file is incomplete."""
        self.manager, self.dtype, self.config, self.tensors = manager, dtype, config, tensors
        self.shape = FluxShape.from_shapes({name: stored.shape for name, stored in tensors.items()})
        self.table = ModulationTable()
        self.measured: dict[Hashable, int] = {}  # activations, after they were first seen
        with torch.device("meta"):
            self.module, self.sketch = Flux(config), Flux(config)
        names = [piece.name for piece in self._workload(Job(64, 64), {}).pieces]
        rows = [f"{name}.weight" for name in modulation_linears(self.module)]
        self.blocks = manager.admit(
            Tenant("transformer", TRANSFORMER, manager.slabs, self.module, tensors, names, round_to)
        )
        self.modulation = manager.admit(
            Tenant("modulation", ENCODER, manager.slabs, self.module, tensors, rows, round_to)
        )
        bind_rest(self.module, tensors, Resident(manager.device, dtype, round_to=round_to))
        self.report: JobReport | None = None

    @contextmanager
    def opened(
        self, shape: Sequence[int], calls: Sequence[tuple[Tensor, Tensor, Tensor | None]], text_tokens: int,
        references: Sequence[Sequence[int]] = (), loras: Hashable = (),
    ) -> Iterator[Network]:  # fmt: skip
        """The network for latents of `shape` [B, C, h, w], ready to run.

        calls: (timesteps [B], y [B, vec], guidance [B] | None) that are known to come: their rows are computed now,
        those of others when they are asked for. loras: names the LoRAs that are attached. Raises BudgetTooSmall.
        """
        job = self._job(shape, text_tokens, references)
        run = _Run(self, job, tuple(shape), tuple(map(tuple, references)), loras)
        self.manager.reserve_scratch(decoded_shapes(self.blocks, self._decoded), self.dtype)
        self.fill_table(calls, loras)
        machine = self.manager.machine(self.blocks, self.dtype, job.image_tokens + job.text_tokens, self.shape.hidden)
        with self.manager.opened(self.blocks, run.workload, machine, run.activations()) as plan:
            self.report = run.report = JobReport(self.blocks.label, plan, self.manager.limit)
            try:
                yield run
            finally:
                run.report.peak = max(run.report.peak, self.manager.memory.peak_bytes())
                run.report.close()

    def fill_table(self, calls: Sequence[tuple[Tensor, Tensor, Tensor | None]], loras: Hashable) -> None:
        """Have the rows of these calls, by one pass over the adaLN matrices."""
        wanted = {row_key(loras, *call): call for call in calls}
        missing = self.table.missing(list(wanted))
        if not missing:
            return
        with torch.inference_mode():
            vectors = {key: self.module.vector(*wanted[key], self.dtype) for key in missing}
            batch = max(vector.shape[0] for vector in vectors.values())

            def workload(fixed: Mapping[str, int]) -> Workload:
                walk = self._walk(batch * len(vectors))
                shapes = self.shape.modulation_matrices()
                walk.chain(shapes, 1, min(_half_block(self.tensors), 64 * MiB))
                return Workload(self.modulation.label, tuple(walk.pieces), fixed)

            rows = sum(size[0] for size in self.shape.modulation_matrices().values()) * self.dtype.itemsize
            machine = self.manager.machine(self.modulation, self.dtype, 64, self.shape.hidden)
            needed = 2 * rows * batch * len(vectors) + 16 * MiB
            with self.manager.opened(self.modulation, workload, machine, needed):
                self.table.fill(self.module, vectors)
            self.modulation.close()

    def _workload(self, job: Job, fixed: Mapping[str, int]) -> Workload:
        return flux_workload(self._name, self.shape, self._nbytes, job, self._decoded, fixed)

    def _walk(self, batch: int) -> Walk:
        return Walk(self._nbytes, self._decoded, batch, self.dtype.itemsize)

    def _job(self, shape: Sequence[int], text_tokens: int, references: Sequence[Sequence[int]]) -> Job:
        batch, _, height, width = shape
        more = sum(-(-ref[-2] // 2) * -(-ref[-1] // 2) for ref in references)
        return Job(8 * height, 8 * width, batch, text_tokens, self.dtype.itemsize, more)

    @property
    def _name(self) -> str:
        return next(iter(self.tensors.values())).file.path.name

    def _nbytes(self, name: str) -> int:
        return self.tensors[name].nbytes

    def _decoded(self, name: str) -> bool:
        stored = self.tensors[name]
        return PLAIN.get(stored.format) != self.dtype or stored.scale is not None


class _Run:
    """The network of one run: rows out of the table, blocks run again when memory runs out."""

    def __init__(
        self, flux: ManagedFlux, job: Job, shape: tuple[int, ...], refs: tuple[tuple[int, ...], ...], loras: Hashable
    ) -> None:
        self.flux, self.job, self.shape, self.references, self.loras = flux, job, shape, refs, loras
        self.report: JobReport | None = None
        self.allowed = flux.manager.allowed

    def __call__(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor, guidance: Tensor | None = None, **more: Any
    ) -> Tensor:
        flux, report = self.flux, self.report
        assert report is not None
        rows = self._rows(timesteps, y, guidance)
        if flux.manager.allowed is not self.allowed:
            self._settle()
        stream = flux.blocks.stream
        assert stream is not None
        began, waited, read = time.perf_counter(), stream.waited, flux.blocks.source.bytes_read
        out = flux.module(
            x, timesteps, context, y, guidance, modulation=rows, run_block=self._run_block, **more
        )
        seconds = time.perf_counter() - began
        report.step(seconds, stream.waited - waited, flux.blocks.source.bytes_read - read)
        report.restarts = stream.restarts
        return out

    def workload(self, fixed: Mapping[str, int]) -> Workload:
        return self.flux._workload(self.job, fixed)

    def activations(self) -> int:
        """Measured, if this was run before; else found by a dry run."""
        key = self.shape, self.job, self.references
        if key not in self.flux.measured:
            self.flux.measured[key] = self._dry_run().peak
        return self.flux.measured[key]

    def _dry_run(self) -> DryRun:
        flux, dtype, batch = self.flux, self.flux.dtype, self.shape[0]
        sketch, config = flux.sketch, flux.config

        def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        def call() -> Tensor:
            counts = (12,) * config.depth + (3,) * config.depth_single
            rows = tuple(meta(batch, count, config.hidden) for count in counts)
            x, context = meta(*self.shape), meta(batch, self.job.text_tokens, config.context_dim)
            times, y = meta(batch, dtype=torch.float32), meta(batch, config.vec_dim)
            refs = [meta(*ref) for ref in self.references]
            return sketch(
                x, times, context, y, None, ref_latents=refs or None,
                modulation=(*rows, meta(batch, 2, config.hidden)),
            )  # fmt: skip

        return dry_run(sketch, call)

    def _rows(self, timesteps: Tensor, y: Tensor, guidance: Tensor | None) -> Rows:
        key = row_key(self.loras, timesteps, y, guidance)
        if self.flux.table.missing([key]):
            self.flux.blocks.park()
            self.flux.fill_table([(timesteps, y, guidance)], self.loras)
            self._settle()
        return self.flux.table[key]

    def _settle(self) -> None:
        """Take over what the budget is now."""
        flux, report = self.flux, self.report
        assert report is not None
        self.allowed = flux.manager.allowed
        flux.blocks.park()
        report.peak = max(report.peak, flux.manager.memory.peak_bytes())
        plan = flux.manager.settle(flux.blocks, self.workload, report.plan.machine, self.activations())
        report.follow(plan, flux.manager.limit)

    def _run_block(self, block: nn.Module, *args: object) -> object:
        """A block leaves its inputs as they are: out of memory, it is run again with residents given up for it."""
        needed = 256 * MiB
        for _ in range(RETRIES):
            try:
                return block(*args)
            except torch.OutOfMemoryError:
                pass  # outside this clause the failed block's tensors are gone
            if not self.flux.manager.make_room(self.flux.blocks, needed):
                break
            assert self.report is not None and self.flux.blocks.plan is not None
            self.report.follow(self.flux.blocks.plan, self.report.limit)
            needed *= 2
        return block(*args)


class ManagedEncoder:
    """A text encoder that streams through whatever room there is. `sample`: arguments of a run, on the meta device."""

    def __init__(
        self, manager: Manager, label: str, make: Callable[[], nn.Module], tensors: Tensors, dtype: torch.dtype,
        round_to: torch.dtype | None, rest: Resident, sample: tuple[Any, ...],
    ) -> None:  # fmt: skip
        self.manager, self.dtype, self.tensors, self.label = manager, dtype, tensors, label
        with torch.device("meta"):
            self.module, sketch = make(), make()
        self.module.eval()
        ran = dry_run(sketch, lambda: sketch(*sample))
        self.activations = ran.peak
        self.names = [f"{name}.weight" for name in ran.order]
        self.tokens = prod(sample[0].shape[:2])
        self.tenant = manager.admit(
            Tenant(label, ENCODER, manager.slabs, self.module, tensors, self.names, round_to)
        )
        bind_rest(self.module, tensors, rest)
        self.report: JobReport | None = None

    @contextmanager
    def opened(self) -> Iterator[nn.Module]:
        """The module, ready to run."""
        self.manager.reserve_scratch(decoded_shapes(self.tenant, self._decoded), self.dtype)
        hidden = max(stored.shape[1] for stored in self.tenant.source.pieces)
        machine = self.manager.machine(self.tenant, self.dtype, self.tokens, hidden)
        with self.manager.opened(self.tenant, self._workload, machine, self.activations) as plan:
            self.report = JobReport(self.label, plan, self.manager.limit)
            stream = self.tenant.stream
            assert stream is not None
            began, read = time.perf_counter(), self.tenant.source.bytes_read
            try:
                yield self.module
            finally:
                seconds = time.perf_counter() - began
                self.report.step(seconds, stream.waited, self.tenant.source.bytes_read - read)
                self.report.peak = self.manager.memory.peak_bytes()
                self.report.close()

    def _workload(self, fixed: Mapping[str, int]) -> Workload:
        walk = Walk(lambda name: self.tensors[name].nbytes, self._decoded, 1, self.dtype.itemsize)
        shapes = {name: (stored.shape[0], stored.shape[1]) for name in self.names for stored in [self.tensors[name]]}
        walk.chain(shapes, self.tokens, 16 * MiB)
        return Workload(self.label, tuple(walk.pieces), fixed)

    def _decoded(self, name: str) -> bool:
        stored = self.tensors[name]
        return PLAIN.get(stored.format) != self.dtype or stored.scale is not None


def decoded_shapes(tenant: Tenant, decoded: Callable[[str], bool]) -> list[tuple[int, ...]]:
    return [stored.shape for stored in tenant.source.pieces if decoded(stored.name)]


def bind_rest(module: nn.Module, tensors: Tensors, rest: Resident) -> None:
    """Read what the manager does not hold: vectors, embeddings, small layers."""
    bind(module, {name: tensors[name] for name, _ in module.named_parameters() if name in tensors}, rest)


def row_key(loras: Hashable, timesteps: Tensor, y: Tensor, guidance: Tensor | None) -> Hashable:
    """Names a row of the table by the exact bits it depends on. One small copy from the device."""
    parts = [timesteps.flatten(), y.flatten(), *([] if guidance is None else [guidance.flatten()])]
    bits = torch.cat([part.to(torch.float32) for part in parts]).cpu().numpy().tobytes()
    return loras, timesteps.shape[0], guidance is None, bits


def _half_block(tensors: Tensors) -> int:
    """Bytes of the largest adaLN matrix: slots of the pass over them need not be larger."""
    return max(stored.nbytes for name, stored in tensors.items() if "mod" in name and name.endswith(".weight"))
