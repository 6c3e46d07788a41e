"""The rates of this machine, each measured in a fraction of a second: products, attention, decoding, disk and link.

Plans predict from these rates and reports compare with the predictions, so the rates are measured with the functions
and sizes of a real step. Each rate is measured once per process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..cancel import check_cancelled
from ..checkpoint.stored import Stored
from ..quant.encoding import Encoding
from ..quant.formats import PLAIN, decode_into
from ..quant.fp8 import FP8, encode_fp8
from ..quant.int8 import Integers, Operand
from .cpu import anonymous
from .source import FileSource
from .workload import FewRows, Machine, MiB

HIDDEN, TOKENS = 3072, 1024  # the largest sizes measured on a CPU: larger products are no faster
GPU_TOKENS, GPU_HEADS = 4096, 24  # sizes measured on a GPU: smaller products do not use all of it
CODE = 1.6  # times as long as the call alone: with this program's own code around it (measured with the shipped model)
CHAIN = 8  # times that a chain of small operations is repeated
SPREAD = 0.02  # standard deviation of FLUX.1's weights, about
TURNS = 8  # of a comparison; the first products of a process take up to six times as long as later ones
SAMPLE_BYTES = 192 * MiB  # bytes read from disk, or copied over the link


def measured_tokens(device: torch.device, tokens: int) -> int:
    """How many tokens to measure with, for steps of this many tokens."""
    return min(tokens, TOKENS if device.type == "cpu" else GPU_TOKENS)


@cache
def gemm_rate(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> float:
    """FLOP/s of a linear layer [tokens, hidden] x [4 hidden, hidden]."""
    return 2 * tokens * 4 * hidden * hidden / best_time(_layer(device, dtype, tokens, hidden), device)


def _layer(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> Callable[[], object]:
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    weight = torch.randn(hidden, hidden, device=device).to(dtype).repeat(4, 1)
    return lambda: F.linear(x, weight)


@cache
def transposed_rate(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> float:
    """FLOP/s of the gradient of its input: [tokens, 4 hidden] x [4 hidden, hidden]."""
    slope = torch.randn(tokens, hidden, device=device).to(dtype).repeat(1, 4)
    weight = torch.randn(hidden, hidden, device=device).to(dtype).repeat(4, 1)
    return 2 * tokens * 4 * hidden * hidden / best_time(lambda: slope @ weight, device)


def few_rows(rate: Callable[..., float], *args: Any, tokens: int, hidden: int) -> FewRows:
    """The time of products with up to this many rows, from the rates with all of them and with a quarter of them.

    A line through the two times. A product of few rows takes long for its FLOP because the matrix must be read.
    """
    fewer, numbers = max(1, tokens // 4), 4.0 * hidden * hidden
    many, few = (2 * numbers * rows / rate(*args, rows, hidden) for rows in (tokens, fewer))
    row = max(many - few, 0.1 * many) / max(1, tokens - fewer)  # seconds; it cannot be negative, even if disturbed
    return FewRows(max(0.0, many - tokens * row) / numbers, 2 * numbers / row)


@cache
def elementwise_rate(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> float:
    """Bytes/s read and written by a block's operations besides products: norm, modulation, GELU, sums of two tensors.

    Results are new tensors as in training, and so the time to allocate them is included.
    """
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    wide, row = x.repeat(1, 4), x[:1].clone()

    def work() -> None:
        torch.addcmul(row, F.layer_norm(x, x.shape[-1:]), row)  # reads x, writes; reads, writes
        torch.addcmul(x, row, x)  # reads twice, writes
        F.gelu(wide, approximate="tanh")  # reads, writes
        wide + wide  # as with the values of a LoRA: reads twice, writes

    return (7 * x.nbytes + 5 * wide.nbytes) / best_time(work, device)


@cache
def side_rate(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> float:
    """Bytes/s read and written by the products of a LoRA and of its gradients."""
    rank = 4  # with so few, reading and writing limit the rate; the FLOP of larger ones are counted too
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    wide, down = x.repeat(1, 4), x[:1].expand(rank, -1).contiguous()
    up, inner = (
        torch.randn(4 * hidden, rank, device=device).to(dtype),
        torch.randn(tokens, rank, device=device).to(dtype),
    )

    def work() -> None:
        F.linear(x, down)
        F.linear(inner, up)
        wide.t() @ inner  # the gradient of `up`
        wide @ up
        inner.t() @ x

    moved = 2 * (x.nbytes + down.nbytes) + 3 * (wide.nbytes + up.nbytes) + 5 * inner.nbytes
    return moved / best_time(work, device)


@cache
def trained_attention_rate(device: torch.device, dtype: torch.dtype, tokens: int) -> float:
    """FLOP/s of attention and its gradients, which take 2.5 times the FLOP because scores are computed again."""
    heads = 4 if device.type == "cpu" else GPU_HEADS
    q = torch.randn(1, heads, tokens, 128, device=device).to(dtype).requires_grad_()

    def work() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            out = F.scaled_dot_product_attention(q, q, q)
            torch.autograd.grad(out, q, out.detach())

    return 3.5 * 4 * heads * tokens * tokens * 128 / best_time(work, device)


@cache
def call_seconds(device: torch.device) -> float | None:
    """Seconds to call one operation in a step with gradients, on tensors so small that nothing else takes time.

    None for a GPU, whose kernels run while the next operations are called.
    """
    if device.type != "cpu":
        return None
    x, weight = torch.ones(4, 16, requires_grad=True), torch.ones(16, 16)

    def work() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            y = x
            for _ in range(CHAIN):
                y = F.gelu(F.linear(F.layer_norm(y, (16,)), weight)) * x + y
            torch.autograd.grad(y.sum(), x)

    with _Counted() as counted:
        work()
    return float(CODE * best_time(work, device) / counted.calls)


class _Counted(TorchDispatchMode):
    """Counts the operations that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # a class of torch's without annotations
        self.calls = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch's compiler is not used here, and importing it would take two seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def with_training_rates(
    machine: Machine, device: torch.device, dtype: torch.dtype, tokens: int, hidden: int
) -> Machine:
    """The machine with the rates of a backward pass, and of the work beside the products with the model's matrices."""
    return replace(
        machine,
        attention=trained_attention_rate(device, dtype, tokens),
        transposed=transposed_rate(device, dtype, tokens, hidden),
        few_rows=few_rows(gemm_rate, device, dtype, tokens=tokens, hidden=hidden),
        few_rows_transposed=few_rows(transposed_rate, device, dtype, tokens=tokens, hidden=hidden),
        elementwise=elementwise_rate(device, dtype, tokens, hidden),
        side=side_rate(device, dtype, tokens, hidden),
        call=call_seconds(device),
    )


