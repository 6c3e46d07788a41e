"""`sluice cluster URL`: starts workers of a `sluice serve` on a Ray cluster, and keeps them running until stopped.

    sluice cluster http://front:8188 --token T --engine auto --workers 4 --gpus 1 --options="--vram 8G"

For Slurm and Kubernetes see examples/.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import threading
from types import FrameType

from ..errors import InputError
from ..workers.cluster import Keeper
from ..workers.ray_engine import LOCAL, RayEngine
from . import work

LOOK_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice cluster`."""
    parser.add_argument("url", help="the server's address, as the nodes reach it, e.g. http://192.168.1.5:8188")
    parser.add_argument("--token", metavar="TEXT", help="the token that the server printed when it started")
    parser.add_argument(
        "--engine",
        default=LOCAL,
        metavar="ADDRESS",
        help=f"address of the Ray cluster: HOST:6379, auto for the one here, or {LOCAL} to start one (default)",
    )
    parser.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="number of workers to keep running (default: 1)"
    )
    parser.add_argument("--cpus", type=float, default=1.0, metavar="N", help="CPU cores for each worker (default: 1)")
    parser.add_argument("--gpus", type=float, default=0.0, metavar="N", help="GPUs for each worker (default: 0)")
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time that running jobs get when the command ends (default: 30)",
    )
    parser.add_argument(
        "--options",
        default="",
        metavar="TEXT",
        help='options of `sluice work` on every node: --options="--vram 8G --dtype bf16"',
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"a number of workers is from 1 to 10000, not {text!r}")
    return int(text)


def command_of(args: argparse.Namespace) -> list[str]:
    """The arguments of `sluice work`. Raises InputError for what it does not take."""
    command = [
        args.url,
        *(["--token", args.token] if args.token else []),
        "--grace",
        str(args.grace),
        *shlex.split(args.options),
    ]
    parser = argparse.ArgumentParser(exit_on_error=False)
    work.add_arguments(parser)
    try:
        known, unknown = parser.parse_known_args(command)
    except argparse.ArgumentError as error:
        raise InputError(f"`sluice work` does not take that: {error}") from None
    if unknown or known.name:
        wrong = unknown[0] if unknown else "--name, which is given to each worker here"
        raise InputError(f"--options takes those of `sluice work`; not {wrong}.")
    return command


def run(args: argparse.Namespace) -> int:
    """Keep workers until stopped. Raises SluiceError if there is no engine."""
    command = command_of(args)
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    engine = RayEngine(args.engine, args.cpus, args.gpus)
    keeper = Keeper(engine, args.workers, command, lambda line: print(line, flush=True))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        while not stopped.is_set():
            keeper.look()
            stopped.wait(LOOK_SECONDS)
    finally:
        print(f"Stops the workers; running jobs have {args.grace:.0f} s.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            keeper.stop(args.grace)
    return 0
