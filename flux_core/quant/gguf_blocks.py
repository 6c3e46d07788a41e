"""GGUF's block formats: for each a drawing and a row in a table.

All of them compute value = step (code - zero) - base, with one step (and base) for a group of neighbouring codes, or
value = step level[code]; they differ in how codes and steps are packed. So a format is two functions and a number or a
table: `scales` gives the steps and bases of its groups, `codes` the codes in the order of the values. The operations
and their order are those of ggml and its `gguf` package, so that every value is identical to the last bit.

A drawing lists the fields in order; numbers are little-endian. Bits are moved in contiguous memory, with four or eight
bytes in one integer where groups interleave: a CPU has no vector instructions for rows of 32 bytes and would take ten
times as long.

Independent of: files, chunks, output types. Format: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from . import gguf_iq
from .lookup import look_up

Scales = tuple[Tensor, Tensor | None]  # step and base, float32 [n, groups]


@dataclass(frozen=True)
class BlockFormat:
    """scales(blocks [n, bytes]) -> (step, base), contiguous, since multiplying by them is slow otherwise; codes(blocks,
    spare uint8 [3, n, count]) -> [n, count] uint8 or int8, in `spare` or in `blocks` itself.
    """

    scales: Callable[[Tensor], Scales]
    codes: Callable[[Tensor, Tensor], Tensor]
    zero: int = 0
    levels: tuple[int, ...] = ()


def decode_blocks(format: BlockFormat, blocks: Tensor, values: Tensor, spare: Tensor) -> None:
    """blocks uint8 [n, bytes] -> values float32 [n, count]. Overwrites spare uint8 [3, n, count]."""
    codes = format.codes(blocks, spare)  # first: it reads all bytes, so that the scales are in the cache afterwards
    step, base = format.scales(blocks)
    if format.levels:
        pairs = spare[1].view(-1).view(torch.int16)
        look_up(_pairs(format.levels, blocks.device), codes.view(-1).view(torch.uint16), pairs)
        codes = spare[1].view(torch.int8).view(codes.shape)
    if format.zero:
        codes = codes.sub_(format.zero).view(torch.int8)
    groups = values.copy_(codes).view(*step.shape, -1).mul_(step[..., None])
    if base is not None:
        groups.sub_(base[..., None])


# -- blocks of 32 ----------------------------------------------------------------------------------------------------


def scales_d(blocks: Tensor) -> Scales:
    """| f16 d | ..."""
    return _half(blocks, 0), None


def scales_d_m(blocks: Tensor) -> Scales:
    """| f16 d | f16 m | ...   value = d code + m, so the base is -m."""
    return _half(blocks, 0), -_half(blocks, 1)


def codes_q8_0(blocks: Tensor, spare: Tensor) -> Tensor:
    """| f16 d | 32 x i8 |"""
    return blocks[:, 2:].view(torch.int8)


def codes_q4_0(blocks: Tensor, spare: Tensor) -> Tensor:
    """| f16 d | 16 x nibbles, q[i+16] << 4 | q[i] |"""
    return _nibbles(blocks[:, 2:], spare, 1)


def codes_q4_1(blocks: Tensor, spare: Tensor) -> Tensor:
    """| f16 d | f16 m | 16 x nibbles, q[i+16] << 4 | q[i] |"""
    return _nibbles(blocks[:, 4:], spare, 1)


def codes_q5_0(blocks: Tensor, spare: Tensor) -> Tensor:
    """| f16 d | u32 fifth bits, q[i]'s is bit i | 16 x nibbles, q[i+16] << 4 | q[i] |"""
    return _nibbles(blocks[:, 6:], spare, 1).add_(_fifth_bits(blocks[:, 2:6]))


def codes_q5_1(blocks: Tensor, spare: Tensor) -> Tensor:
    """| f16 d | f16 m | u32 fifth bits | 16 x nibbles |"""
    return _nibbles(blocks[:, 8:], spare, 1).add_(_fifth_bits(blocks[:, 4:8]))


