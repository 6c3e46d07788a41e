"""`sluice bench`: measurements of this machine that anyone can repeat. The last line of the output is JSON.

    sluice bench             the two quick ones, overhead and step
    sluice bench overhead    what `sluice run` costs besides loading, encoding, sampling and decoding
    sluice bench step        a transformer step in bf16, ours beside diffusers
    sluice bench memory      a full-size model streamed under memory budgets
    sluice bench server      a thousand jobs by twenty clients, and kills that must lose none

A measurement is a module with `add_arguments(parser)` and `measure(args) -> JSON-ready data`; it prints as it goes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
from collections.abc import Mapping
from typing import Any

MEASUREMENTS = {"overhead": ".overhead", "step": ".step", "memory": "..memory.bench", "server": ".server"}
QUICK = ("overhead", "step")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench`; those of one measurement follow its name."""
    parser.add_argument("measurement", nargs="?", choices=MEASUREMENTS, help="default: overhead and step")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="see: sluice bench NAME --help")


def run(args: argparse.Namespace) -> int:
    """Measure, and print everything again as one line of JSON."""
    names = [args.measurement] if args.measurement else QUICK
    results: dict[str, Any] = {name: _measure(name, args.options) for name in names}
    print(json.dumps({**results, "machine": _machine()}))
    return 0


def _measure(name: str, options: list[str]) -> Mapping[str, Any]:
    parser = argparse.ArgumentParser(prog=f"sluice bench {name}")
    room = importlib.import_module(MEASUREMENTS[name], __package__)
    room.add_arguments(parser)
    result: Mapping[str, Any] = room.measure(parser.parse_args(options))
    return result


def _machine() -> dict[str, Any]:
    import psutil

    return {
        "system": platform.platform(), "python": platform.python_version(),
        "cores": psutil.cpu_count(logical=False), "memory_bytes": psutil.virtual_memory().total,
    }
