"""`sluice bench products`: the gain of 8-bit integers and bfloat16 on this processor, in the shapes of FLUX.1.

    integers     a whole layer (inputs quantised, multiplied, sums scaled) compared with `F.linear` in bfloat16
    autoencoder  decoding in bfloat16, with weights channels-last as they are loaded, compared with float32

One thread; its processor time, not the time of the clock; both sides in turns; the best of each: so other programs
hardly change a ratio. A target applies only if the processor has the instructions for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from ..quant.int8 import Integers, Operand
from ..runtime.published import picture_size
from . import random_model
from .table import table

SHAPES = ((9216, 3072), (3072, 3072), (12288, 3072), (3072, 12288), (21504, 3072), (3072, 15360))  # outputs, inputs
INTEGERS_GAIN, AUTOENCODER_GAIN = 1.2, 1.5  # targets where the processor has the instructions
SHORT_INTEGERS, SHORT_NUMBERS = ("avx512_vnni", "amx_int8"), ("avx512_bf16", "amx_bf16")  # as PyTorch names them
Work = Callable[[], object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench products`."""
    parser.add_argument("--size", nargs="+", default=["256x256", "512x512"], metavar="WxH", help="size of the images")
    parser.add_argument("--tokens", type=int, default=512, help="number of text tokens")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--decoded", default="128x128", metavar="WxH", help="the image that the autoencoder decodes")
    parser.add_argument("--narrower", type=int, default=1, help="divide all widths by this number, for a quick try")


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Ratios by size and shape, and whether each target that applies here was met. Raises InputError for a size."""
    sizes = {size: picture_size(size) for size in [*args.size, args.decoded]}
    has = instructions()
    records: list[dict[str, Any]] = []
    with _one_thread():
        for size in args.size:
            tokens = sizes[size][0] // 16 * (sizes[size][1] // 16) + args.tokens
            records += _integers(size, tokens, args.rounds, args.narrower)
        decoding = _autoencoder(*sizes[args.decoded], args.rounds, args.narrower)
    rows = [("size", "layer", "bfloat16", "int8", "int8 is faster by")]
    rows += [(r["size"], r["shape"], _ms(r["bf16_s"]), _ms(r["int8_s"]), f"{r['gain']:.2f} x") for r in records]
    print(table(rows))
    print(
        f"all of them: int8 is faster by {_told_gains(records)} x. "
        f"Instructions here: {', '.join(has) or 'none of these'}"
    )
    print(f"decoding {args.decoded}: float32 {_ms(decoding['fp32_s'])}, bfloat16 {_ms(decoding['bf16_s'])}, faster by "
          f"{decoding['gain']:.2f} x")  # fmt: skip
    met = [decoding["gain"] >= AUTOENCODER_GAIN] if {*SHORT_NUMBERS} & {*has} else []
    met += [_gain(records, size) >= INTEGERS_GAIN for size in args.size] if {*SHORT_INTEGERS} & {*has} else []
    return {"layers": records, "autoencoder": decoding, "instructions": list(has), "met": all(met)}


def instructions() -> tuple[str, ...]:
    """The instructions for short numbers that this processor has, among those of the targets."""
    there: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return tuple(name for name in (*SHORT_INTEGERS, *SHORT_NUMBERS) if there.get(name))


def _integers(size: str, tokens: int, rounds: int, narrower: int) -> Iterator[dict[str, Any]]:
    for outputs, inputs in ((n // narrower, k // narrower) for n, k in SHAPES):
        x, bias = torch.randn(tokens, inputs).bfloat16(), torch.zeros(outputs).bfloat16()
        weight = torch.randn(outputs, inputs).bfloat16()
        codes = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
        operand, integers = Operand(codes, torch.ones(outputs)), Integers()
        found = in_turns({
            "bf16_s": lambda: F.linear(x, weight, bias),  # noqa: B023 - called at once
            "int8_s": lambda: integers.multiply(x, [operand], bias),  # noqa: B023
        }, rounds)  # fmt: skip
        gain = found["bf16_s"] / found["int8_s"]
        yield {"size": size, "tokens": tokens, "shape": f"{outputs} x {inputs}", **found, "gain": gain}


def _autoencoder(width: int, height: int, rounds: int, narrower: int) -> dict[str, float]:
    latent = torch.randn(1, 16, height // 8, width // 8)
    exact, fast = random_model.autoencoder(128 // narrower), random_model.autoencoder(128 // narrower).bfloat16()
    for parameter in fast.parameters():
        if parameter.ndim == 4:  # as runtime/model_weights.py loads them
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    works: dict[str, Work] = {"fp32_s": lambda: exact.decode_image(latent), "bf16_s": lambda: fast.decode_image(latent)}
    found = in_turns(works, rounds)
    return {**found, "gain": found["fp32_s"] / found["bf16_s"]}


def in_turns(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Processor seconds of this thread: the best of each, after one call that is not counted."""
    best = dict.fromkeys(works, float("inf"))
    for number in range(rounds + 1):
        for name, work in works.items():
            began = time.thread_time()
            work()
            if number:
                best[name] = min(best[name], time.thread_time() - began)
    print(".", end="", flush=True, file=sys.stderr)
    return {name: max(seconds, 1e-9) for name, seconds in best.items()}


def _gain(records: list[dict[str, Any]], size: str) -> float:
    """Of all layers of this size together, each once."""
    seconds = [(float(each["bf16_s"]), float(each["int8_s"])) for each in records if each["size"] == size]
    return sum(one for one, _ in seconds) / sum(other for _, other in seconds)


def _told_gains(records: list[dict[str, Any]]) -> str:
    sizes = dict.fromkeys(each["size"] for each in records)
    return ", ".join(f"{_gain(records, size):.2f} ({size})" for size in sizes)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
