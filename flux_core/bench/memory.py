"""`sluice bench memory`: full-size models under memory budgets, compared with the prediction and the machine's limits.

    sluice bench memory                          FLUX.1-dev in fp8 under 6 GiB and in bf16 under 8 GiB, on the CPU
    sluice bench memory --what t5                T5-XXL under 3 GiB
    sluice bench memory --steps 20 --cache off fast      the gain of a step cache
    sluice bench memory --what job --ram 6G      encode, sample, decode; again with another seed, and another prompt
    sluice bench memory --device cuda --vram 8G  the same on a GPU; everything at once there: sluice bench gpu

Files of the published sizes with random weights are written first (12 and 24 GB) and deleted afterwards. Each
measurement is a process of its own, so that earlier ones do not count in its peak. The limit is computed from rates
measured in the same process: the time of the products and the attention of a step at the rates of single ones, or the
time of the streamed bytes at the rate of the disk (on a GPU of the link), whichever is longer.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from ..errors import SluiceError
from ..memory.budget import AUTO, Allowed
from ..runtime.device import find_device
from ..runtime.published import picture_size
from ..runtime.settings import CACHES, COMPUTES
from . import random_model
from .child_process import end_with_parent
from .files import FORMATS, FULL, Make, written
from .measurements import measure_flux, measure_job, measure_t5
from .steps import Setup

PEER_SECONDS = 600  # for each, loading included
BUDGETS = {"fp8": "6G", "bf16": "8G", "fp16": "8G"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench memory`."""
    parser.add_argument(
        "--what",
        choices=("flux", "t5", "job"),
        default="flux",
        help="measure the transformer (default), a text encoder, or whole images",
    )
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, default=["fp8", "bf16"], help="number format of the weights"
    )
    parser.add_argument("--ram", nargs="+", default=[], metavar="SIZE", help="RAM budgets to measure with")
    parser.add_argument("--vram", default=AUTO, metavar="SIZE", help="GPU memory budget (default: what is free)")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda")
    parser.add_argument("--size", nargs="+", default=["256x256"], metavar="WxH", help="size of the images")
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also measure the same steps with diffusers and accelerate, if installed (default: on a GPU, for bf16)",
    )
    parser.add_argument("--tokens", type=int, default=512, help="number of text tokens")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--cache",
        nargs="+",
        choices=CACHES,
        default=["off"],
        help="step caches to measure; several are measured alternately",
    )
    parser.add_argument("--compute", choices=COMPUTES, default=AUTO, help="how the transformer multiplies matrices")
    parser.add_argument("--folder", type=Path, default=Path("bench-models"), help="folder for the model files")
    parser.add_argument("--keep", action="store_true", help="keep the model files for another run")
    parser.add_argument(
        "--depth", type=int, nargs=2, default=FULL, help="number of double and single blocks; fewer for a quick try"
    )
    parser.add_argument("--hidden", type=int, default=3072, help="width of the blocks; smaller for a quick try")


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
    """For each run with a cache: how much faster it sampled than the run without cache before it."""
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


def _in_a_process(work: Callable[[Setup], dict[str, Any]], setup: Setup) -> dict[str, Any]:
    """A new process, so that its peak is not that of an earlier measurement. Raises SluiceError if it dies."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        try:
            return asdict(setup) | pool.submit(work, setup).result()
        except BrokenProcessPool:
            raise SluiceError(
                f"The process that measured {setup.file} with --ram {setup.ram} ended without a result. The system "
                "ends processes when memory runs out: choose a smaller --ram."
            ) from None