@cache
def integer_rate(integers: Integers, device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> float:
    """Operations/s of the same layer in 8-bit integers, for inputs and outputs of `dtype`."""
    seconds = best_time(_integer_layer(integers, device, dtype, tokens, hidden), device)
    return 2 * tokens * 4 * hidden * hidden / seconds


def _integer_layer(
    integers: Integers, device: torch.device, dtype: torch.dtype, tokens: int, hidden: int
) -> Callable[[], object]:
    """Includes quantising inputs and scaling sums."""
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    codes = torch.randint(-127, 128, (hidden, hidden), dtype=torch.int8, device=device).repeat(4, 1)
    operand = Operand(codes, torch.ones(4 * hidden, device=device))
    return lambda: integers.multiply(x, [operand], None)


@cache
def integer_gain(integers: Integers, device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> float:
    """The speedup of that layer in integers over `dtype`.

    Measured in turns, because a decision rests on it: another program or a cold processor then delays both.
    """
    layers = _layer(device, dtype, tokens, hidden), _integer_layer(integers, device, dtype, tokens, hidden)
    turns = []
    with torch.inference_mode():
        for _ in range(TURNS):
            turns.append([_seconds(layer, device) for layer in layers])
    plain, whole = map(min, zip(*turns, strict=True))
    return float(plain / max(whole, 1e-9))


@cache
def attention_rate(device: torch.device, dtype: torch.dtype, tokens: int, width: int = 128) -> float:
    """FLOP/s of scaled dot-product attention over heads of this width. Narrow heads are slower: 0.74 at 32 on a CPU."""
    heads = 4 if device.type == "cpu" else GPU_HEADS
    q = torch.randn(1, heads, tokens, width, device=device).to(dtype)
    return 4 * heads * tokens * tokens * width / best_time(lambda: F.scaled_dot_product_attention(q, q, q), device)


def decode_rate(device: torch.device, dtype: torch.dtype, stored: Stored) -> float:
    """Bytes/s of memory traffic while decoding a matrix: stored bytes read, numbers written and read again."""
    encoding = stored.encoding
    if encoding.sides or encoding.parts:
        return _decode_rate(device, dtype, encoding, stored.shape)
    return _decode_rate(device, dtype, Encoding(encoding.format), (2 * HIDDEN, HIDDEN))


@cache
def _decode_rate(device: torch.device, dtype: torch.dtype, encoding: Encoding, shape: tuple[int, ...]) -> float:
    raw = _like_weights(encoding, shape).to(device)
    out = torch.empty(shape, dtype=dtype, device=device)
    moved = raw.nbytes + 2 * out.nbytes
    if PLAIN.get(encoding.format) == dtype and encoding.as_is:
        return moved / best_time(lambda: out.copy_(raw.view(dtype).view(shape)), device)
    return moved / best_time(lambda: decode_into(raw, out, encoding), device)


def _like_weights(encoding: Encoding, shape: tuple[int, ...]) -> Tensor:
    """Stored bytes, uint8 [n], on the CPU. Time depends on the numbers where a table decodes them: a CPU decodes zeros
    from fp8 in a quarter less time than weights, which use a quarter of the codes, and random codes in more.
    """
    nbytes = encoding.nbytes(shape)
    if encoding.format not in FP8:
        return torch.randint(256, (nbytes,), dtype=torch.uint8)
    codes = encode_fp8(SPREAD * torch.randn(min(nbytes, MiB)), encoding.format).view(torch.uint8)
    return codes.repeat(-(-nbytes // len(codes)))[:nbytes]


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
