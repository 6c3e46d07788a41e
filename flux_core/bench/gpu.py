"""`sluice bench gpu`: everything that can only be shown on a GPU, by one command, in a few minutes.

    correctness  the same bits streamed, partly resident and resident, with slow streams and when memory runs out
    products     rates and differences of products in numbers and in 8-bit integers, for all shapes of the model
    pictures     one of the shipped model for each faster setting, beside the exact one: PNG files in OUT/pictures
    devices      two processes on the card compute one image as one process does, each under half the cap
    fraction     peak and step time of the full size under a cap of the allocator, for both formats and three sizes
    training     steps of a LoRA training: the same bits streamed and resident, peak and time under the cap
    resident     the same with everything on the card: the time of the arithmetic alone, and the same bits
    peers        the same step by diffusers and accelerate under the same cap
    ballast      as `fraction`, but another process holds the rest of the memory

Each part is a process with its own time limit. Its results are written to OUT/gpu.json and OUT/gpu.md at once, so that
none is lost if a part fails or the machine is turned off. The exit code is 0 if every target was met. `--device cpu`
with a small model tries the same on any machine.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..memory import meter
from ..memory.budget import AUTO, format_size, parse_size
from ..runtime.device import find_device
from ..runtime.published import picture_size
from . import gpu_parts, gpu_training, random_model
from .child_process import end_with_parent
from .files import FORMATS, FULL, path_of, written
from .gpu_devices import devices
from .gpu_parts import Part, Tell
from .gpu_pictures import pictures
from .gpu_products import products
from .gpu_table import markdown, targets
from .peers import GROUPS, NEEDED, PEERS, measure_peer
from .steps import Setup

ONCE = ("correctness", "products", "pictures", "devices")  # parts that need no full-size file
PARTS = (*ONCE, "fraction", "training", "resident", "peers", "ballast")
SMALL = (2, 3)  # blocks of the model whose results are compared bit by bit
STORED = {**{name: FORMATS[name] for name in ("bf16", "fp8")}, "Q8_0": "Q8_0"}
IN_RAM = Path("/dev/shm")
MOMENT = "%Y-%m-%d %H:%M:%S"
ROOM, RAM = 1.1, 4  # times a file's size: free space for it; available RAM for it, its pinned copy and a peer's copy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench gpu`."""
    out = Path(os.environ.get("OUT") or "bench-gpu")
    parser.add_argument(
        "--out", type=Path, default=out, metavar="FOLDER", help=f"folder for the results (default: {out})"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=4.0, help="time limit of each part (default: 4)")
    parser.add_argument("--cap", default="8G", metavar="SIZE", help="memory of the card that may be used (default: 8G)")
    parser.add_argument("--format", nargs="+", choices=("bf16", "fp8"), default=["bf16", "fp8"])
    parser.add_argument("--size", nargs="+", default=["512x512", "1024x1024", "1920x1072"], metavar="WxH")
    parser.add_argument("--peer-size", default="1024x1024", metavar="WxH")
    parser.add_argument("--steps", type=int, default=8, help="steps of each measurement; the first two are not timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", default=None, help="commit to note in the results (default: read from git)")
    parser.add_argument("--device", default="cuda", metavar="cuda|cpu")
    parser.add_argument(
        "--folder", type=Path, default=None, help="folder for model files of 12 and 24 GB (default: in RAM, or --out)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the model files for another run")
    parser.add_argument(
        "--depth", type=int, nargs=2, default=FULL, help="number of double and single blocks; fewer for a quick try"
    )
    parser.add_argument("--hidden", type=int, default=3072, help="width of the blocks; smaller for a quick try")


