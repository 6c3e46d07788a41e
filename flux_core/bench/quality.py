"""`sluice bench quality`: the loss of quality of each faster setting: PSNR against the exact image of the same seed.

    sluice bench quality                     the shipped model, 16 prompts, 20 steps: every step cache, and int8
    sluice bench quality --workflow dev.png --seeds 8

The exact images are made first, then those of each setting, in the same process and with the same seeds. PSNR is over
8-bit RGB; the worst image matters more than the median. For the shipped model's prompts a recogniser compares figure,
colour, position and background; the images in which all four are as in the exact ones are counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...nodes.host import pack_host
from ..commands import workflows
from ..commands.cli import main
from ..errors import SluiceError
from ..training.evaluate import prompts, workflow
from ..training.recognise import recognise
from ..worker.registry import standalone_tables
from .table import table

# The exact images come first: for them, weights that a file stores as integers are decoded.
SETTINGS: dict[str, tuple[str, ...]] = {
    "off": ("--compute", "16bit"),
    "fast": ("--cache", "fast", "--compute", "16bit"),
    "faster": ("--cache", "faster", "--compute", "16bit"),
    "int8": ("--compute", "int8"),
    "int8, fast": ("--compute", "int8", "--cache", "fast"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench quality`."""
    parser.add_argument("--workflow", type=Path, help="workflow to measure (default: prompts for the shipped model)")
    parser.add_argument("--seeds", type=int, default=4, help="number of seeds, with --workflow")
    parser.add_argument("--prompts", type=int, default=16, help="number of prompts, without --workflow")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps, without --workflow")
    parser.add_argument("--models", type=Path, help="a models folder")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="fp32", help="the number type of all images (default: fp32)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the images of every setting with the exact ones. Returns seconds and PSNR by setting."""
    rows, exact = {}, None
    for setting, options in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds, log, images = images_of(args, options, Path(folder))
        exact = exact or images
        found = [psnr(one, other) for one, other in zip(images, exact, strict=True)]
        finite = [value for value in found if value != float("inf")]
        rows[setting] = {
            "seconds": seconds,
            "computed": _evaluations(log) or None,
            "psnr_median": statistics.median(finite) if finite else None,
            "psnr_worst": min(finite, default=None),
            "images": len(images),
            "seen_alike": None if args.workflow else sum(map(seen_alike, images, exact)),
        }
    heads = ("setting", "seconds", "evaluations", "PSNR median", "PSNR worst", "recognised alike")
    lines: list[tuple[str, ...]] = [heads]
    for setting, row in rows.items():
        numbers = (row["computed"], row["psnr_median"], row["psnr_worst"])
        alike = "-" if row["seen_alike"] is None else f"{row['seen_alike']} of {row['images']}"
        lines.append((setting, f"{row['seconds']:.1f}", *("-" if n is None else f"{n:.1f}" for n in numbers), alike))
    print(table(lines))
    return {"settings": rows}


def psnr(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Peak signal-to-noise ratio in dB of two images of values 0..255; infinite if they are equal."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def seen_alike(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Whether the recogniser finds the same scene in two images of values 0..255."""
    seen = [recognise(image.astype(np.float32) / np.float32(255)) for image in (one, other)]
    return replace(seen[0], overlap=1.0) == replace(seen[1], overlap=1.0)


def images_of(
    args: argparse.Namespace, setting: Sequence[str], folder: Path
) -> tuple[float, str, list[np.ndarray[Any, Any]]]:
    """Seconds, the program's output, and the images in order."""
    out, said = folder / "images", StringIO()
    began = time.perf_counter()
    for command in _commands(args, folder):
        options = ["--out", str(out), *setting, "--dtype", args.dtype]
        options += ["--device", args.device] if args.device else []
        options += ["--models", str(args.models)] if args.models else []
        with redirect_stderr(said), redirect_stdout(StringIO()):
            code = main(["run", *command, *options])
        if code != 0:
            raise SluiceError(f"The workflow could not be run: {said.getvalue().strip()}")
    seconds = time.perf_counter() - began
    files = sorted(out.rglob("*.png"), key=lambda file: file.stat().st_mtime_ns)
    return seconds, said.getvalue(), [np.asarray(Image.open(file).convert("RGB")) for file in files]


def _commands(args: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    if args.workflow is None:
        graph = folder / "prompts.json"
        graph.write_text(json.dumps(workflow(prompts(args.prompts), args.steps)), "utf-8")
        yield [str(graph)]
        return
    classes, _ = standalone_tables(pack_host())
    workflows.read(args.workflow, classes)  # raises for a wrong workflow, before anything is computed
    yield from ([str(args.workflow), "--seed", str(seed)] for seed in range(args.seeds))


def _evaluations(log: str) -> float:
    """The mean number of evaluations computed per image, from the lines of the step cache."""
    counts = [int(line.split()[2]) for line in log.splitlines() if line.startswith("step cache:")]
    return statistics.mean(counts) if counts else 0.0
