"""`sluice bench devices`: one image on two processes, neither of which may hold the model, beside one process.

    sluice bench devices                         2 + 4 blocks at FLUX.1's full width, --ram 3G for each process
    sluice bench devices --split sp-gather tp    other ways to divide it

A file with random weights is written first (2.5 GB) and deleted afterwards. The peak of each process is the largest
size of its resident set, which this process reads while the other works. What is compared are the velocities of all
steps: the largest difference over the largest number. One process with another text shows how far they can differ.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from ..commands.devices import workers_of
from ..memory.budget import Allowed, format_size, parse_size
from ..runtime.published import picture_size
from ..runtime.runtime import Runtime
from ..runtime.settings import Settings
from ..runtime.team import Team
from . import random_model
from .child_process import end_with_parent
from .files import path_of, written
from .steps import Setup, condition_of, sample

DEVICES = ("cpu:0", "cpu:1")
TOLERANCE = 5e-6
SEED = 1
ANOTHER_TEXT = "another text"
LEAST_OF_ANOTHER_TEXT = 1000 * TOLERANCE
_GLANCE = 0.02  # seconds between two measurements of the processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench devices`."""
    parser.add_argument(
        "--split", nargs="+", default=["sp", "tp"], metavar="WAY", help="ways to split, as for `sluice run`"
    )
    parser.add_argument("--ram", default="3G", metavar="SIZE", help="RAM budget of each process (default: %(default)s)")
    parser.add_argument("--size", default="256x256", metavar="WxH")
    parser.add_argument("--tokens", type=int, default=128, help="number of text tokens")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("bench-models"), help="folder for the model file")
    parser.add_argument("--keep", action="store_true", help="keep the model file for another run")
    parser.add_argument("--depth", type=int, nargs=2, default=(2, 4), help="number of double and single blocks")
    parser.add_argument("--hidden", type=int, default=3072, help="width of the blocks")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """A record for one process, for each split, and for one process with another text.

    Raises InputError before it writes.
    """
    Allowed.parse("auto", args.ram)
    width, height = picture_size(args.size)
    setup = Setup(str(args.folder), "flux-bf16", "cpu", "auto", args.ram, width, height, args.tokens, args.steps, 1)

    def flux() -> Any:
        return random_model.flux(args.depth[0], args.depth[1], args.hidden)

    records: list[dict[str, Any]] = []
    with written(args.folder, {setup.file: (flux, "BF16")}, args.keep):
        size = path_of(setup.folder, setup.file).stat().st_size
        expected: Tensor | None = None
        for split in (None, *args.split, ANOTHER_TEXT):
            velocities, peaks, seconds = _made(setup, split)
            expected = velocities if expected is None else expected
            largest = float(expected.abs().max())
            distance = float((velocities - expected).abs().max()) / largest if largest else math.nan  # of no velocity
            within = all(peak <= parse_size(args.ram) for peak in peaks.values())
            records.append({
                "split": split, "peaks": peaks, "seconds": seconds, "distance": distance, "largest": largest,
                "equal_bits": torch.equal(velocities, expected), "within": within,
            })  # fmt: skip
            print(_line(records[-1], args.ram), flush=True)
    met = all(record["within"] and record["distance"] <= TOLERANCE for record in records[:-1])
    met = met and records[-1]["distance"] >= LEAST_OF_ANOTHER_TEXT
    return {"file_bytes": size, "measurements": records, "met": met}


def _line(record: dict[str, Any], ram: str) -> str:
    peaks = ", ".join(f"{name} {format_size(peak)}" for name, peak in record["peaks"].items())
    return (
        f"  {record['split'] or 'one process':<12} peak {peaks} of {ram} each   {record['seconds']:.1f} s   "
        f"velocities up to {record['largest']:.2f} differ by {record['distance']:.1e}"
    )


def _made(setup: Setup, split: str | None) -> tuple[Tensor, dict[str, int], float]:
    """The velocities that new processes compute, the peak of each, and the seconds."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, end_with_parent) as pool:
        began, made, peaks = time.perf_counter(), pool.submit(_sampled, setup, split), dict[str, int]()
        while not made.done():
            for process in psutil.Process().children(recursive=True):
                _look(process, peaks)
            time.sleep(_GLANCE)
        return made.result(), peaks, time.perf_counter() - began


def _look(process: psutil.Process, peaks: dict[str, int]) -> None:
    try:
        command, size = " ".join(process.cmdline()), process.memory_info().rss
    except psutil.Error:
        return
    name = DEVICES[1] if "team_member.py" in command else DEVICES[0] if "spawn_main" in command else None
    if name is not None:
        peaks[name] = max(peaks.get(name, 0), size)


def _sampled(setup: Setup, split: str | None) -> Tensor:
    from ..runtime import handles

    runtime = Runtime(Settings.parse(setup.device, "fp32", setup.vram, setup.ram))
    threads = max(1, (psutil.cpu_count() or 2) // len(DEVICES))
    torch.set_num_threads(threads)
    if split not in (None, ANOTHER_TEXT):
        given = argparse.Namespace(
            devices="+".join(DEVICES), device=None, vram="auto", ram=str(2 * parse_size(setup.ram)), split=split,
            mesh=None, shares=None,
        )  # fmt: skip
        (options,) = workers_of(given, {"dtype": "fp32"}).values()
        runtime.team = Team.parse(options["team"], runtime.device)
    model = handles.load_flux(runtime, path_of(setup.folder, setup.file))
    condition = condition_of(setup, runtime.device, prompt=int(split == ANOTHER_TEXT))
    velocities: list[Tensor] = []
    sample(model, setup, condition, seed=SEED, on_velocity=velocities.append)
    if runtime.team is not None:
        runtime.team.close()
    return torch.stack(velocities).cpu()
