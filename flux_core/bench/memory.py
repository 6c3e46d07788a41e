"""`sluice bench memory`: full-size models under memory budgets, beside what was predicted and what physics allows.

    sluice bench memory                          FLUX.1-dev in fp8 under 6 GiB and in bf16 under 8 GiB, on the CPU
    sluice bench memory --what t5                T5-XXL under 3 GiB
    sluice bench memory --steps 20 --cache off fast      what a step cache saves
    sluice bench memory --what job --ram 6G      encode, sample, decode; again with another seed, and another prompt
    sluice bench memory --device cuda --vram 8G  the same on a GPU; everything at once there: sluice bench gpu

Files of the published sizes with random weights are written first (12 and 24 GB) and deleted afterwards. Each
measurement is a process of its own, so that its peak is its own. The limit is computed from rates measured in the same
process: what the products and the attention of a step take at the rate of single ones, or what streams takes at the
rate of the disk (of the link, on a GPU), whichever is longer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..memory import rates
from ..memory.budget import AUTO, Allowed, format_size
from ..memory.manager import Manager
from ..memory.report import JobReport
from ..memory.workload import letters
from ..runtime.device import find_device
from ..runtime.published import picture_size
from ..runtime.runtime import Runtime
from ..runtime.settings import CACHES, COMPUTES, Settings
from ..runtime.streamed_flux import ManagedFlux
from . import random_model

FORMATS = {"fp8": "F8_E4M3", "bf16": "BF16", "fp16": "F16"}
FULL = (19, 38)  # blocks of FLUX.1
PEER_SECONDS = 600  # for each, loading included
BUDGETS = {"fp8": "6G", "bf16": "8G", "fp16": "8G"}


@dataclass(frozen=True)
class Setup:
    """One measurement, as the process that makes it is told."""

    folder: str
    file: str
    device: str
    vram: str
    ram: str
    width: int
    height: int
    tokens: int
    steps: int
    batch: int
    cache: str = "off"  # a word of settings.CACHES
    compute: str = AUTO  # a word of settings.COMPUTES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench memory`."""
    parser.add_argument(
        "--what",
        choices=("flux", "t5", "job"),
        default="flux",
        help="the transformer (default), a text encoder, or whole images",
    )
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["fp8", "bf16"], help="of the weights")
    parser.add_argument("--ram", nargs="+", default=[], metavar="SIZE", help="budgets to measure under")
    parser.add_argument("--vram", default=AUTO, metavar="SIZE", help="on a GPU (default: what is free)")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda")
    parser.add_argument("--size", nargs="+", default=["256x256"], metavar="WxH", help="of the images")
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the same steps by diffusers and accelerate, if they are installed (default: on a GPU, for bf16)",
    )
    parser.add_argument("--tokens", type=int, default=512, help="of text")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--cache",
        nargs="+",
        choices=CACHES,
        default=["off"],
        help="step caches; several are measured in turn",
    )
    parser.add_argument("--compute", choices=COMPUTES, default=AUTO, help="products of the transformer")
    parser.add_argument("--folder", type=Path, default=Path("bench-models"), help="where files are written")
    parser.add_argument("--keep", action="store_true", help="leave the files for another run")
    parser.add_argument("--depth", type=int, nargs=2, default=FULL, help="fewer blocks, to try this out")
    parser.add_argument("--hidden", type=int, default=3072, help="narrower ones")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Write the files, measure, delete them; one record per measurement. Raises InputError before it writes."""
    for ram in args.ram or [AUTO]:
        Allowed.parse(args.vram, ram)
    for size in args.size:
        picture_size(size)
    wanted = find_device(args.device).type == "cuda" if args.peers is None else args.peers
    records, peers = [], []
    for _, group in groupby(_measurements(args), key=lambda each: tuple(each[2])):
        of_same_files = list(group)
        with written(args.folder, of_same_files[0][2], args.keep):
            for setup, work, _ in of_same_files:
                records.append(_in_a_process(work, setup))
                if wanted and setup.file == "flux-bf16" and work is measure_flux:
                    peers += _peers(setup)
    for line in gains(records):
        print(line, flush=True)
    return {"measurements": records, "peers": peers}


def gains(records: list[dict[str, Any]]) -> Iterator[str]:
    """How much faster each cached run sampled than the run without cache that came before it."""
    exact: dict[str, Any] = {}
    for record in records:
        if record["cache"] == "off":
            exact = record
        elif exact and "sampling_seconds" in record:
            one, other = exact["sampling_seconds"], record["sampling_seconds"]
            yield (
                f"{record['file']} {record['width']}x{record['height']}, {record['steps']} steps: {one:.1f} s without "
                f"cache, {other:.1f} s with --cache {record['cache']} ({record['computed']} computed): "
                f"{one / other:.2f} x faster"
            )


def _peers(setup: Setup) -> list[dict[str, Any]]:
    from .gpu import beside
    from .gpu_parts import Part

    cap = Allowed.parse(setup.vram, setup.ram).vram
    return list(beside(Part(setup, (setup.file,), ((setup.width, setup.height),), 0, cap), PEER_SECONDS))


Make = Callable[[], Any]
Measurement = tuple[Setup, Callable[[Setup], dict[str, Any]], dict[str, tuple[Make, str]]]


def _measurements(args: argparse.Namespace) -> Iterator[Measurement]:
    """(setup, what to do, which files it needs)."""

    def flux() -> Any:
        return random_model.flux(args.depth[0], args.depth[1], args.hidden)

    def t5() -> Any:
        return random_model.t5(24 if tuple(args.depth) == FULL else args.depth[0])

    for format in args.format:
        budgets = args.ram or [BUDGETS[format]] if args.what != "t5" else args.ram or ["3G"]
        for ram in budgets:
            for size in args.size:
                width, height = picture_size(size)
                sizes = (width, height, args.tokens, args.steps, args.batch)
                plain = Setup(str(args.folder), "t5-fp16", args.device, args.vram, ram, *sizes, compute=args.compute)
                if args.what == "t5":
                    yield plain, measure_t5, {"t5-fp16": (t5, "F16")}
                    return
                files: dict[str, tuple[Make, str]] = {f"flux-{format}": (flux, FORMATS[format])}
                if args.what == "job":
                    files |= {
                        "t5-fp16": (t5, "F16"), "clip-fp16": (random_model.clip, "F16"),
                        "ae-fp32": (random_model.autoencoder, "F32"),
                    }  # fmt: skip
                work = measure_job if args.what == "job" else measure_flux
                for cache in args.cache:
                    yield replace(plain, file=f"flux-{format}", cache=cache), work, files


@contextmanager
def written(folder: Path, files: Mapping[str, tuple[Make, str]], keep: bool = False) -> Iterator[None]:
    """Files by name: what module, in which format. Those that are not there yet are made, and deleted afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    try:
        for name, (make, format) in files.items():
            path = path_of(str(folder), name)
            if not path.exists():
                print(f"writing {path} ...", flush=True)
                made.append(path)
                began = time.perf_counter()
                size = random_model.write(path, make, format)
                print(f"  {size / 1e9:.2f} GB at {size / 1e9 / (time.perf_counter() - began):.2f} GB/s", flush=True)
        yield
    finally:
        if not keep:
            for path in made:
                path.unlink(missing_ok=True)


