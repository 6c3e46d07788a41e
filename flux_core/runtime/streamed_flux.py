"""FLUX.1 under a budget: its adaLN outputs come from a table, its blocks are streamed.

Before a run the table is filled, the run is observed on the meta device, and a plan is made from the observation. Then
the model's unchanged forward runs. Only the loop over the blocks is replaced: a block that runs out of memory is run
again after resident weights were freed. Uses no nodes and no solver.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..adapters.apply import adapted, reweighed
from ..adapters.lora import LoraUse
from ..checkpoint.stored import Stored
from ..memory.managed_model import ManagedModel, Tensors, bind_rest
from ..memory.manager import Manager
from ..memory.plan import Plan
from ..memory.report import JobReport
from ..memory.running import Demand, RunningModel, running
from ..memory.workload import Workload
from ..models.attention_library import RunAttention
from ..models.copies import deep
from ..models.denoiser_inputs import DenoiserInputs
from ..models.flux import Flux, with_attention, with_controlnets, with_sharing
from ..models.flux_config import FluxConfig
from ..models.tensor_trees import shapes_of
from ..parallel.agree import Agreement
from ..parallel.share import DeviceShare
from ..quant.fp8 import FP8
from ..quant.int8 import Integers
from ..sampling.guider import Network, Run
from .chosen_attention import note_of
from .dry_run import DryRun, branch_shapes
from .flux_needs import (
    control_inputs,
    controlnet_tensors,
    half_block,
    heaviest_inputs,
    observe_blocks,
    smallest_inputs,
    streamed_names,
    tokens_of,
)
from .managed_controlnet import MODULATION, ManagedControlNet
from .modulation import ModulationTable, modulation_linears
from .modulation_rows import RowStore, RunRows
from .slow_steps import warn_of_slow_steps

Result = TypeVar("Result")

TRANSFORMER = 2  # priority: if two models need the same memory, the one with the higher priority gets it


class ManagedFlux:
    """A FLUX transformer on one device, computing in one number type."""

    def __init__(
        self,
        manager: Manager,
        config: FluxConfig,
        tensors: Tensors,
        dtype: torch.dtype,
        round_to: torch.dtype | None,
        integers: Integers | None = None,
        share: DeviceShare | None = None,
    ) -> None:
        """Reads only the small tensors. integers: multiplies the matrices of blocks that are stored as integers. share:
        of this device, if several compute together.

        Raises FileFormatError if the file is incomplete.
        """
        self.manager, self.dtype, self.config = manager, dtype, config
        self.activations: dict[Hashable, int] = {}  # bytes by the kind of run: estimated, later measured
        self.report: JobReport | None = None
        self._observed: dict[Hashable, DryRun] = {}
        with torch.device("meta"):
            self.module = Flux(config)
        self._file, self._share = (tensors, round_to, integers), share
        self.controlnets: tuple[
            ManagedControlNet, ...
        ] = ()  # ControlNets whose blocks are streamed with the transformer's
        self.blocks, self._streamed = self._stream_blocks()
        modulation = [f"{name}.weight" for name in modulation_linears(self.module)]
        device, module = manager.allocator, self.module
        self.modulation = manager.admit(
            ManagedModel("modulation", MODULATION, device, module, tensors, modulation, dtype, round_to)
        )
        bind_rest(self.module, tensors, manager.device, dtype, round_to)
        self.rows = RowStore(manager, self.modulation, self.module)

    @property
    def table(self) -> ModulationTable:
        return self.rows.table

    @contextmanager
    def opened(
        self,
        run: Run,
        uses: Sequence[LoraUse] = (),
        controlnets: Sequence[ManagedControlNet] = (),
        attend: RunAttention | None = None,
    ) -> Iterator[Network]:
        """The network with the LoRAs of `uses`, these ControlNets and this attention, ready for one run. Raises
        BudgetTooSmall.
        """
        self._follow(tuple(controlnets))
        module = adapted(self._streamed, uses, self.manager.device, self.dtype)
        if self._share is not None:
            module = with_sharing(module, self._share.tokens)
        if attend is not None:
            module = with_attention(module, attend)
        sample = heaviest_inputs(run, self.dtype)
        self.blocks.reserve_scratch(reweighed(module))
        rows = self.rows.of_run(run, module, uses)
        control_rows = {net.key: net.rows.of_run(_of_net(run, net.key), net.module, ()) for net in self.controlnets}
        controls = tuple((control.net, control.modes) for control in sample.controls)
        key = shapes_of(sample), sample.reference_method, branch_shapes(module), controls, attend and attend.identity
        observed = self.observed(key, lambda: observe_blocks(module, sample))
        with self._running(observed, key, tokens_of(sample)) as model:
            if self._share is None or self._share.rank == 0:
                warn_of_slow_steps(sample, model.report.plan.seconds)
            agreement = None if self._share is None else self._share.agreement
            if self._share is not None:
                model.report.count_exchange(self._share.exchange_seconds)
            try:
                yield _StreamedNetwork(module, rows, control_rows, model, agreement)
            finally:
                model.report.note = note_of(module)

    @property
    def as_integers(self) -> list[str]:
        """The matrices of blocks that are multiplied as integers; a backward pass decodes them too."""
        return [name for name in self.blocks.stored if self.blocks.in_integers(name)]

    def walked(self, observed: DryRun) -> Callable[[Mapping[str, int]], Workload]:
        """Makes the workload of a step in another schedule than that of sampling, from what else is on the device."""
        self._follow(())
        return lambda fixed: self.blocks.workload(observed.uses, fixed)

    @contextmanager
    def walking(
        self, observed: DryRun, key: Hashable, tokens: int, activations: int | None = None
    ) -> Iterator[RunningModel]:
        """The blocks' weights in another schedule than that of sampling, such as forward and then backward.

        observed: one step of the schedule, named by `key`. tokens: of one image. activations: bytes to expect instead
        of the observed peak. Raises BudgetTooSmall.
        """
        self._follow(())
        self.blocks.reserve_scratch(self.as_integers)
        with self._running(observed, key, tokens, activations) as model:
            yield model

    def foreseen(
        self, observed: DryRun, key: Hashable, tokens: int, beside: int = 0, activations: int | None = None
    ) -> Plan:
        """The plan that `walking` would make if only `beside` bytes were allocated besides. Raises BudgetTooSmall."""
        self._follow(())
        demand = self._demand(observed, key, activations)
        machine = self.manager.machine(self.blocks, tokens, observed.backward)
        return self.manager.foreseen(self.blocks, demand.workload, machine, demand.bytes + beside)

    def _follow(self, controlnets: tuple[ManagedControlNet, ...]) -> None:
        """Stream the blocks of these ControlNets with the transformer's: one ring, one plan, in the order of use.

        Resident blocks of other ControlNets are freed.
        """
        if controlnets != self.controlnets:
            self.blocks.close()
            self.controlnets = controlnets
            self.blocks, self._streamed = self._stream_blocks()

    def _stream_blocks(self) -> tuple[ManagedModel, Flux]:
        """The managed blocks and the module they belong to: a copy with ControlNets, if there are any."""
        manager, (tensors, round_to, integers) = self.manager, self._file
        module, inputs = self.module, smallest_inputs(self.config, self.dtype)
        if self.controlnets:
            nets = {net.key: deep(net.module) for net in self.controlnets}
            module = with_controlnets(deep(self.module), nets)
            inputs = replace(inputs, controls=tuple(
                control_inputs(net.key, net.module.config, inputs) for net in self.controlnets
            ))  # fmt: skip
            tensors = _together(tensors, round_to, {net.key: net.tensors for net in self.controlnets})
            round_to = None
            # the transformer's first: if it is too large to be quantised in this memory, they do not quantise
            given = (integers, *(net.integers for net in self.controlnets))
            integers = next((one for one in given if one is not None), None)
        names = streamed_names(observe_blocks(module, inputs))
        cut = self._share and self._share.weights
        if cut:
            cut.narrow(module, tensors)
        blocks = ManagedModel(
            "transformer", TRANSFORMER, manager.allocator, module, cut.tensors(tensors) if cut else tensors, names,
            self.dtype, round_to, half_block, integers,
        )  # fmt: skip
        if cut:
            cut.wrap(module, tensors)
        return manager.admit(blocks), module

    def observed(self, key: Hashable, observe: Callable[[], DryRun]) -> DryRun:
        """The observation of the step named by `key`, made once."""
        if key not in self._observed:
            self._observed[key] = observe()
        return self._observed[key]

    @contextmanager
    def _running(
        self, observed: DryRun, key: Hashable, tokens: int, activations: int | None = None
    ) -> Iterator[RunningModel]:
        machine = self.manager.machine(self.blocks, tokens, observed.backward)
        with running(self.manager, self.blocks, self._demand(observed, key, activations), machine) as model:
            self.report = model.report
            yield model

    def _demand(self, observed: DryRun, key: Hashable, activations: int | None = None) -> Demand:
        """The memory and work of steps like the observed one."""
        if key not in self.activations:
            taken = self.manager.memory.taken_bytes(observed.peak)
            self.activations[key] = taken if activations is None else activations

        def workload(fixed: Mapping[str, int]) -> Workload:
            return self.blocks.workload(observed.uses, fixed)

        return Demand(workload, self.activations, key)

    def close(self) -> None:
        """Free its memory on the device; the next run starts from the file."""
        for model in (self.blocks, self.modulation):
            model.close()


class _StreamedNetwork:
    """The network of a run: rows from the table, then the model's forward, block by block."""

    def __init__(
        self,
        module: Flux,
        rows: RunRows,
        control_rows: Mapping[str, RunRows],
        model: RunningModel,
        agreement: Agreement | None,
    ) -> None:
        """agreement: with the other devices that compute the same blocks; None if there are none."""
        self.module, self.rows, self.control_rows, self.model = module, rows, control_rows, model
        self.agreement = agreement

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        active = {control.net: self.control_rows[control.net] for control in inputs.controls}
        unforeseen = [rows for rows in (self.rows, *active.values()) if not rows.has(inputs)]
        if unforeseen:
            self.model.model.park()
            for rows in unforeseen:
                rows.add(inputs)
            self.model.replan()
        table = self.rows.of(inputs)
        control_rows = {net: rows.of(inputs) for net, rows in active.items()}
        self.model.follow_budget()

        def step() -> Tensor:
            out: Tensor = self.module(inputs, modulation=table, control_rows=control_rows, run_block=self._run_block)
            return out

        out = self.model.step(self._agreed(step), together=self.agreement is not None)
        self.model.measure()
        return out

    def _run_block(self, block: nn.Module, *args: object) -> object:
        """A block leaves its inputs as they are, so it can be run again: on all devices, if there are several."""
        stream = self.model.model.stream
        assert stream is not None
        self.model.report.report_ring(stream.in_ring)
        return self.model.attempt(self._agreed(lambda: block(*args)), together=self.agreement is not None)

    def _agreed(self, work: Callable[[], Result]) -> Callable[[], Result]:
        agreement = self.agreement
        return work if agreement is None else lambda: agreement.of(work)


def _together(tensors: Tensors, round_to: torch.dtype | None, nets: Mapping[str, Tensors]) -> dict[str, Stored]:
    """The transformer's tensors, rounded to `round_to`, and those of ControlNets, which are not rounded."""
    through = next((name for name, dtype in FP8.items() if dtype == round_to), "")
    own = {name: replace(stored, through=stored.through or through) for name, stored in tensors.items()}
    return own | controlnet_tensors(nets)


def _of_net(run: Run, key: str) -> Run:
    """The part of a run in which a ControlNet takes part."""
    mine = tuple(c for c in run.conditions if any(control.weights.key == key for control in c.controls))
    return replace(run, conditions=mine)
