"""`sluice run`: runs workflows and saves their images.

All workflows of the call are read and checked before torch is imported or any weight is read; then they run one
after another and share models and encoded prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MissingFileError, PromptError, SluiceError
from ..graph.events import Emit
from ..graph.execute import Executor, Result
from ..graph.prompt import JsonPrompt, name_of, title_of
from ..io.file_hashes import hashes_of
from ..io.folders import Folders, standard_folders
from ..limits import advice_after
from ..memory.budget import AUTO, add_budget_arguments, format_size, parse_size
from ..parallel.split import devices_of
from ..processor.lasting_imports import lasting_imports
from ..runtime.settings import Settings
from ..worker.too_large import too_large
from ..worker.used_files import chosen_settings, used_files, used_paths, with_files
from . import overrides
from .arguments import add_device_arguments, add_folder_arguments, add_pack_arguments
from .devices import add_devices_argument, workers_of
from .overrides import RANDOM
from .prepare import Job, prepared

if TYPE_CHECKING:
    from ..runtime.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice run`."""
    parser.add_argument("workflow", nargs="+", type=Path, help="an image with its workflow inside, or JSON")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        dest="settings",
        help="change a value; NODE is a number, a title or a class, and may be left out if only one node has INPUT",
    )
    parser.add_argument(
        "--seed", type=_seed, metavar="N|random", help="set every seed; random chooses a new seed for each run"
    )
    parser.add_argument(
        "--count",
        type=_count,
        default=1,
        metavar="N",
        help="run each workflow N times, each time with the next seed (default: 1)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="make the images that can be made, even if other parts of the workflow need missing nodes or files",
    )
    parser.add_argument(
        "--as-made",
        action="store_true",
        help="if the canvas stored in an image differs from the prompt that made the image, run the prompt",
    )
    parser.add_argument(
        "--compare",
        choices=["exact"],
        help="make every image again without step cache, integer products and another library's attention, and print "
        "the difference (PSNR and SSIM)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on the last line")
    add_folder_arguments(parser)
    add_pack_arguments(parser)
    add_device_arguments(parser)
    add_devices_argument(parser)
    add_budget_arguments(parser)


def run(args: argparse.Namespace, listen: Emit = lambda event, data: None) -> int:
    """Run the workflows. The caller prints errors, with --json as JSON too. `listen` gets all events."""
    try:
        done = _run(args, listen)
    except SluiceError as error:
        if args.json:
            print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))
        raise
    if args.json:
        print(json.dumps({"workflows": done}))
    return 0


def _run(args: argparse.Namespace, listen: Emit) -> list[dict[str, Any]]:
    from ...nodes.host import Host
    from ..worker.program_nodes import program_tables

    folders = standard_folders(Path.cwd(), args.models, extra=args.extra_model_paths, input=args.input, output=args.out)
    if args.input is not None and not folders.input.is_dir():
        raise MissingFileError(f"There is no folder {folders.input}, which --input names.")
    host = Host(
        folders,
        report=lambda done, total, preview: executor.progress(done, total),
        make_runtime=lambda: _new_runtime(args),
    )
    classes, titles = program_tables(host)
    bars = Bars()

    def emit(event: str, data: dict[str, Any]) -> None:
        bars.hear(event, data)
        listen(event, data)

    executor = Executor(
        classes, emit=emit, around=_inference_mode,
        refused=lambda prompt: too_large(prompt, classes, folders, host.runtime),
    )  # fmt: skip
    if args.node_packs:
        from ..facade.engine import Engine
        from ..worker.node_packs import load_packs

        load_packs(args.node_packs, Engine(host, folders, classes, titles, executor))
    _check_output(folders.output)
    seeds = [(file, seed) for file in args.workflow for seed in overrides.seeds(args.seed, args.count)]
    asked = {"settings": args.settings, "as_made": args.as_made, "partial": args.partial}
    jobs = [prepared(file, classes, titles, folders, seed=seed, **asked) for file, seed in seeds]
    for note in dict.fromkeys(note for job in jobs for note in job.notes):
        print(note, file=sys.stderr)
    _ = host.runtime  # before anything runs: an unknown device is an error of the command line
    options = _options(args)
    devices = devices_of(options.get("team"))
    about = devices, chosen_settings(options, exact=False)
    done = [_made(job, executor, bars, folders, args.json, about) for job in jobs]
    if args.compare:
        host.runtime.exact = True
        executor.cache.forget_all()
        for job, result in zip(jobs, done, strict=True):
            _compare(result, _made(job, executor, bars, folders, True, (devices, "")), quiet=args.json)
    return done


