"""The parts of the time of a whole `sluice run`, measured in new processes from before Python starts until they end.

    loading, encoding, sampling, decoding    the work itself
    torch                                    importing it, which we cannot make faster
    saving, python, rest                     "outside": Python itself, our imports, reading, checking, saving, ending

Loading is the loader nodes, and the reading of weights that they leave for the first use. Streaming while a model runs
counts as part of that model's run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...nodes.host import pack_host
from ..commands import workflows
from ..errors import SluiceError
from ..worker.registry import standalone_tables
from .table import table

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "text_to_image.png"
WORK = ("loading", "encoding", "sampling", "decoding")
PARTS = ("python", "torch", *WORK, "saving", "rest")
TARGET = 0.5  # seconds outside


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench run`."""
    parser.add_argument(
        "workflow",
        nargs="?",
        type=Path,
        default=WORKFLOW,
        help="workflow to measure (default: the shipped text_to_image)",
    )
    parser.add_argument("--models", type=Path, metavar="DIR", help="a models folder (default: the shipped model)")
    parser.add_argument("--input", type=Path, metavar="DIR", help="the folder of LoadImage")
    parser.add_argument("--device", metavar="cpu|cuda[:N]")
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="number of processes; the one with the median time outside the stages is reported",
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the median process, by part. Raises SluiceError if the run fails."""
    classes, _ = standalone_tables(pack_host())
    prompt = workflows.read(args.workflow, classes).prompt
    kinds = {node_id: kind_of(classes.get(node["class_type"])) for node_id, node in prompt.items()}
    arguments = [str(args.workflow.absolute())]
    for option in ("models", "input"):
        if folder := getattr(args, option):
            arguments += [f"--{option}", str(folder.absolute())]
    arguments += ["--device", args.device] if args.device else []
    rounds = []
    for number in range(args.rounds):
        rounds.append(_round(arguments, kinds))
        print(f"run {number + 1} of {args.rounds}: {rounds[-1]['whole']:.2f} s", file=sys.stderr)
    rounds.sort(key=lambda one: one["outside"])
    middle = rounds[len(rounds) // 2]
    print(f"sluice run {args.workflow.name}, {args.rounds} processes, the one with the median outside")
    rows = [(part, f"{middle[part]:.3f} s") for part in (*PARTS, "whole", "outside")]
    print(table(rows))
    print(f"outside = python + saving + rest: best {rounds[0]['outside']:.3f} s, wanted below {TARGET} s")
    return {
        **{f"{part}_s": round(seconds, 3) for part, seconds in middle.items()},
        "outside_best_s": round(rounds[0]["outside"], 3),
        "rounds": args.rounds,
    }


def kind_of(node_class: Any) -> str:
    """The part (one of PARTS) to which a node's time belongs, by the types of its inputs and outputs."""
    if node_class is None:
        return "rest"
    takes = {declared[0] for section in node_class.INPUT_TYPES().values() for declared in section.values()
             if isinstance(declared, tuple) and isinstance(declared[0], str)}  # fmt: skip
    gives = set(node_class.RETURN_TYPES)
    if getattr(node_class, "OUTPUT_NODE", False):
        return "saving"
    if gives & {"MODEL", "CLIP", "VAE"}:
        return "loading"
    if ("CONDITIONING" in gives and "CLIP" in takes) or ("LATENT" in gives and "VAE" in takes):
        return "encoding"
    if "LATENT" in gives and takes & {"MODEL", "GUIDER"}:
        return "sampling"
    return "decoding" if "IMAGE" in gives and "VAE" in takes else "rest"


def split(seconds: Mapping[str, float], reading: Mapping[str, float], kinds: Mapping[str, str]) -> dict[str, float]:
    """Seconds by kind. `seconds`: whole ones of each node; `reading`: those of them in which weights were read."""
    found: dict[str, float] = defaultdict(float)
    for node_id, whole in seconds.items():
        read = reading.get(node_id, 0.0)
        found["loading"] += read
        found[kinds.get(node_id, "rest")] += whole - read
    return found


def _round(arguments: list[str], kinds: Mapping[str, str]) -> dict[str, float]:
    """One `sluice run` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        command = [sys.executable, "-m", __name__, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        whole = time.time() - began
    if done.returncode:
        raise SluiceError(f"The run that was to be measured failed. {done.stderr.strip()}")
    told = json.loads(done.stdout.splitlines()[-1])
    found = split(told["nodes"], told["reading"], kinds)
    parts = {part: found.get(part, 0.0) for part in PARTS} | {"python": told["began"] - began, "torch": told["torch"]}
    outside = whole - parts["torch"] - sum(parts[part] for part in WORK)
    return parts | {"rest": outside - parts["python"] - parts["saving"], "whole": whole, "outside": outside}


class Clock:
    """Adds up seconds of nodes from the events of a run, and those in which they read weights."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.nodes: dict[str, float] = defaultdict(float)
        self.reading: dict[str, float] = defaultdict(float)
        self._now, self._node, self._began, self._depth = now, "", now(), 0

    def hear(self, event: str, data: Mapping[str, Any]) -> None:
        if event not in ("executing", "execution_success"):
            return
        now = self._now()
        if self._node:
            self.nodes[self._node] += now - self._began
        self._node, self._began = str(data.get("node") or ""), now

    def reader(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time counted as reading weights (once, if one reader calls another)."""

        def timed(*args: Any, **options: Any) -> Any:
            began, self._depth = self._now(), self._depth + 1
            try:
                return function(*args, **options)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.reading[self._node] += self._now() - began

        return timed


def _child(arguments: list[str]) -> None:
    """Do a `sluice run` in this process, and print the times of its parts on the last line."""
    began = time.time()
    from ..commands import run
    from ..commands.cli import main

    with run.first_import():
        importing = time.perf_counter()
        import torch  # noqa: F401

        torch_seconds = time.perf_counter() - importing
        from ..runtime import handles, weights  # noqa: F401

    clock = Clock()
    for name in ("module", "managed"):
        setattr(weights.Weights, name, clock.reader(getattr(weights.Weights, name)))
    command = run.run
    run.run = lambda args: command(args, listen=clock.hear)  # type: ignore[misc, assignment]
    code = main(["run", *arguments])
    print(json.dumps({"began": began, "torch": torch_seconds, "nodes": clock.nodes, "reading": clock.reading}))
    sys.stdout.flush()
    os._exit(code)  # as the program does


if __name__ == "__main__":
    _child(sys.argv[1:])