@dataclass
class Results:
    """All results, and the files that they are written to."""

    folder: Path
    facts: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))
        self.write()

    def write(self) -> None:
        """Write both files. Each is replaced as a whole, so that it is complete at every moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("gpu.json", json.dumps(self.told(), indent=1)), ("gpu.md", markdown(self.told()))):
            (self.folder / f".{name}").write_text(text, encoding="utf-8")
            (self.folder / f".{name}").replace(self.folder / name)

    def told(self) -> dict[str, Any]:
        return {"facts": self.facts, "records": self.records, "targets": targets(self.facts, self.records)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every part in turn. Raises InputError before anything is written."""
    sizes = tuple(picture_size(size) for size in args.size)
    cap = parse_size(args.cap)
    picture_size(args.peer_size)
    find_device(args.device)
    if args.steps <= gpu_parts.WARM:
        raise InputError(f"--steps {args.steps}: the first {gpu_parts.WARM} are not timed, so it takes more.")
    results = Results(args.out, {
        "cap_bytes": cap, "seed": args.seed, "commit": args.commit or _commit(), "driver": _driver(),
        "parts": args.parts, "formats": args.format, "sizes": args.size, "peer_size": args.peer_size,
        "depth": list(args.depth), "hidden": args.hidden, "groups": GROUPS, "began": time.strftime(MOMENT),
    })  # fmt: skip
    folder = args.folder or _roomy(args)
    setup = Setup(str(folder), "", args.device, AUTO, AUTO, *sizes[0], 512, args.steps, 1)
    plain = Part(setup, (), sizes, args.seed, cap)
    for record in _guarded("machine", gpu_parts.machine, plain, 120):
        results.facts.update(record if "error" not in record else {})
    results.write()
    run = _Run(args, results, plain, folder, 60 * args.minutes)
    run.small_models()
    run.without_files()
    for format in args.format:
        run.full_size(format)
    results.facts["ended"] = time.strftime(MOMENT)
    results.write()
    print(markdown(results.told()))
    print(f"written to {args.out / 'gpu.md'} and gpu.json")
    return results.told() | {"met": all(target["met"] for target in results.told()["targets"])}


@dataclass(frozen=True)
class _Run:
    """The parts that were chosen, and the files for them. seconds: for one part."""

    args: argparse.Namespace
    results: Results
    plain: Part
    folder: Path
    seconds: float

    def _carry_out(self, name: str, work: Callable[[Part, Tell], None], part: Part) -> None:
        for record in _carried_out(name, work, part, self.seconds):
            self.results.add(record)

    def small_models(self) -> None:
        """The parts that compare bits of small models."""
        args, parts = self.args, self.args.parts
        depth = [min(few, blocks) for few, blocks in zip(SMALL, args.depth, strict=True)]
        make = partial(random_model.flux, depth[0], depth[1], args.hidden)
        small = replace(self.plain.setup, steps=3)
        if "correctness" in parts:
            files = {f"small-{name}": (make, STORED[name]) for name in STORED}
            part = replace(self.plain, setup=small, files=tuple(files))
            with written(self.folder, files, args.keep), _noting("correctness", self.results):
                self._carry_out("correctness", gpu_parts.correctness, part)
                if "training" in parts:
                    self._carry_out("training", gpu_training.bits, part)
        if "devices" in parts:
            files = {"small-bf16": (make, STORED["bf16"])}
            part = replace(self.plain, setup=small, files=tuple(files))
            with written(self.folder, files, args.keep), _noting("devices", self.results):
                self._carry_out("devices", devices, part)

    def without_files(self) -> None:
        """The parts that need no file with random weights."""
        if "products" in self.args.parts:
            self._carry_out("products", products, replace(self.plain, hidden=self.args.hidden))
        if "pictures" in self.args.parts:
            self._carry_out("pictures", partial(pictures, self.args.out / "pictures"), self.plain)

    def full_size(self, format: str) -> None:
        """All parts with the full-size model in this format."""
        args, name = self.args, f"flux-{format}"
        wanted = [part for part in args.parts if part not in ONCE and (part != "peers" or format == "bf16")]
        if not wanted:
            return
        file = {name: (partial(random_model.flux, args.depth[0], args.depth[1], args.hidden), STORED[format])}
        with _noting("files", self.results), written(self.folder, file, args.keep):
            self.results.facts[f"{name}_bytes"] = path_of(str(self.folder), name).stat().st_size
            for part in wanted:
                self._full_size_part(part, replace(self.plain, files=(name,)))

    def _full_size_part(self, part: str, one: Part) -> None:
        if part == "fraction":
            self._carry_out(part, gpu_parts.steps, one)
        elif part == "training":
            self._carry_out(part, gpu_training.steps, one)
        elif part == "resident":
            self._carry_out(part, gpu_parts.steps, replace(one, cap=None))
        elif part == "ballast":
            with _noting(part, self.results), _ballast(self.args.device, parse_size(self.args.cap)):
                self._carry_out(part, gpu_parts.steps, replace(one, ballast=True))
        else:
            for record in beside(replace(one, sizes=(picture_size(self.args.peer_size),)), self.seconds):
                self.results.add(record)


