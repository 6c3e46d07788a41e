"""Encodes numbers in GGUF's block formats, which gguf_blocks.py decodes.

Blocks of 32 are encoded exactly as by ggml and its `gguf` package. For blocks of 256 (k-quants) ggml does not prescribe
the search for good scales; here a few candidates are tried for each group, and the one with the smallest squared error
is kept.

Independent of: files, shapes, chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

CANDIDATES = 8  # steps tried for each group of a k-quant; more improve little

# k-quants need rows of 256; ggml uses these instead where the length of a row is not a multiple of 256
FALLBACKS: Mapping[str, str] = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def encode_blocks(values: Tensor, format: str) -> Tensor:
    """values float32 [n, values of a block] -> uint8 [n, bytes of a block]."""
    return _ENCODERS[format](values)


def _half(numbers: Tensor) -> Tensor:
    """float32 [n, 1] as the bytes of float16 [n, 2]."""
    return numbers.to(torch.float16).contiguous().view(torch.uint8).view(-1, 2)


def _inverse(step: Tensor) -> Tensor:
    return torch.where(step == 0, torch.zeros_like(step), 1 / step)


def _paired(codes: Tensor) -> Tensor:
    """Codes of four bits [n, 32] -> [n, 16]: value i in the low half of byte i, value i + 16 in its high half."""
    return codes[:, :16] | codes[:, 16:] << 4


def _fifth(codes: Tensor) -> Tensor:
    """The fifth bits of codes [n, 32] -> [n, 4]: bit b of byte j is that of value 8 j + b."""
    bits = (codes >> 4 & 1).view(-1, 4, 8)
    return (bits << torch.arange(8, device=codes.device)).sum(2).to(torch.uint8)


# -- blocks of 32 ----------------------------------------------------------------------------------------------------


def _q8_0(x: Tensor) -> Tensor:
    step = x.abs().amax(1, keepdim=True) / 127
    scaled = x * _inverse(step)
    rounded = torch.trunc(scaled.abs() + 0.5) * scaled.sign()  # halves are rounded away from zero, as by C's roundf
    return torch.cat((_half(step), rounded.to(torch.int8).view(torch.uint8)), 1)


def _signed(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Steps and codes for values around zero: the largest by magnitude becomes the lowest code."""
    largest = x.gather(1, x.abs().argmax(1, keepdim=True))
    step = largest / -levels
    codes = torch.trunc(x.double() * _inverse(step).double() + (levels + 0.5)).float()
    return step, codes.clamp(0, 2 * levels - 1).to(torch.uint8)


