"""`sluice plan MODEL`: the command that predicts the memory and time that a model needs, before anything is downloaded.

MODEL is a file, the name of one in the model folders, or the name of a published one: flux1-dev, flux1-dev-fp8,
flux1-dev-Q8_0, flux1-dev-Q4_K_S.gguf, flux1-schnell-fp8.safetensors and so on. Of files only headers are read. A step
is observed on a model without weights, as it is for every run (runtime/dry_run.py); torch is imported only when the
arguments have been checked. `--train lora` plans a training (plan_training.py), several `--card` plan their use
together (plan_cards.py).
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from ..errors import InputError
from ..memory.budget import AUTO, add_budget_arguments
from ..memory.report import plan_record
from ..runtime.published import TEXT_TOKENS
from ..runtime.settings import COMPUTES
from . import plan_cards, plan_training
from .arguments import add_model_arguments
from .plan_formats import compared
from .plan_images import IMAGE_STEPS, images, lines, passes_of
from .plan_model import as_computed, beside_of, folders_of, open_model
from .plan_page import basis_lines, page
from .plan_step import job_of, plan_for
from .plan_target import target_of


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", help="a model file, its name in the models folder, or a published name such as flux1-dev-fp8"
    )
    parser.add_argument("--size", default="1024x1024", metavar="WxH", help="size of the image (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time (default: %(default)s)")
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=TEXT_TOKENS,
        metavar="N",
        help="tokens of the prompt, padding included (default: %(default)s, the most that FLUX.1 was trained with; a "
        "token is about four letters)",
    )
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE", help="include this LoRA; may be repeated"
    )
    parser.add_argument(
        "--controlnet", action="append", default=[], metavar="FILE", help="include this ControlNet; may be repeated"
    )
    parser.add_argument(
        "--card",
        action="append",
        default=[],
        dest="cards",
        metavar="NAME",
        help="rtx4060, rtx3070, gtx1070, ... or cpu (default: the card of this machine); rtx4060@3.0x4 is one in "
        "such a PCIe slot. With several --card: all ways to use these cards together",
    )
    parser.add_argument(
        "--exchange", type=_rate, metavar="GB/s", help="rate between several cards, through the memory of the host"
    )
    parser.add_argument(
        "--cfg",
        type=_rate,
        default=1.0,
        metavar="X",
        help="cfg of the sampler: above 1, each step evaluates the negative prompt as well (default: 1)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help=f"sampling steps of an image (default: {IMAGE_STEPS}), or steps of a training",
    )
    parser.add_argument(
        "--compute",
        type=_compute,
        default=AUTO,
        metavar="WORD|TFLOPS",
        help=f"{', '.join(COMPUTES)} as for sluice run; or a number: the rate to assume for matrix products",
    )
    parser.add_argument("--link", type=_rate, metavar="GB/s", help="rate from RAM to the card")
    parser.add_argument(
        "--disk", type=_rate, default=3.0, metavar="GB/s", help="read rate of the disk (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    plan_training.add_arguments(parser)
    add_model_arguments(parser)
    add_budget_arguments(parser)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ArgumentTypeError(f"a rate is a number above 0, not {text!r}")
    return rate


def _compute(text: str) -> str | float:
    return text if text in COMPUTES else _rate(text)


def run(args: Namespace) -> int:
    if args.steps is not None and args.steps < 1:
        raise InputError("There is at least 1 step.")
    args.card = args.cards[0] if args.cards else None
    if args.train:
        if len(args.cards) > 1:
            raise InputError("A training runs on one card. Give one --card.")
        return plan_training.run(args)
    if len(args.cards) > 1:
        return plan_cards.run(args)
    model, target = open_model(args.model, folders_of(args)), target_of(args)
    job = job_of(args, target)
    beside = beside_of(args, model)
    made = plan_for(as_computed(model, target), target, job, beside)
    rows = compared(model, target, job, beside)
    ways = images(made.seconds, args.steps or IMAGE_STEPS, passes_of(args.cfg))
    if args.json:
        told = {
            "card": target.label,
            "basis": basis_lines(made, target),
            "formats": [row.record() for row in rows],
            "images": [way.record() for way in ways],
        }
        print(json.dumps(plan_record(made) | told))
        return 0
    print("\n".join([*page(made, target, job, rows), "", *lines(ways)]))
    if not args.card and target.guessed:
        print(
            f"\nNo card of the table was found on this machine: this plan is for {target.label}. "
            "For another: --card NAME, or --card cpu."
        )
    return 0