# -- blocks of 256 ---------------------------------------------------------------------------------------------------


def scales_q2_k(blocks: Tensor) -> Scales:
    """| 16 x (m << 4 | s) | 64 bytes of q | f16 d | f16 dmin |    16 groups of 16: step d s, base dmin m."""
    packed = blocks[:, :16].contiguous()
    return (packed & 15).float() * _half(blocks, 40), (packed >> 4).float() * _half(blocks, 41)


def codes_q2_k(blocks: Tensor, spare: Tensor) -> Tensor:
    """Of each half (128 values), byte i of 32 holds q of i, i+32, i+64 and i+96, two bits each, lowest first."""
    return _quarters(blocks[:, 16:80], spare[0], 0x03)


def scales_q3_k(blocks: Tensor) -> Scales:
    """| 32 x third bits | 64 x two-bit q | 12 x scales | f16 d |    16 groups of 16: step d (s - 32).

    The low four bits of s lie in 8 bytes (s[i+8] << 4 | s[i]), the high two in 4 (s[i], s[i+4], s[i+8], s[i+12]).
    """
    first, second, top = blocks[:, 96:108].contiguous().view(torch.int32).unbind(1)
    low = (first, second, first >> 4, second >> 4)
    parts = [(low[i] & 0x0F0F0F0F) | ((top >> 2 * i & 0x03030303) << 4) for i in range(4)]
    return (torch.stack(parts, dim=1).view(torch.uint8).float() - 32) * _half(blocks, 54), None


def codes_q3_k(blocks: Tensor, spare: Tensor) -> Tensor:
    """Two bits as in q2_k, and 4 more where the third bit is set: of byte i, bit b belongs to value i + 32 b."""
    return _quarters(blocks[:, 32:96], spare[0], 0x03).add_(_eighths(blocks[:, :32], spare[1], 2))


def scales_q4_k(blocks: Tensor) -> Scales:
    """| f16 d | f16 dmin | 12 x scales | ...    8 groups of 32: step d s, base dmin m, all s and m of six bits.

    Bytes 0-3 are s[0..3] and bytes 4-7 m[0..3] in their low six bits; bytes 8-11 hold the low four bits of s[4..7] and,
    above them, of m[4..7], whose high two bits are the top bits of bytes 0-3 and 4-7.
    """
    packed = blocks[:, 4:16].contiguous().view(torch.int32)
    first, rest = packed[:, :2], packed[:, 2:]
    four = torch.cat((rest & 0x0F0F0F0F, (rest >> 4) & 0x0F0F0F0F), dim=1)
    both = torch.stack((first & 0x3F3F3F3F, four.bitwise_or_((first >> 2) & 0x30303030)), dim=2)  # [n, 2, 2]
    s, m = both.view(torch.uint8).unbind(1)
    return s.float() * _half(blocks, 0), m.float() * _half(blocks, 1)


def codes_q4_k(blocks: Tensor, spare: Tensor) -> Tensor:
    """... | 128 x nibbles |    byte i of each 32: q of group 2k in its low, of group 2k+1 in its high half."""
    return _nibbles(blocks[:, 16:], spare, 4)


def codes_q5_k(blocks: Tensor, spare: Tensor) -> Tensor:
    """... | 32 x fifth bits | 128 x nibbles |    as q4_k; the fifth bit of value i in group g is bit g of byte i."""
    return _nibbles(blocks[:, 48:], spare, 4).add_(_eighths(blocks[:, 16:48], spare[1], 4))


def scales_q6_k(blocks: Tensor) -> Scales:
    """| 128 x low nibbles | 64 x high bits | 16 x i8 s | f16 d |    16 groups of 16: step d s."""
    return blocks[:, 192:208].view(torch.int8).float() * _half(blocks, 104), None


