"""What `sluice run` costs besides its work: whole processes, less importing torch, less what nodes compute.

    from start to end of the process = Python, our imports, reading, checking, saving     the overhead
                                       + importing torch                                   taken out
                                       + nodes that load, encode, sample and decode        taken out
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench overhead`."""
    parser.add_argument("--workflow", type=Path, default=WORKFLOWS / "text_to_image.png", metavar="FILE")
    parser.add_argument("--models", type=Path, metavar="DIR", help="default: the model that comes with Sluice")
    parser.add_argument("--rounds", type=int, default=5, help="processes; the median counts")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the median process, by part."""
    models = ["--models", str(args.models.absolute())] if args.models else []
    rounds = [_round([str(args.workflow.absolute()), *models]) for _ in range(args.rounds)]
    middle = sorted(rounds, key=lambda one: one["overhead_s"])[len(rounds) // 2]
    print(
        f"sluice run: {middle['overhead_s']:.2f} s besides {middle['torch_s']:.2f} s to import torch and "
        f"{middle['work_s']:.2f} s of loading, encoding, sampling and decoding (median of {len(rounds)})"
    )
    spread = statistics.pstdev(one["overhead_s"] for one in rounds)
    return {**middle, "spread_s": round(spread, 3), "rounds": len(rounds)}


def _round(arguments: list[str]) -> dict[str, float]:
    """One `sluice run` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        command = [sys.executable, "-m", __name__, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        whole = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"The run that was to be measured failed:\n{done.stderr}")
    inside = json.loads(done.stdout.splitlines()[-1])
    return {key: round(value, 3) for key, value in {
        "overhead_s": whole - inside["torch_s"] - inside["work_s"], "whole_s": whole, **inside,
    }.items()}  # fmt: skip


class Clock:
    """Adds up the seconds of nodes, from the events of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.savers: set[str] = set()
        self._node, self._began = "", time.monotonic()

    def hear(self, event: str, data: Mapping[str, Any]) -> None:
        if event in ("executing", "execution_success"):
            now = time.monotonic()
            self.seconds[self._node] = self.seconds.get(self._node, 0.0) + now - self._began
            self._node, self._began = str(data.get("node") or ""), now
        elif event == "executed":  # a node that shows something: it saved pictures
            self.savers.add(str(data["node"]))

    def work(self) -> float:
        return sum(seconds for node, seconds in self.seconds.items() if node and node not in self.savers)


def _child(arguments: list[str]) -> None:
    """Be a `sluice run`, and tell on the last line where the time went."""
    from ..commands import run

    began = time.monotonic()
    import torch

    torch_s = time.monotonic() - began
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    clock = Clock()
    run.run(parser.parse_args(arguments), listen=clock.hear)
    print(json.dumps({"torch_s": torch_s, "work_s": clock.work(), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    _child(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # as the program does
