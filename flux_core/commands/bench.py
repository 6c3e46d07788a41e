"""`sluice bench`: measurements of this machine that anyone can repeat. The last line of the output is JSON.

    sluice bench              the two quick ones, run and transformer
    sluice bench run          the parts of the time of a whole `sluice run`
    sluice bench transformer  a transformer step in bf16, ours compared with diffusers'
    sluice bench products     the gain of 8-bit integers and bfloat16 on this processor
    sluice bench quality      the difference of each faster setting from the exact image of the same seed
    sluice bench memory       a full-size model streamed under memory budgets; on a GPU compared with its peers
    sluice bench training     LoRA steps of a full-size model under memory budgets, killed and resumed
    sluice bench figure       a LoRA of the shipped model learns a figure from twelve images
    sluice bench devices      one image on two processes with small budgets: peaks, and the difference from one process
    sluice bench gpu          the same on a GPU, with other programs: correctness, peaks and times against targets
    sluice bench server       a thousand jobs of twenty clients, and kills after which no job may be lost
    sluice bench stopping     cancels and pauses at random moments of a full-size job

A measurement is a module with `add_arguments(parser)` and `measure(args) -> JSON-ready data`; it prints its results
on stdout and its progress on stderr.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
from collections.abc import Mapping
from typing import Any

MEASUREMENTS = {
    "run": ("a whole `sluice run`, and where its time goes", "..bench.run"),
    "transformer": ("a transformer step, ours beside diffusers", "..bench.transformer"),
    "products": ("what 8-bit integers and bfloat16 gain on this processor", "..bench.products"),
    "quality": ("the difference of each faster setting from the exact image", "..bench.quality"),
    "memory": ("a full-size model streamed under memory budgets", "..bench.memory"),
    "training": ("LoRA steps of a full-size model under memory budgets", "..bench.training"),
    "figure": ("what a LoRA of the shipped model learns from twelve images", "..bench.figure"),
    "workflow": ("a full-size workflow with ControlNets, Redux, LoRA and upscaling under a budget", "..bench.workflow"),
    "devices": ("one image on two processes, neither of which may hold the model", "..bench.devices"),
    "gpu": ("full-size models on a GPU with a limit, beside other programs", "..bench.gpu"),
    "server": ("a thousand jobs of twenty clients, and kills after which no job may be lost", "..bench.server"),
    "stopping": ("cancels and pauses at random moments of a full-size job, with kills", "..bench.stopping"),
}
QUICK = ("run", "transformer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench`; those of one measurement follow its name."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["measurements:", *(f"  {name:<12} {does}" for name, (does, _) in MEASUREMENTS.items())])
    parser.add_argument(
        "measurement",
        nargs="?",
        choices=MEASUREMENTS,
        metavar="MEASUREMENT",
        help="what to measure (default: run and transformer)",
    )
    parser.add_argument("options", nargs=argparse.REMAINDER, help="see: sluice bench MEASUREMENT --help")


def run(args: argparse.Namespace) -> int:
    """Measure, and print all results again as one line of JSON. Returns 1 if a measurement missed a target."""
    names = [args.measurement] if args.measurement else QUICK
    results: dict[str, Any] = {name: _measure(name, args.options) for name in names}
    print(json.dumps({**results, "machine": _machine()}))
    return 0 if all(result.get("met", True) for result in results.values()) else 1


def _measure(name: str, options: list[str]) -> Mapping[str, Any]:
    does, module = MEASUREMENTS[name]
    parser = argparse.ArgumentParser(prog=f"sluice bench {name}", description=f"Measure {does}.")
    room = importlib.import_module(module, __package__)
    room.add_arguments(parser)
    result: Mapping[str, Any] = room.measure(parser.parse_args(options))
    return result


def _machine() -> dict[str, Any]:
    import psutil

    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
    }