def _compare(result: dict[str, Any], exact: dict[str, Any], quiet: bool) -> None:
    """Add the images of the exact run to a result, with the difference of each pair of images, and print it."""
    from PIL import Image

    from ..images.similarity import psnr, ssim

    result["exact"], result["exact_seconds"] = exact["images"], exact["seconds"]
    result["psnr"], result["ssim"] = [], []
    for one, other in zip(result["images"], exact["images"], strict=True):
        with Image.open(one) as made, Image.open(other) as twin:
            decibels, alike = psnr(made, twin), ssim(made, twin)
        equal = decibels == math.inf
        result["psnr"].append(None if equal else decibels)
        result["ssim"].append(alike)
        if not quiet:
            near = "the same image" if equal else f"PSNR {decibels or 0:.1f} dB"
            near += "" if equal or alike is None else f", SSIM {alike:.3f}"
            print(f"{_short(Path(other))} is exact: {near} ({result['seconds']:.1f} s, exact {exact['seconds']:.1f} s)")


def _check_output(folder: Path) -> None:
    """Raise SluiceError before anything runs if images cannot be saved in this folder."""
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise SluiceError(f"Images cannot be saved in {folder}: {there} is a file. Choose another --out.")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SluiceError(f"Images cannot be saved in {folder}: {there}: {reason}. Choose another --out.") from error


def _made(
    job: Job, executor: Executor, bars: Bars, folders: Folders, quiet: bool, about: tuple[str | None, str]
) -> dict[str, Any]:
    """Run one job and print the paths of its images. Raises the error that stopped it, with the node's name.

    about: for the images' metadata, which devices compute together (None: one) and the settings that change images.
    """
    began = time.monotonic()
    files = used_files(used_paths(job.prompt, executor.classes, folders), hashes_of(folders.user))
    canvas = {"extra_pnginfo": {"workflow": job.canvas}} if job.canvas else {}
    extra = with_files(canvas, files, *about)
    bars.titles = {node_id: title_of(node) for node_id, node in job.prompt.items()}
    executor.cache.forget_shown()  # a workflow that is given twice is saved twice
    try:
        result = executor.execute(job.prompt, str(job.file), extra, job.outputs)
    finally:
        bars.close()
    if result.exception is not None:
        raise with_place(result, job.prompt)
    pictures = [_path(image, folders) for shown in result.outputs.values() for image in shown.get("images", ())]
    if not quiet:
        for picture in pictures:
            print(_short(picture))
    return {
        "workflow": str(job.file),
        "images": [str(picture) for picture in pictures],
        "seconds": round(time.monotonic() - began, 3),
    }


def with_place(result: Result, prompt: JsonPrompt) -> Exception:
    """The exception that stopped a prompt, with the name of the node in which it happened."""
    assert result.exception is not None
    _, details = result.messages[-1]
    node = prompt.get(str(details.get("node_id")))
    where = name_of(str(details["node_id"]), node) if node else "the workflow"
    error = result.exception
    if os.environ.get("SLUICE_DEBUG"):
        print("".join(details.get("traceback", ())), file=sys.stderr)
    if isinstance(error, PromptError):
        return PromptError([f"{where}: {problem}" for problem in error.problems])
    if isinstance(error, SluiceError):
        return type(error)(f"{where}: {error}")
    told_shortly = advice_after(error) or f"{type(error).__name__}: {error}"
    return SluiceError(f"{where} failed: {told_shortly}")


def _path(image: Mapping[str, str], folders: Folders) -> Path:
    root = {"output": folders.output, "temp": folders.temp, "input": folders.input}[image["type"]]
    return root / image["subfolder"] / image["filename"]