def codes_q6_k(blocks: Tensor, spare: Tensor) -> Tensor:
    """Of each half (128 values), nibble byte i holds i and i+64, high-bits byte i holds i, i+32, i+64 and i+96."""
    return _nibbles(blocks[:, :128], spare, 2).add_(_quarters(blocks[:, 128:192], spare[1], 0x30))


# -- levels that are not evenly spaced: two formats of 16, and four-bit floats -------------------------------------

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1_TWICE = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def scales_iq4_xs(blocks: Tensor) -> Scales:
    """| f16 d | u16 high bits | 4 x low nibbles | ...    8 groups of 32: step d (s - 32), s of six bits.

    The low four bits of s lie in nibbles, the lower half of a byte first, its high two in the u16, lowest first.
    """
    low = blocks[:, 4:8].contiguous()
    four = torch.stack((low & 15, low >> 4), dim=2).view(-1, 8)
    both = blocks[:, 2:4].contiguous()
    two = torch.stack([both >> shift & 3 for shift in (0, 2, 4, 6)], dim=2).view(-1, 8)
    return (four | two << 4).float().sub_(32).mul_(_half(blocks, 0)), None


def codes_iq4_xs(blocks: Tensor, spare: Tensor) -> Tensor:
    """... | 128 x nibbles |    of each group 16 bytes: q[i] in the low half of byte i, q[i + 16] in its high half."""
    return _nibbles(blocks[:, 8:], spare, 8)


def scales_mxfp4(blocks: Tensor) -> Scales:
    """| u8 e | ...    step 2^(e - 128): half of 2^(e - 127), since the levels are doubled."""
    e = blocks[:, :1].int()
    bits = torch.where(e < 2, 0x00200000 << e, (e - 1) << 23)
    return bits.view(torch.float32), None


def codes_mxfp4(blocks: Tensor, spare: Tensor) -> Tensor:
    """| u8 e | 16 x nibbles, q[i+16] << 4 | q[i] |"""
    return _nibbles(blocks[:, 1:], spare, 1)


# -- bits ------------------------------------------------------------------------------------------------------------


def _half(blocks: Tensor, index: int) -> Tensor:
    """The f16 at byte 2 * index of every block, as float32 [n, 1]."""
    return blocks.view(torch.float16)[:, index : index + 1].float()


def _nibbles(packed: Tensor, spare: Tensor, groups: int) -> Tensor:
    """Low halves of the bytes, then their high halves, in each of `groups` groups: [n, bytes] -> spare[0]."""
    shape = packed.shape[0], groups, packed.shape[1] // groups
    copy, part = (row.view(-1)[: packed.numel()].view(shape) for row in spare[1:])
    low, high = spare[0].view(*shape[:2], 2, shape[2]).unbind(2)
    copy.copy_(packed.unflatten(1, shape[1:]))
    low.copy_(torch.bitwise_and(copy, 15, out=part))
    high.copy_(torch.bitwise_right_shift(copy, 4, out=part))
    return spare[0]


def _quarters(packed: Tensor, out: Tensor, mask: int) -> Tensor:
    """Two bits each, moved to the position of `mask` (3 or 0x30), lowest first: of both halves of a block, 32 bytes ->
    4 x 32.
    """
    lanes = packed.contiguous().view(torch.int64).view(-1, 2, 4)
    quarters = out.view(torch.int64).view(-1, 2, 4, 4)
    up = 4 if mask == 0x30 else 0
    for quarter in range(4):
        torch.bitwise_and(_shift(lanes, up - 2 * quarter), _lanes(mask), out=quarters[:, :, quarter])
    return out


def _eighths(packed: Tensor, out: Tensor, up: int) -> Tensor:
    """One bit each, moved to bit `up`: 32 bytes -> 8 x 32, lowest bit first."""
    lanes = packed.contiguous().view(torch.int64)
    eighths = out.view(torch.int64).view(-1, 8, 4)
    for bit in range(8):
        torch.bitwise_and(_shift(lanes, up - bit), _lanes(1 << up), out=eighths[:, bit])
    return out