def _ranged(x: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps, minima and codes for values between a minimum and a maximum."""
    low = x.amin(1, keepdim=True)
    step = (x.amax(1, keepdim=True) - low) / most
    codes = torch.trunc((x - low) * _inverse(step) + 0.5).clamp(0, most)
    return step, low, codes.to(torch.uint8)


def _q4_0(x: Tensor) -> Tensor:
    step, codes = _signed(x, 8)
    return torch.cat((_half(step), _paired(codes)), 1)


def _q4_1(x: Tensor) -> Tensor:
    step, low, codes = _ranged(x, 15)
    return torch.cat((_half(step), _half(low), _paired(codes)), 1)


def _q5_0(x: Tensor) -> Tensor:
    step, codes = _signed(x, 16)
    return torch.cat((_half(step), _fifth(codes), _paired(codes & 15)), 1)


def _q5_1(x: Tensor) -> Tensor:
    step, low, codes = _ranged(x, 31)
    return torch.cat((_half(step), _half(low), _fifth(codes), _paired(codes & 15)), 1)


# -- blocks of 256 ---------------------------------------------------------------------------------------------------


def _affine(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Step and base (value = step code - base, base at least 0) of groups x [n, groups, 32], by least squares."""
    low = x.amin(2, keepdim=True).clamp(max=0)
    span = x.amax(2, keepdim=True) - low
    weight = x.square().mean(2, keepdim=True).sqrt() + x.abs()  # large values count more, as in ggml
    total, first = weight.sum(2, keepdim=True), (weight * x).sum(2, keepdim=True)
    best_error = torch.full_like(low, float("inf"))
    best_step, best_base = torch.zeros_like(low), torch.zeros_like(low)
    for number in range(CANDIDATES):
        inverse = _inverse(span) * (most - 0.6 + number * 1.2 / (CANDIDATES - 1))
        codes = ((x - low) * inverse).round().clamp(0, most)
        of_codes, of_squares = (weight * codes).sum(2, keepdim=True), (weight * codes * codes).sum(2, keepdim=True)
        of_both = (weight * x * codes).sum(2, keepdim=True)
        determinant = total * of_squares - of_codes * of_codes
        step = torch.where(determinant > 0, (total * of_both - first * of_codes) / determinant, span / most)
        base = torch.where(determinant > 0, (of_both * of_codes - of_squares * first) / determinant, -low)
        above = base < 0  # the base is stored without a sign
        step = torch.where(above, of_both * _inverse(of_squares), step)
        base = base.clamp(min=0)
        error = (weight * (step * codes - base - x).square()).sum(2, keepdim=True)
        better = (error < best_error) & (step >= 0)
        best_error = torch.where(better, error, best_error)
        best_step, best_base = torch.where(better, step, best_step), torch.where(better, base, best_base)
    return best_step[:, :, 0], best_base[:, :, 0]


def _k_affine(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Blocks [n, 256] of groups of 32: two halves and twelve bytes of scales [n, 16], and the codes [n, 8, 32]."""
    groups = x.view(-1, 8, 32)
    step, base = _affine(groups, most)
    d, dmin = (part.amax(1, keepdim=True) / 63 for part in (step, base))
    s, m = ((part * _inverse(whole)).round().clamp(0, 63) for part, whole in ((step, d), (base, dmin)))
    head = torch.cat((_half(d), _half(dmin)), 1)
    exact_d, exact_dmin = (head[:, at : at + 2].contiguous().view(torch.float16).float() for at in (0, 2))
    inverse = _inverse(exact_d * s)[:, :, None]
    codes = ((groups + (exact_dmin * m)[:, :, None]) * inverse).round().clamp(0, most).to(torch.uint8)
    s, m = s.to(torch.uint8), m.to(torch.uint8)
    packed = torch.cat(
        (
            s[:, :4] | (s[:, 4:] >> 4) << 6,
            m[:, :4] | (m[:, 4:] >> 4) << 6,
            (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4,
        ),
        1,
    )
    return torch.cat((head, packed), 1), codes


def _nibbles_of_groups(codes: Tensor) -> Tensor:
    """[n, 8, 32] of four bits -> [n, 128]: of every two groups the first in the low halves, the second in the high
    halves.
    """
    pairs = codes.view(-1, 4, 2, 32)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)


def _q4_k(x: Tensor) -> Tensor:
    head, codes = _k_affine(x, 15)
    return torch.cat((head, _nibbles_of_groups(codes)), 1)


def _q5_k(x: Tensor) -> Tensor:
    head, codes = _k_affine(x, 31)
    high = ((codes >> 4) << torch.arange(8, device=x.device, dtype=torch.uint8)[:, None]).sum(1).to(torch.uint8)
    return torch.cat((head, high, _nibbles_of_groups(codes & 15)), 1)


def _q6_k(x: Tensor) -> Tensor:
    groups = x.view(-1, 16, 16)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    best, step = torch.full_like(largest, -1), torch.zeros_like(largest)
    for number in range(CANDIDATES):
        inverse = _inverse(largest) * -(32 - 0.9 * number / (CANDIDATES - 1))
        codes = (groups * inverse).round().clamp(-32, 31)
        weight = groups.square()
        both, squares = (weight * groups * codes).sum(2, keepdim=True), (weight * codes * codes).sum(2, keepdim=True)
        gain = both * both * _inverse(squares)
        step, best = torch.where(gain > best, both * _inverse(squares), step), torch.maximum(gain, best)
    steps = step[:, :, 0]
    d = steps.gather(1, steps.abs().argmax(1, keepdim=True)) / -128
    scales = (steps * _inverse(d)).round().clamp(-128, 127)
    exact = _half(d).contiguous().view(torch.float16).float()
    codes = (groups * _inverse(exact * scales)[:, :, None]).round().clamp(-32, 31).add(32).to(torch.uint8)
    halves = codes.view(-1, 2, 4, 32)  # of each 128: value i, i + 32, i + 64, i + 96
    low = (halves[:, :, :2] & 15) | (halves[:, :, 2:] & 15) << 4
    high = (halves >> 4 << torch.arange(0, 8, 2, device=x.device, dtype=torch.uint8)[:, None]).sum(2).to(torch.uint8)
    return torch.cat((low.flatten(1), high.flatten(1), scales.to(torch.int8).view(torch.uint8), _half(d)), 1)


_ENCODERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _q8_0,
    "Q5_1": _q5_1,
    "Q5_0": _q5_0,
    "Q4_1": _q4_1,
    "Q4_0": _q4_0,
    "Q6_K": _q6_k,
    "Q5_K": _q5_k,
    "Q4_K": _q4_k,
}
ENCODED = tuple(_ENCODERS)