def path_of(folder: str, name: str) -> Path:
    return Path(folder) / f"{name}.{'gguf' if name.endswith('Q8_0') else 'safetensors'}"


def _in_a_process(work: Callable[[Setup], dict[str, Any]], setup: Setup) -> dict[str, Any]:
    """A fresh one: what others have left in this one's memory is not to be counted."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: dict[str, Any] = pool.apply(work, (setup,))
    return asdict(setup) | result


# --- what a process measures ----------------------------------------------------------------------------------


def _runtime(setup: Setup) -> Runtime:
    return Runtime(Settings.parse(setup.device, AUTO, setup.vram, setup.ram, setup.cache, setup.compute))


def condition_of(setup: Setup, device: torch.device, prompt: int = 0) -> Any:
    """What a prompt would be encoded to: random numbers."""
    from ..sampling.conditions import Condition

    generator = torch.Generator().manual_seed(prompt)
    context, pooled = torch.randn(1, setup.tokens, 4096, generator=generator), torch.randn(1, 768, generator=generator)
    return Condition(context=context.to(device), pooled=pooled, guidance=3.5)


@torch.inference_mode()
def sample(
    model: Any, setup: Setup, condition: Any, seed: int, on_step: Callable[[int], object] = lambda number: None
) -> tuple[Tensor, int]:
    """Euler steps by hand: what a sampler asks of a network, and of a step cache if one is set, and nothing else.

    Returns the latent and the number of evaluations that were computed.
    """
    from ..sampling.guider import Run
    from ..sampling.step_cache import CachedEvaluations

    shape = (setup.batch, 16, setup.height // 8, setup.width // 8)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
    sigmas = torch.linspace(1, 0, setup.steps + 1).tolist()
    setting = model.step_cache
    cache = setting and CachedEvaluations(setting, 1 - setting.start_percent, 1 - setting.end_percent)
    computed = 0
    with model.open(Run(shape, tuple(sigmas[:-1]), (condition,))) as network:
        for number, (level, following) in enumerate(zip(sigmas, sigmas[1:], strict=False), start=1):

            def compute(x: Tensor = x, level: float = level) -> Tensor:
                nonlocal computed
                computed += 1
                velocity: Tensor = network(condition.inputs(x, level, model.dtype)).float()
                return velocity

            if cache:
                cache.begin(level)
            velocity = cache.evaluate("condition", x, compute) if cache else compute()
            x = x + (following - level) * velocity
            on_step(number)
    return x, computed


def measure_flux(setup: Setup) -> dict[str, Any]:
    """Steps of the transformer under the budget."""
    from ..runtime import handles

    runtime = _runtime(setup)
    model = handles.load_flux(runtime, path_of(setup.folder, setup.file))
    began = time.perf_counter()
    _, computed = sample(model, setup, condition_of(setup, runtime.device), seed=1)
    seconds = time.perf_counter() - began
    flux = model.weights.managed(manager_of(runtime), model.dtype, model.compute)
    assert flux.report is not None
    record = _told(flux.report, physical_limit(flux, setup)) | {"sampling_seconds": seconds, "computed": computed}
    print(_line(setup, record), flush=True)
    return record


def measure_t5(setup: Setup) -> dict[str, Any]:
    """One prompt through the encoder under the budget."""
    from ..runtime.weights import T5Weights

    runtime = _runtime(setup)
    weights = T5Weights(runtime, _tensors(setup, "t5"), "t5")
    encoder = weights.managed(manager_of(runtime), torch.float32)
    tokens = torch.randn(1, setup.tokens, 4096, generator=torch.Generator().manual_seed(0)).to(runtime.device)
    with torch.inference_mode(), encoder.opened(tokens) as module:
        module(tokens)
    record = _told(encoder.report, None)
    print(_line(setup, record), flush=True)
    return record


def measure_job(setup: Setup) -> dict[str, Any]:
    """Encode, sample, decode; again with another seed, and with another prompt. What each phase read, and its peak."""
    from ..runtime import handles
    from ..runtime.weights import ClipWeights, T5Weights

    runtime = _runtime(setup)
    device, held = runtime.device, manager_of(runtime)
    encoders = {
        name: kind(runtime, _tensors(setup, part, file), name)
        for name, kind, part, file in (("t5", T5Weights, "t5", "t5-fp16"), ("clip", ClipWeights, "clip_l", "clip-fp16"))
    }
    model = handles.load_flux(runtime, path_of(setup.folder, setup.file))
    coder = handles.load_autoencoder(runtime, path_of(setup.folder, "ae-fp32"))
    phases: list[dict[str, Any]] = []

    def encode(prompt: int) -> Any:
        generator, made = torch.Generator().manual_seed(prompt), {}
        for name, weights in encoders.items():
            managed = weights.managed(held, torch.float32)
            ids = torch.randint(0, 32000, (1, setup.tokens if name == "t5" else 77), generator=generator)
            rows = managed.module.embed(ids.to(device))
            args = (rows,) if name == "t5" else (rows, torch.tensor([76], device=device))
            with torch.inference_mode(), managed.opened(*args) as module:
                made[name] = module(*args)
        from ..sampling.conditions import Condition

        return Condition(context=made["t5"], pooled=made["clip"][1].cpu(), guidance=3.5)

    def read() -> dict[str, int]:
        flux = model.weights.managed(held, model.dtype, model.compute)
        sources = {"transformer": flux.blocks.source, "modulation": flux.modulation.source}
        sources |= {name: weights.managed(held, torch.float32).model.source for name, weights in encoders.items()}
        return {name: source.bytes_read for name, source in sources.items()}

    def phase(label: str, work: Callable[[], Any]) -> Any:
        before, began = read(), time.perf_counter()
        result = work()
        after = read()
        phases.append({
            "phase": label, "seconds": time.perf_counter() - began, "peak_bytes": held.memory.peak_bytes(),
            "read_bytes": {name: after[name] - before[name] for name in after if after[name] > before[name]},
        })  # fmt: skip
        told = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in phases[-1]["read_bytes"].items()) or "nothing"
        peak = format_size(phases[-1]["peak_bytes"])
        print(f"  {label:<28}{phases[-1]['seconds']:8.1f} s   peak {peak}   read {told}", flush=True)
        return result

    for job, (prompt, seed) in {"first": (0, 1), "another seed": (0, 2), "another prompt": (1, 2)}.items():
        if job != "another seed":
            condition = phase(f"{job}: encode", partial(encode, prompt))
        latent, computed = phase(f"{job}: sample", partial(sample, model, setup, condition, seed))
        phase(f"{job}: decode", partial(coder.decode_image, latent.cpu()))
    limit = held.limit
    sampling = sum(each["seconds"] for each in phases if each["phase"].endswith("sample")) / 3
    told = {"sampling_seconds": sampling, "computed": computed, "limit_bytes": limit, "phases": phases}
    return told | {"peak_bytes": max(each["peak_bytes"] for each in phases)}


def manager_of(runtime: Runtime) -> Manager:
    """The manager of its models. Ends the program without one."""
    made = runtime.manager(runtime.device, 1 << 62)
    if made is None:
        raise SystemExit("--vram off leaves nothing to measure")
    return made


def _tensors(setup: Setup, part: str, file: str | None = None) -> Any:
    from ..checkpoint.detect import detect
    from ..checkpoint.files import open_weights

    return detect(open_weights(path_of(setup.folder, file or setup.file))).parts[part]


def physical_limit(flux: ManagedFlux, setup: Setup) -> dict[str, float]:
    """After a run, the seconds no step can go below: products and attention alone, or the bytes that must come."""
    assert flux.report is not None
    plan, device, dtype = flux.report.plan, flux.manager.device, flux.dtype
    tokens = rates.measured_tokens(device, setup.height // 16 * (setup.width // 16) + setup.tokens)
    gemm = _best(rates.gemm_rate, device, dtype, tokens, rates.HIDDEN)
    attention = max(plan.machine.attention, _best(rates.attention_rate, device, dtype, max(256, tokens)))
    uses = plan.workload.schedule
    compute = sum(use.products for use in uses) / gemm + sum(use.attention for use in uses) / attention
    disk = max(plan.machine.disk, rates.disk_rate(flux.blocks.source.weights))
    moved = plan.streamed_bytes / (plan.machine.link or disk)
    return {
        "limit_seconds": max(compute, moved, plan.disk_bytes / disk),
        "compute_seconds": compute, "transfer_seconds": moved,
        "gemm_flops": gemm, "disk_bytes_per_second": disk,
        "link_bytes_per_second": plan.machine.link or 0.0,
    }  # fmt: skip


def _best(rate: Any, *what: object) -> float:
    """What was measured before the steps or is now, if that is more: a moment's disturbance makes no limit."""
    before = float(rate(*what))
    try:
        return max(before, float(rate.__wrapped__(*what)))
    except torch.OutOfMemoryError:  # the steps have left no room for it
        return before


def _told(report: JobReport, limit: dict[str, float] | None) -> dict[str, Any]:
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