def _shift(lanes: Tensor, left: int) -> Tensor:
    """Shift whole integers; the caller masks off bits that cross from one byte into the next."""
    return lanes << left if left > 0 else lanes >> -left


def _lanes(byte: int) -> int:
    """The same byte in all eight of an int64."""
    return byte * 0x0101010101010101


def _fifth_bits(packed: Tensor) -> Tensor:
    """Bit b of byte j adds 16 to value 8 j + b: uint8 [n, 4] -> [n, 32]."""
    table = _bits_apart(packed.device)
    return torch.index_select(table, 0, packed.reshape(-1).int()).view(torch.uint8).view(-1, 32)


@cache
def _bits_apart(device: torch.device) -> Tensor:
    """Every byte -> its eight bits as eight bytes of 0 or 16, in one int64."""
    with torch.inference_mode(False):
        bits = (torch.arange(256, dtype=torch.int64)[:, None] >> torch.arange(8)) & 1
        return (bits << 4).to(torch.uint8).view(torch.int64).view(-1).to(device)


@cache
def _pairs(levels: tuple[int, ...], device: torch.device) -> Tensor:
    """Two codes of one byte each -> their two levels, int8 in one int16. Codes beyond the table do not occur."""
    with torch.inference_mode(False):
        one = torch.zeros(256, dtype=torch.int8)
        one[: len(levels)] = torch.tensor(levels, dtype=torch.int8)
        two = torch.stack((one.repeat(256), one.repeat_interleave(256)), dim=1)
        return two.view(torch.int16).view(-1).to(device)


BLOCKS: dict[str, BlockFormat] = {
    "Q8_0": BlockFormat(scales_d, codes_q8_0),
    "Q4_0": BlockFormat(scales_d, codes_q4_0, zero=8),
    "Q5_0": BlockFormat(scales_d, codes_q5_0, zero=16),
    "Q4_1": BlockFormat(scales_d_m, codes_q4_1),
    "Q5_1": BlockFormat(scales_d_m, codes_q5_1),
    "Q2_K": BlockFormat(scales_q2_k, codes_q2_k),
    "Q3_K": BlockFormat(scales_q3_k, codes_q3_k, zero=4),
    "Q4_K": BlockFormat(scales_q4_k, codes_q4_k),
    "Q5_K": BlockFormat(scales_q4_k, codes_q5_k),
    "Q6_K": BlockFormat(scales_q6_k, codes_q6_k, zero=32),
    "IQ4_NL": BlockFormat(scales_d, codes_q4_0, levels=IQ4_LEVELS),
    "IQ4_XS": BlockFormat(scales_iq4_xs, codes_iq4_xs, levels=IQ4_LEVELS),
    "MXFP4": BlockFormat(scales_mxfp4, codes_mxfp4, levels=E2M1_TWICE),
    "NVFP4_GGUF": BlockFormat(gguf_iq.scales_nvfp4, gguf_iq.codes_nvfp4, levels=E2M1_TWICE),
    "IQ1_S": BlockFormat(gguf_iq.scales_iq1_s, gguf_iq.codes_iq1_s),
    "IQ1_M": BlockFormat(gguf_iq.scales_iq1_m, gguf_iq.codes_iq1_m),
    "IQ2_XXS": BlockFormat(gguf_iq.scales_iq2_xxs, gguf_iq.codes_iq2_xxs),
    "IQ2_XS": BlockFormat(gguf_iq.scales_iq2_xs, gguf_iq.codes_iq2_xs),
    "IQ2_S": BlockFormat(gguf_iq.scales_iq2_s, gguf_iq.codes_iq2_s),
    "IQ3_XXS": BlockFormat(gguf_iq.scales_iq3_xxs, gguf_iq.codes_iq3_xxs),
    "IQ3_S": BlockFormat(gguf_iq.scales_iq3_s, gguf_iq.codes_iq3_s),
}
