"""Reports of models that are loaded whole, as of managed ones: a plan, a prediction, the time of each pass.

The plan has every matrix on the device. The prediction uses the same dry run and the same rates; nothing is streamed,
so neither disk nor link is measured. Uses no budget and frees nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.stored import Stored
from ..memory import meter, rates
from ..memory.plan import plan
from ..memory.report import JobReport, Step
from ..memory.usage import process_peak, reset_process_peak
from ..memory.workload import Budget, Machine, Workload, decode_traffic, grouped, observed_workload
from ..models.denoiser_inputs import DenoiserInputs
from ..models.flux import Flux
from ..models.tensor_trees import map_tensors
from ..quant.formats import PLAIN
from ..quant.int8 import Integers
from ..sampling.guider import Network, Run
from .chosen_attention import note_of
from .device import total_bytes
from .dry_run import DryRun, dry_run, shape_of
from .flux_needs import half_block, heaviest_inputs, streamed_names, tokens_of
from .integer_products import integers_of
from .runtime import Runtime
from .slow_steps import warn_of_slow_steps

Tensors = Mapping[str, Stored]


@contextmanager
def reported_flux(module: Flux, runtime: Runtime, tensors: Tensors, run: Run, dtype: torch.dtype) -> Iterator[Network]:
    """A transformer that reports its run. tensors: of the whole files, also if this device has some rows only."""
    tensors = _held_here(runtime, tensors)
    sample = heaviest_inputs(run, dtype)
    observed = dry_run(module, lambda copy: copy(sample))
    workload = _workload(tensors, streamed_names(observed), observed, dtype, half_block)
    about = "transformer", runtime, runtime.device, tensors
    integers = integers_of(module)
    with _report(*about, workload, tokens_of(sample), dtype, lambda: note_of(module), integers) as (report, timed):
        if runtime.share is None or runtime.share.rank == 0:
            warn_of_slow_steps(sample, report.plan.seconds)

        def reporting(inputs: DenoiserInputs) -> Tensor:
            velocity: Tensor = timed(lambda: module(inputs))
            return velocity

        yield reporting


class ReportedEncoder:
    """An encoder that reports its passes."""

    def __init__(
        self, label: str, encoder: Any, runtime: Runtime, device: torch.device, tensors: Tensors, dtype: torch.dtype
    ) -> None:
        self.config, self.embed = (
            encoder.config,
            getattr(encoder, "embed", None),
        )  # a text encoder's workload, by its tokens
        self._encoder, self._about = encoder, (label, runtime, device, _held_here(runtime, tensors))
        self._dtype = dtype

    def __call__(self, tokens: Tensor, *more: Any) -> Any:
        _, _, _, tensors = self._about
        sample = map_tensors((tokens, *more), shape_of)
        observed = dry_run(self._encoder, lambda copy: copy(*sample))
        workload = _workload(tensors, observed.order, observed, self._dtype)
        count = tokens.shape[0] * tokens.shape[1]
        with _report(*self._about, workload, count, self._dtype) as (_, timed):
            return timed(lambda: self._encoder(tokens, *more))


def _workload(
    tensors: Tensors,
    names: Sequence[str],
    observed: DryRun,
    dtype: torch.dtype,
    group: Callable[[str], str] | None = None,
) -> Callable[[Mapping[str, int]], Workload]:
    """A function that creates the workload of an observed model. names: of its matrices, in order of use."""

    in_integers = {use.name for use in observed.uses if use.integers}

    def traffic(name: str) -> int:
        stored = tensors[name]
        if PLAIN.get(stored.format) == dtype or name in in_integers:
            return 0
        return decode_traffic(stored.nbytes, prod(stored.shape), dtype.itemsize)

    weights = grouped({name: tensors[name].nbytes for name in names}, group)
    return lambda fixed: observed_workload(_file(tensors), weights, observed.uses, traffic, fixed)


@contextmanager
def _report(
    label: str,
    runtime: Runtime,
    device: torch.device,
    tensors: Tensors,
    workload: Callable[[Mapping[str, int]], Workload],
    tokens: int,
    dtype: torch.dtype,
    note: Callable[[], str] = str,
    integers: Integers | None = None,
) -> Iterator[tuple[JobReport, Callable[[Callable[[], Any]], Any]]]:
    """The report, and a function that runs a pass and reports it. note: returns further facts about the run at its end.

    integers: the object that multiplies integers in it.
    """
    weights = sum(weight.nbytes for weight in workload({}).weights)
    reset_process_peak(device)
    wanted = workload({"program and small weights": max(0, _held(device) - weights)})
    machine = _machine(device, tensors, tokens, dtype, integers)
    made = plan(wanted, Budget(1 << 62, 0, 0), machine)
    report = JobReport(label, made, total_bytes(device), runtime.events.emit)
    if runtime.share is not None:
        report.count_exchange(runtime.share.exchange_seconds)

    def timed(work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        done = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        report.step(Step(time.perf_counter() - began, 0.0, 0))
        return done

    try:
        yield report, timed
    finally:
        report.peak, report.note = process_peak(device), note()
        report.close()


def _machine(
    device: torch.device, tensors: Tensors, tokens: int, dtype: torch.dtype, integers: Integers | None
) -> Machine:
    """The device's rates that matter for a model that is not streamed."""
    matrices = [stored for stored in tensors.values() if len(stored.shape) == 2]
    hidden = min(rates.HIDDEN, max(stored.shape[1] for stored in matrices))
    measured = rates.measured_tokens(device, tokens)
    sample = max(matrices, key=lambda stored: stored.nbytes)
    return Machine(
        gemm=rates.gemm_rate(device, dtype, measured, hidden),
        attention=rates.attention_rate(device, dtype, max(256, measured)),
        memory=rates.decode_rate(device, dtype, sample),
        disk=1e9,
        link=None,
        integers=rates.integer_rate(integers, device, dtype, measured, hidden) if integers else None,
    )


def _held_here(runtime: Runtime, tensors: Tensors) -> Tensors:
    """This device's rows, if several devices divide the matrices."""
    cut = runtime.share and runtime.share.weights
    return cut.tensors(tensors) if cut else tensors


def _file(tensors: Tensors) -> str:
    return next(iter(tensors.values())).file.path.name


def _held(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else meter.resident_bytes()
