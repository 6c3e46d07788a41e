"""`sluice compare`: the same prompts and seeds through two or more settings, as a page, a table and a JSON file."""

from __future__ import annotations

import json
import platform
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..commands.arguments import add_model_arguments
from ..errors import InputError, MissingFileError
from ..graph.axes import parse_axes
from ..memory.budget import format_size
from .grid import write_grids
from .page import decibels, write_page
from .results import Made, Price, Results, open_results, rows
from .run import OWN_PROMPT, make
from .setting import Setting, of_cells, parse_all

PROMPTS = Path(__file__).with_name("prompts.txt")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="+",
        metavar="SETTING",
        help='a workflow with options, in quotation marks: "fast: dev.png --cache fast"; the first is the reference',
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a text file with one prompt per line (default: 64 prompts that come with Sluice)",
    )
    parser.add_argument(
        "--x",
        metavar="NODE.INPUT=A,B,C",
        default="",
        help="values of one input, one column of the grid for each",
    )
    parser.add_argument(
        "--y", metavar="NODE.INPUT=A,B,C", default="", help="values of another input, one row of the grid for each"
    )
    parser.add_argument("--first", type=_positive, metavar="N", help="use only the first N prompts")
    parser.add_argument(
        "--seeds", type=_seeds, default=[1], metavar="N,N,...", help="seeds to use with every prompt (default: 1)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the result (default: output/compare/ and the names of the settings)",
    )
    parser.add_argument("--input", type=Path, metavar="DIR", help="the folder of LoadImage (default: ./input)")
    parser.add_argument(
        "--price-per-hour",
        type=float,
        default=0.0,
        metavar="X",
        help="price of a rented machine, for the cost of an image",
    )
    parser.add_argument(
        "--watts", type=float, default=0.0, metavar="W", help="power that this machine draws while it computes"
    )
    parser.add_argument(
        "--price-per-kwh", type=float, default=0.0, metavar="X", help="price of energy, used with --watts"
    )
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object")
    add_model_arguments(parser)


def run(args: Namespace) -> int:
    """Stopped and started again, it goes on where it was."""
    settings, axes = parse_all(args.settings), None
    if args.x or args.y:
        if len(settings) > 1:
            raise InputError("A grid (--x, --y) is made of one setting.")
        axes = parse_axes(args.x, args.y)
        settings = of_cells(settings[0], *axes)
    if len(settings) < 2:
        raise InputError("A comparison needs at least two settings.")
    if axes and not args.prompts:
        prompts = [OWN_PROMPT]
    else:
        prompts = _prompts(args.prompts or PROMPTS)[: args.first]
    folder = args.out or Path("output/compare") / _folder_name(settings)
    price = Price(args.price_per_hour, args.watts, args.price_per_kwh)
    fresh = Results(
        [{"name": one.name, "words": one.words} for one in settings],
        prompts, args.seeds, f"{platform.system()} {platform.machine()}",
    )  # fmt: skip
    results = open_results(folder, fresh)
    folder.mkdir(parents=True, exist_ok=True)
    whole = len(settings) * len(prompts) * len(args.seeds)

    def tell(setting: Setting, made: Made) -> None:
        write_page(results, folder, price)
        if not args.json:
            print(
                f"{len(results.images)} of {whole}  {setting.name}  {made.seconds:.2f} s  {prompts[made.prompt]}",
                flush=True,
            )

    make(settings, results, folder, args.models, args.input, tell)
    page = write_page(results, folder, price)
    grids = [str(file) for file in write_grids(results, folder, *axes)] if axes else []
    table = list(rows(results, price))
    if args.json:
        summary = {"page": str(page), "settings": [_plain(row) for row in table]}
        print(json.dumps(summary | ({"grids": grids} if axes else {})))
        return 0
    print()
    for row in table:
        likeness = "" if row["psnr"] is None else f"  {decibels(row['psnr'])} (worst {decibels(row['psnr_worst'])})"
        cost = "" if row["cost"] is None else f"  {row['cost']:.5f} an image"
        time = f"{row['seconds']:8.2f} s  {row['speed_up']:5.2f} x"
        print(f"{row['name']:<24}{time}  {format_size(row['peak_bytes'])}{cost}{likeness}")
    print("\n".join(["", *grids]))
    print(f"{page}\nVote without seeing which is which: sluice serve, then the address /sluice/compare")
    return 0


def _plain(row: dict[str, object]) -> dict[str, object]:
    """JSON has no infinity: equal images are the text "equal"."""
    return {key: "equal" if value == float("inf") else value for key, value in row.items()}


def _prompts(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise MissingFileError(f"The prompts {file} cannot be read: {error}.") from None
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise InputError(f"{file} holds no prompts: it has one on each line.")
    return found


def _folder_name(settings: Sequence[Setting]) -> str:
    text = " vs ".join(setting.name for setting in settings)
    return "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in text)[:100].strip(" .")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"a number of prompts is a whole number above 0, not {text!r}")
    return int(text)


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"seeds are whole numbers with commas between them, not {text!r}") from None