def _short(path: Path) -> Path:
    """Relative to the working directory, if it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"a count is a whole number from 1 to 10000, not {text!r}")
    return int(text)


def _seed(text: str) -> int | str:
    if text == RANDOM:
        return text
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 to 2^64 - 1 or random, not {text!r}")
    return int(text)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of this process as a single worker, in the form of `sluice serve`. Raises InputError."""
    given = {key: getattr(args, key) for key in ("device", "dtype", "cache", "compute", "attention")}
    (options, *more) = workers_of(args, given).values()
    if more:
        raise InputError(
            f"--devices {args.devices} names several devices, and `sluice run` makes one image after the other. Join "
            "them by + for one image on all of them, or use `sluice serve`, which has a worker for each."
        )
    return options


def _join(runtime: Runtime, options: Mapping[str, Any]) -> None:
    """The other devices that images are computed on."""
    import torch

    from ..runtime.team import Team

    if options.get("threads"):
        torch.set_num_threads(options["threads"])
    if options.get("team"):
        runtime.team = Team.parse(options["team"], runtime.device, runtime.events.emit)
        print(f"Each image is computed on {runtime.team.words}{_ram_words(options)}.", file=sys.stderr)


def _ram_words(options: Mapping[str, Any]) -> str:
    """The RAM of each process of a team, which is a part of --ram."""
    sizes = [each["ram"] for each in (options, *options["team"]["members"])]
    if AUTO in sizes:
        return ""
    named = [format_size(parse_size(size)) for size in sizes]
    return f", each with {named[0]} of RAM" if len(set(named)) == 1 else f", with {' and '.join(named)} of RAM"


def _new_runtime(args: argparse.Namespace) -> Runtime:
    """The runtime that models are loaded into. Raises InputError for an unknown device or a wrong size."""
    with first_import():
        from ..runtime import handles  # noqa: F401
        from ..runtime.device_notice import budget_problem, device_notice
        from ..runtime.runtime import Runtime

    options = _options(args)
    words = ("device", "dtype", "vram", "ram", "cache", "compute", "attention")
    runtime = Runtime(Settings.parse(*(options[key] for key in words)))
    _join(runtime, options)
    if not args.json:
        runtime.events.listen(_tell_memory)
        notice = device_notice(runtime)
        notices = [notice["text"], notice["warning"], budget_problem(runtime, runtime.budget)]
        print(*filter(None, notices), sep="\n", file=sys.stderr)
    return runtime


@contextmanager
def first_import() -> Iterator[None]:
    """Import torch as `lasting_imports` does.

    Ctrl-C ends the process at once: while torch is being imported it would suppress the exception or crash.
    """
    if "torch" in sys.modules:
        yield
        return
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, _leave) if in_main else None
    try:
        with lasting_imports():
            yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: object) -> None:
    os.write(2, b"\nStopped.\n")
    os._exit(130)


def _tell_memory(event: dict[str, Any]) -> None:
    if event["type"] == "memory.job":
        print(*(event[key] for key in ("line", "warning") if event[key]), sep="\n", file=sys.stderr)
    elif event["type"] == "steps.reused":
        print(event["line"], file=sys.stderr)
    elif event["type"] == "device.job":
        print(f"{event['device']}: {event['line']}", file=sys.stderr)


def _inference_mode() -> AbstractContextManager[Any]:
    import torch

    return torch.inference_mode()


class Bars:
    """A progress bar for each sampler on stderr: steps, time left, seconds per step. One line without a terminal."""

    FORM = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}]"

    def __init__(self) -> None:
        self.titles: Mapping[str, str] = {}
        self._title, self._began, self._done = "", 0.0, 0
        self._bar: Any = None

    def hear(self, event: str, data: Mapping[str, Any]) -> None:
        """Follow the events of a run."""
        if event == "executing":
            self.close()
            self._title, self._began = self.titles.get(data["node"], ""), time.time()
        elif event == "progress":
            if self._bar is None:
                self._open(int(data["max"]))
            self._bar.update(data["value"] - self._done)
            self._done = data["value"]

    def close(self) -> None:
        """The node has finished or was stopped."""
        if self._bar is None:
            return
        self._bar.close()
        if self._bar.disable and self._done:
            pace = (time.time() - self._began) / self._done
            print(f"{self._title}: {self._done} steps, {pace:.2f} s/step", file=sys.stderr)
        self._bar = None

    def _open(self, total: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc=self._title, unit="step", bar_format=self.FORM, smoothing=0, disable=None)
        self._bar.start_t = self._began  # the first step counts as well
        self._done = 0
