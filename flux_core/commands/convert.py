"""`sluice convert FILE --to FORMAT`: writes a model in another format, in a file that ComfyUI reads too.

Converts one tensor at a time, so a model of any size needs little memory. The new file appears when it is complete.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.detect import detect, refuse
from ..checkpoint.kinds import KINDS
from ..errors import InputError
from ..memory.budget import AUTO, format_size, parse_size

if TYPE_CHECKING:
    from ..checkpoint.kinds import Detected

ORDER = ("flux", "t5", "clip_l", "autoencoder")  # of a file with several models, the first of these is converted


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `sluice convert`."""
    parser.add_argument("file", type=Path, help="a model: a file, one of its shards, or a folder of them")
    parser.add_argument(
        "--to", required=True, metavar="FORMAT",
        help="bf16, fp16, fp32, fp8, int8 (safetensors) or Q8_0, Q6_K, Q5_K, Q4_K, Q5_1, Q5_0, Q4_1, Q4_0 (GGUF)",
    )  # fmt: skip
    parser.add_argument(
        "--rotate",
        action="store_true",
        help="with int8: rotate the columns first, which halves the loss if a few columns are large",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: beside the old one)")
    parser.add_argument("--ram", default=AUTO, metavar="SIZE", help="RAM budget")
    parser.add_argument("--part", choices=ORDER, help="the model to convert, if the file contains several")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on the last line")


def run(args: Namespace) -> int:
    """Convert the file. Raises what `open_weights` raises, InputError for a format, BudgetTooSmall, SluiceError."""
    from ..convert.nunchaku_plain import open_plain

    file = open_plain(args.file)
    found = detect(file)
    kind = _part(file.path, found, args.part)
    from ..convert.convert import named, steps_of, write
    from ..convert.targets import target

    wanted = target(args.to, args.rotate)
    steps = steps_of(kind, found.parts[kind], wanted)
    path = args.out or named(args.file.absolute(), wanted)
    if len(found.parts) > 1:
        print(f"{file.path.name} holds {len(found.parts)} models; {KINDS[kind].noun} is converted.", file=sys.stderr)
    ram = None if args.ram == AUTO else parse_size(args.ram)
    began, bar = time.monotonic(), _Bar(path.name)
    try:
        size = write(path, kind, steps, wanted, file.metadata, ram, bar)
    finally:
        bar.close()
    seconds = time.monotonic() - began
    before = sum(stored.nbytes for stored in found.parts[kind].values())
    if args.json:
        print(json.dumps({"path": str(path), "bytes": size, "seconds": seconds, "format": wanted.name}))
    else:
        print(path)
        print(f"{format_size(before)} -> {format_size(size)} in {seconds:.0f} s", file=sys.stderr)
    return 0


def _part(path: Path, found: Detected, chosen: str | None) -> str:
    there = [part for part in ORDER if part in found.parts]
    if chosen is not None and chosen not in there:
        raise InputError(f"{path.name} holds no {chosen}, but {', '.join(there) or 'nothing to convert'}.")
    if not there:
        refuse(path, found, next((part for part in ORDER if part in found.refusals), "flux"))
    return chosen or there[0]


class _Bar:
    """A progress bar in bytes on stderr, if that is a terminal."""

    def __init__(self, title: str) -> None:
        self._title, self._done = title, 0
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=self._title, unit="B", unit_scale=True, disable=None)
        self._bar.update(done - self._done)
        self._done = done

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
