"""Models that are loaded whole report as managed ones do: a plan, a prediction, the time of each pass.

The plan has every matrix on the device. Its prediction rests on the same rates; nothing is streamed, so neither disk
nor link is measured. Knows no budget and frees nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.stored import Stored
from ..memory import meter, rates
from ..memory.managed_model import SLOT_BYTES
from ..memory.plan import plan
from ..memory.report import JobReport
from ..memory.usage import process_peak, reset_process_peak
from ..memory.workload import Budget, Machine, Walk, Workload
from ..models.denoiser_inputs import DenoiserInputs
from ..quant.formats import PLAIN
from ..sampling.guider import Network, Run
from .device import total_bytes
from .flux_workload import FluxShape, flux_workload
from .runtime import Runtime
from .streamed_flux import job_of

Tensors = Mapping[str, Stored]


@contextmanager
def reported_flux(
    network: Network, runtime: Runtime, tensors: Tensors, run: Run, dtype: torch.dtype
) -> Iterator[Network]:
    """A transformer that tells of its run."""
    job = job_of(run, dtype)
    shape = FluxShape.from_shapes({name: stored.shape for name, stored in tensors.items()})

    def decoded(name: str) -> bool:
        return PLAIN.get(tensors[name].format) != dtype

    def workload(fixed: Mapping[str, int]) -> Workload:
        return flux_workload(_file(tensors), shape, lambda name: tensors[name].nbytes, job, decoded, fixed)

    tokens = job.image_tokens + job.text_tokens
    with _report("transformer", runtime, runtime.device, tensors, workload, tokens, dtype) as told:

        def reporting(inputs: DenoiserInputs) -> Tensor:
            return told(lambda: network(inputs))

        yield reporting


class ReportedEncoder:
    """A text encoder that tells of its passes."""

    def __init__(
        self, label: str, encoder: Any, runtime: Runtime, device: torch.device, tensors: Tensors, dtype: torch.dtype
    ) -> None:
        self.config, self.embed = encoder.config, encoder.embed
        self._encoder, self._about = encoder, (label, runtime, device, tensors)
        self._dtype = dtype

    def __call__(self, tokens: Tensor, *more: Any) -> Any:
        _, _, _, tensors = self._about
        matrices = {name: stored for name, stored in tensors.items() if len(stored.shape) == 2}
        shapes = {name: (stored.shape[0], stored.shape[1]) for name, stored in matrices.items()}
        count = tokens.shape[0] * tokens.shape[1]

        def workload(fixed: Mapping[str, int]) -> Workload:
            walk = Walk(
                lambda name: tensors[name].nbytes, lambda name: PLAIN.get(tensors[name].format) != self._dtype, 1, 4
            )
            walk.chain(shapes, count, SLOT_BYTES)
            return Workload(_file(tensors), tuple(walk.pieces), dict(fixed))

        with _report(*self._about, workload, count, self._dtype) as told:
            return told(lambda: self._encoder(tokens, *more))


@contextmanager
def _report(
    label: str,
    runtime: Runtime,
    device: torch.device,
    tensors: Tensors,
    workload: Callable[[Mapping[str, int]], Workload],
    tokens: int,
    dtype: torch.dtype,
) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """A function that does a pass and reports it."""
    weights = sum(piece.nbytes for piece in workload({}).pieces)
    reset_process_peak(device)
    machine = _machine(device, tensors, tokens, dtype)
    made = plan(
        workload({"program and small weights": max(0, _held(device) - weights)}), Budget(1 << 62, 0, 0), machine
    )
    report = JobReport(label, made, total_bytes(device), runtime.events.emit)

    def told(work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        done = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        report.step(time.perf_counter() - began, 0.0, 0)
        return done

    try:
        yield told
    finally:
        report.peak = process_peak(device)
        report.close()


def _machine(device: torch.device, tensors: Tensors, tokens: int, dtype: torch.dtype) -> Machine:
    """The device's rates, as far as a model asks for them that is not streamed."""
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
    )


def _file(tensors: Tensors) -> str:
    return next(iter(tensors.values())).file.path.name


def _held(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else meter.resident_bytes()
