"""The rates of this machine, each measured in a fraction of a second: products, attention, decoding, disk and link.

Plans predict from these rates and reports compare with the predictions, so the rates are measured with the functions
and sizes of a real step. Each rate is measured once per process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F

from ..cancel import check_cancelled
from ..checkpoint.stored import Stored
from ..quant.encoding import Encoding
from ..quant.formats import PLAIN, decode_into
from ..quant.int8 import Integers, Operand
from .cpu import anonymous
from .source import FileSource
from .workload import MiB

HIDDEN, TOKENS = 3072, 1024  # the largest sizes measured on a CPU: larger products are no faster
GPU_TOKENS, GPU_HEADS = 4096, 24  # sizes measured on a GPU: smaller products do not use all of it
SAMPLE_BYTES = 192 * MiB  # bytes read from disk, or copied over the link


def measured_tokens(device: torch.device, tokens: int) -> int:
    """How many tokens to measure with, for steps of this many tokens."""
    return min(tokens, TOKENS if device.type == "cpu" else GPU_TOKENS)


@cache
def gemm_rate(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> float:
    """FLOP/s of a linear layer [tokens, hidden] x [4 hidden, hidden]."""
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    weight = torch.randn(hidden, hidden, device=device).to(dtype).repeat(4, 1)
    return 2 * tokens * 4 * hidden * hidden / best_time(lambda: F.linear(x, weight), device)


@cache
def transposed_rate(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> float:
    """FLOP/s of the gradient of its input: [tokens, 4 hidden] x [4 hidden, hidden]."""
    slope = torch.randn(tokens, hidden, device=device).to(dtype).repeat(1, 4)
    weight = torch.randn(hidden, hidden, device=device).to(dtype).repeat(4, 1)
    return 2 * tokens * 4 * hidden * hidden / best_time(lambda: slope @ weight, device)


@cache
def integer_rate(integers: Integers, device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> float:
    """Operations/s of the same layer in 8-bit integers, for inputs and outputs of `dtype`."""
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    codes = torch.randint(-127, 128, (hidden, hidden), dtype=torch.int8, device=device).repeat(4, 1)
    operand = Operand(codes, torch.ones(4 * hidden, device=device))
    seconds = best_time(lambda: integers.multiply(x, [operand], None), device)
    return 2 * tokens * 4 * hidden * hidden / seconds


@cache
def attention_rate(device: torch.device, dtype: torch.dtype, tokens: int) -> float:
    """FLOP/s of scaled dot-product attention over 128-wide heads."""
    heads = 4 if device.type == "cpu" else GPU_HEADS
    q = torch.randn(1, heads, tokens, 128, device=device).to(dtype)
    return 4 * heads * tokens * tokens * 128 / best_time(lambda: F.scaled_dot_product_attention(q, q, q), device)


def decode_rate(device: torch.device, dtype: torch.dtype, stored: Stored) -> float:
    """Bytes/s of memory traffic while decoding a matrix: stored bytes read, numbers written and read again."""
    encoding = stored.encoding
    if encoding.sides or encoding.parts:
        return _decode_rate(device, dtype, encoding, stored.shape)
    return _decode_rate(device, dtype, Encoding(encoding.format), (2 * HIDDEN, HIDDEN))


@cache
def _decode_rate(device: torch.device, dtype: torch.dtype, encoding: Encoding, shape: tuple[int, ...]) -> float:
    # not zeros, which a CPU decodes from fp8 a quarter faster than other numbers
    raw = torch.randint(256, (encoding.nbytes(shape),), dtype=torch.uint8, device=device)
    out = torch.empty(shape, dtype=dtype, device=device)
    moved = raw.nbytes + 2 * out.nbytes
    if PLAIN.get(encoding.format) == dtype and encoding.as_is:
        return moved / best_time(lambda: out.copy_(raw.view(dtype).view(shape)), device)
    return moved / best_time(lambda: decode_into(raw, out, encoding), device)


def disk_rate(weights: Sequence[Stored]) -> float:
    """Bytes/s of direct reads from this model's file, its first large matrices."""
    source = FileSource(weights)
    room = max(stored.nbytes for stored in weights) + source.slack
    window = memoryview(anonymous(room).map)
    done, began = 0, time.perf_counter()
    for number, stored in enumerate(weights):
        check_cancelled()
        source.read(number, 0, stored.nbytes, window[: stored.nbytes + source.slack])()
        done += stored.nbytes
        if done >= SAMPLE_BYTES:
            break
    return done / max(time.perf_counter() - began, 1e-6)


@cache
def link_rate(device: torch.device) -> float:
    """Bytes/s of a copy from pinned host memory."""
    host = torch.empty(SAMPLE_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(SAMPLE_BYTES, dtype=torch.uint8, device=device)
    return SAMPLE_BYTES / best_time(lambda: there.copy_(host, non_blocking=True), device)


@cache
def host_copy_rate() -> float:
    """Bytes/s of a copy within RAM by one thread."""
    source = torch.zeros(64 * MiB, dtype=torch.uint8)
    target = torch.empty_like(source)
    return source.nbytes / best_time(lambda: target.copy_(source), torch.device("cpu"))


def best_time(work: Callable[[], object], device: torch.device, seconds: float = 0.1) -> float:
    """Seconds of the fastest call, of as many as fit in `seconds` but at least three, after one unmeasured call."""
    best, spent, calls = float("inf"), 0.0, 0
    with torch.inference_mode():
        _seconds(work, device)
        while spent < seconds or calls < 3:
            taken = _seconds(work, device)
            best, spent, calls = min(best, taken), spent + taken, calls + 1
    return max(best, 1e-9)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call. A GPU is timed by its own events, because waiting for it takes longer than many kernels."""
    check_cancelled()
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1000