def beside(part: Part, seconds: float) -> Iterator[dict[str, Any]]:
    """Steps of every peer with the file of the part, each within so many seconds; or the names of missing packages."""
    missing = " and ".join(name for name in NEEDED if importlib.util.find_spec(name) is None)
    if missing:
        yield {"part": "peers", "peer": "diffusers and accelerate", "missing": missing}
        return
    for peer in PEERS:
        yield from _carried_out("peers", measure_peer, replace(part, files=(*part.files, peer)), seconds)


def _carried_out(
    name: str, work: Callable[[Part, Tell], None], part: Part, seconds: float
) -> Iterator[dict[str, Any]]:  # fmt: skip
    print(f"{name}: {', '.join(part.files)} ...", flush=True)
    began = time.perf_counter()
    for record in _guarded(name, work, part, seconds):
        print("  " + (record.get("error") or record.get("line") or json.dumps(record)), flush=True)
        yield record
    print(f"  {time.perf_counter() - began:.0f} s", flush=True)


@contextmanager
def _noting(name: str, results: Results) -> Iterator[None]:
    """Record an exception as a result, so that the next part can run."""
    try:
        yield
    except Exception:
        results.add({"part": name, "error": traceback.format_exc()})


def _guarded(name: str, work: Callable[[Part, Tell], None], part: Part, seconds: float) -> Iterator[dict[str, Any]]:
    """The records of a new process as they arrive; and a record of the error if it fails or takes too long."""
    context, mark = multiprocessing.get_context("spawn"), {"part": name, "files": list(part.files)}
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, part, theirs), daemon=True)
    process.start()
    theirs.close()
    ends = time.monotonic() + seconds
    try:
        while ours.poll(max(0.0, ends - time.monotonic())):
            told = ours.recv()
            if told is None:
                return
            yield mark | told
        yield mark | {"error": f"stopped after {seconds:.0f} s"}
    except EOFError:
        process.join(10)
        yield mark | {"error": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()


def _child(work: Callable[[Part, Tell], None], part: Part, pipe: Any) -> None:
    end_with_parent()
    gc.freeze()  # so that the garbage collection before each plan does not visit the imported modules
    try:
        work(part, pipe.send)
    except Exception:
        pipe.send({"error": traceback.format_exc()})
    pipe.send(None)


@contextmanager
def _ballast(device: str, leave: int) -> Iterator[None]:
    """Another process holds all memory of the card except so many bytes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=gpu_parts.hold, args=(device, leave, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield
        ours.send(None)
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()


def _roomy(args: argparse.Namespace) -> Path:
    """The folder for the largest file: in RAM, if there is enough for the file and its copies."""
    depth, single = args.depth
    nbytes = 2 * args.hidden**2 * (36 * depth + 15 * single) + 2**30
    if IN_RAM.is_dir() and shutil.disk_usage(IN_RAM).free > ROOM * nbytes and meter.available_ram() > RAM * nbytes:
        return IN_RAM / "sluice-bench"
    folder: Path = args.out / "models"
    print(f"files of up to {format_size(nbytes)} are written to {folder}", flush=True)
    return folder


def _commit() -> str:
    return _said("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12")


def _driver() -> str:
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _said(*command: str) -> str:
    """The first line of what a program says, or "unknown"."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return lines[0].strip() if lines else "unknown"
