"""The speed of each kind of product on this device and its difference from float32, for the six shapes of FLUX.

    numbers     F.linear in bfloat16
    fp16 sums   F.linear in float16, summed in float16 (on NVIDIA cards)
    few passes  int8 with PyTorch's operations around the integer product
    kernels     int8 with kernels of our own around it, where they compile and agree
    a library   int8 by a library that is installed, such as comfy-kitchen, where it agrees

Inputs are random, with three columns thirty times larger than the others, as in activations. Then the same of
attention: PyTorch's, and sageattention's where it is installed and agrees. Uses no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..memory.rates import best_time
from ..models.attention import attention
from ..models.attention_library import LibraryAttention, RunAttention
from ..quant.half_sums import half_sums
from ..quant.int8 import Integers, Operand
from ..quant.int8_cuda import kernel_passes
from ..quant.int8_encode import group_of, quantise
from ..quant.int8_library import LibraryIntegers, installed
from ..runtime.device import find_device
from .gpu_parts import Part, Tell

MULTIPLES = ((3, 1), (1, 1), (4, 1), (1, 4), (7, 1), (1, 5))  # of the hidden width: outputs and inputs
TOKENS = 4608  # of 1024x1024 and 512 of text
HEAD, SAGE = 128, "sageattention"
ODD, LARGER = 3, 30.0  # number of larger columns, and how many times larger they are


def products(part: Part, tell: Tell) -> None:
    """One record for each shape and way."""
    device = find_device(part.setup.device)
    tokens = TOKENS if device.type == "cuda" else 64
    kernels = kernel_passes(device) if device.type == "cuda" else None
    for outputs, inputs in MULTIPLES:
        hidden = part.hidden
        for record in _measured(device, tokens, outputs * hidden, inputs * hidden, kernels):
            tell(record)
    for record in _attentions(device, tokens, max(1, part.hidden // HEAD)):
        tell(record)


def _measured(device: torch.device, tokens: int, outputs: int, inputs: int, kernels: Any) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(outputs + inputs)
    x = torch.randn(tokens, inputs, generator=generator)
    x[:, torch.randperm(inputs, generator=generator)[:ODD]] *= LARGER
    matrix = torch.randn(outputs, inputs, generator=generator).to(device) * inputs**-0.5
    x = x.to(device, torch.bfloat16)
    exact = F.linear(x.float(), matrix)
    weight, bias = matrix.bfloat16(), torch.zeros(outputs, device=device, dtype=torch.bfloat16)
    ways: list[tuple[str, Callable[[], Tensor]]] = [("numbers", lambda: F.linear(x, weight, bias))]
    if device.type == "cuda":
        half = x.half(), matrix.half(), bias.half()
        ways.append(("fp16 sums", lambda: _summed_in_half(*half)))
    for rotation in (0, group_of(inputs)):
        codes, scales = quantise(matrix.clone(), rotation)
        operand = Operand(codes, scales[:, 0].contiguous(), rotation)
        kinds = [("few passes", Integers())]
        kinds += [("kernels", Integers(kernels))] if kernels else []
        kinds += [(each.name, LibraryIntegers(each, Integers())) for each in installed() if device.type == "cuda"]
        ways += [(f"{name}{', rotated' if rotation else ''}", _way(one, x, operand, bias)) for name, one in kinds]
    for way, multiply in ways:
        seconds = best_time(multiply, device)
        difference = float((multiply().float() - exact).norm() / exact.norm())
        rate = 2 * tokens * outputs * inputs / seconds
        yield {
            "way": way, "outputs": outputs, "inputs": inputs, "tokens": tokens, "seconds": seconds, "rate": rate,
            "difference": difference,
            "line": f"{outputs}x{inputs}, {way}: {rate / 1e12:.2f} T/s, off by {difference:.4f}",
        }  # fmt: skip


def _attentions(device: torch.device, tokens: int, heads: int) -> Iterator[dict[str, Any]]:
    """Attention in bfloat16; queries and keys as after their norm, with a mean that keys have in common."""
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, tokens, heads, HEAD, generator=generator).to(device) for _ in range(3))
    k += k[:, :1].clone()
    exact = attention(q, k, v)
    q, k, v = (each.bfloat16() for each in (q, k, v))
    source = LibraryAttention.installed()
    refused = source.refused(device, torch.bfloat16, HEAD)
    if not refused:
        source.attend(q, k, v)  # compares it with PyTorch's
        refused = source.problem
    ways: dict[str, Callable[..., Tensor]] = {"PyTorch": attention}
    ways |= {} if refused else {SAGE: RunAttention(source, SAGE)}
    for way, attend in ways.items():
        seconds = best_time(partial(attend, q, k, v), device)
        difference = float((attend(q, k, v).float() - exact).norm() / exact.norm())
        rate = 4 * tokens * tokens * heads * HEAD / seconds
        yield {
            "attention": way, "heads": heads, "tokens": tokens, "seconds": seconds, "rate": rate,
            "difference": difference,
            "line": f"attention, {way}: {rate / 1e12:.2f} T/s, off by {difference:.4f}",
        }  # fmt: skip
    if refused:
        yield {"attention": SAGE, "refused": refused, "line": f"attention, {SAGE}: not measured, as {refused}"}


def _summed_in_half(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with half_sums():
        return F.linear(x, weight, bias)


def _way(integers: Integers, x: Tensor, operand: Operand, bias: Tensor) -> Callable[[], Tensor]:
    return lambda: integers.multiply(x, [operand], bias)
