"""What a process of `sluice bench memory` measures: steps of the transformer, a prompt of an encoder, or whole images.

Each function takes a setup and returns a record for JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..memory.budget import format_size
from ..memory.report import JobReport
from ..memory.workload import letters
from .files import path_of
from .limit import physical_limit
from .steps import Setup, SlowlyChanging, condition_of, manager_of, runtime_of, sample


def measure_flux(setup: Setup) -> dict[str, Any]:
    """Steps of the transformer under the budget."""
    from ..runtime import handles

    runtime = runtime_of(setup)
    model = handles.load_flux(runtime, path_of(setup.folder, setup.file))
    began = time.perf_counter()
    _, computed = sample(model, setup, condition_of(setup, runtime.device), seed=1, adjust=SlowlyChanging())
    seconds = time.perf_counter() - began
    flux = model.weights.managed(manager_of(runtime), model.dtype, model.compute)
    assert flux.report is not None
    record = _record(flux.report, physical_limit(flux, setup)) | {"sampling_seconds": seconds, "computed": computed}
    print(_line(setup, record), flush=True)
    return record


def measure_t5(setup: Setup) -> dict[str, Any]:
    """One prompt through the encoder under the budget."""
    from ..runtime.model_weights import T5Weights

    runtime = runtime_of(setup)
    weights = T5Weights(runtime, _tensors(setup, "t5"), "t5")
    encoder = weights.managed(manager_of(runtime), torch.float32)
    width = encoder.module.config.width
    tokens = torch.randn(1, setup.tokens, width, generator=torch.Generator().manual_seed(0)).to(runtime.device)
    with torch.inference_mode():
        encoder.run(tokens)
    record = _record(encoder.report, None)
    print(_line(setup, record), flush=True)
    return record


def measure_job(setup: Setup) -> dict[str, Any]:
    """Encode, sample, decode; again with another seed, and with another prompt. The bytes read and the peak of each."""
    job = _Job(setup)
    for name, (prompt, seed) in {"first": (0, 1), "another seed": (0, 2), "another prompt": (1, 2)}.items():
        if name != "another seed":
            condition = job.phase(f"{name}: encode", partial(job.encode, prompt))
        latent, computed = job.phase(f"{name}: sample", partial(sample, job.model, setup, condition, seed))
        job.phase(f"{name}: decode", partial(job.coder.decode_image, latent.cpu()))
    sampling = sum(each["seconds"] for each in job.phases if each["phase"].endswith("sample")) / 3
    record = {"sampling_seconds": sampling, "computed": computed, "limit_bytes": job.manager.limit}
    return record | {"phases": job.phases, "peak_bytes": max(each["peak_bytes"] for each in job.phases)}


class _Job:
    """The models of an image: two text encoders, the transformer and the autoencoder, under one budget."""

    def __init__(self, setup: Setup) -> None:
        from ..runtime import handles
        from ..runtime.model_weights import ClipWeights, T5Weights

        self.setup, self.runtime = setup, runtime_of(setup)
        self.manager = manager_of(self.runtime)
        self.encoders: dict[str, T5Weights | ClipWeights] = {
            "t5": T5Weights(self.runtime, _tensors(setup, "t5", "t5-fp16"), "t5"),
            "clip": ClipWeights(self.runtime, _tensors(setup, "clip_l", "clip-fp16"), "clip"),
        }
        self.model = handles.load_flux(self.runtime, path_of(setup.folder, setup.file))
        self.coder = handles.load_autoencoder(self.runtime, path_of(setup.folder, "ae-fp32"))
        self.phases: list[dict[str, Any]] = []

    def encode(self, prompt: int) -> Any:
        """A condition from random tokens. prompt: their seed."""
        from ..sampling.conditions import Condition

        device = self.runtime.device
        generator, made = torch.Generator().manual_seed(prompt), {}
        for name, weights in self.encoders.items():
            managed = weights.managed(self.manager, torch.float32)
            words = min(32000, managed.module.config.vocabulary)
            ids = torch.randint(0, words, (1, self.setup.tokens if name == "t5" else 77), generator=generator)
            rows = managed.module.embed(ids.to(device))
            args = (rows,) if name == "t5" else (rows, torch.tensor([76], device=device))
            with torch.inference_mode():
                made[name] = managed.run(*args)
        return Condition(context=made["t5"], pooled=made["clip"][1].cpu(), guidance=3.5)

    def read(self) -> dict[str, int]:
        """Bytes that each model has read from its file until now."""
        flux = self.model.weights.managed(self.manager, self.model.dtype, self.model.compute)
        sources = {"transformer": flux.blocks.source, "modulation": flux.modulation.source}
        sources |= {
            name: weights.managed(self.manager, torch.float32).model.source for name, weights in self.encoders.items()
        }
        return {name: source.bytes_read for name, source in sources.items()}

    def phase(self, label: str, work: Callable[[], Any]) -> Any:
        """Do one part of the work, and record and print its time, its peak and the bytes that it read."""
        before, began = self.read(), time.perf_counter()
        result = work()
        after = self.read()
        seconds, peak = time.perf_counter() - began, self.manager.memory.peak_bytes()
        read = {name: after[name] - before[name] for name in after if after[name] > before[name]}
        self.phases.append({"phase": label, "seconds": seconds, "peak_bytes": peak, "read_bytes": read})
        parts = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in read.items()) or "nothing"
        print(f"  {label:<28}{seconds:8.1f} s   peak {format_size(peak)}   read {parts}", flush=True)
        return result


def _tensors(setup: Setup, part: str, file: str | None = None) -> Any:
    from ..checkpoint.detect import detect
    from ..checkpoint.files import open_weights

    return detect(open_weights(path_of(setup.folder, file or setup.file))).parts[part]


def _record(report: JobReport, limit: dict[str, float] | None) -> dict[str, Any]:
    """A report of the memory manager, with the limit of the machine beside it, for JSON."""
    plan = report.plan
    record: dict[str, Any] = {
        "predicted_seconds": plan.seconds, "actual_seconds": report.actual, "bound": plan.bound,
        "stall_seconds": report.stall, "peak_bytes": report.peak, "budget_bytes": report.limit,
        "resident_bytes": plan.resident_bytes, "streamed_bytes": plan.streamed_bytes,
        "homes": letters(plan.locations),
        "step_seconds": [step.seconds for step in report.steps], "predicted_peak_bytes": plan.peak_bytes,
        "fixed": dict(plan.workload.fixed), "slots": plan.slots, "line": report.line(),
    }  # fmt: skip
    return record | {"limit": limit} if limit else record


def _line(setup: Setup, record: dict[str, Any]) -> str:
    head = f"{setup.file} {setup.width}x{setup.height}, {record['line']}"
    limit = record.get("limit")
    if not limit:
        return head
    ratio = record["actual_seconds"] / limit["limit_seconds"]
    return (
        f"{head}\n  limit {limit['limit_seconds']:.2f} s (products and attention {limit['compute_seconds']:.2f} s at "
        f"{limit['gemm_flops'] / 1e12:.2f} TFLOP/s, bytes {limit['transfer_seconds']:.2f} s): "
        f"actual is {ratio:.2f} x the limit"
    )
