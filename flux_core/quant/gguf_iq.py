"""ggml's codebook formats (IQ1 to IQ3): an index for four or eight values, with separate signs. Also NVFP4 of GGUF.

As in gguf_blocks.py a format is two functions, `scales` and `codes`; the codes here are whole numbers with their signs.
`s` is a scale of a few bits, `d` the float16 that multiplies the whole block.

Format: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .gguf_grids import codebook

Scales = tuple[Tensor, Tensor | None]  # step and base, float32 [n, groups]


def scales_iq2_xxs(blocks: Tensor) -> Scales:
    """| f16 d | 8 x (4 x u8 index, u32: 4 x 7 bits of signs, 4 bits s) |    8 groups of 32: step d (1/2 + s) / 4."""
    return _half(blocks[:, :2]) * (0.5 + _top_four(blocks[:, 2:].unflatten(1, (8, 8))[..., 4:])) * 0.25, None


def codes_iq2_xxs(blocks: Tensor, spare: Tensor) -> Tensor:
    pairs = blocks[:, 2:].unflatten(1, (8, 8))
    return _signed("IQ2_XXS", pairs[..., :4], _sevens(pairs[..., 4:]))


def scales_iq2_xs(blocks: Tensor) -> Scales:
    """| f16 d | 32 x u16: 9 bits of index, 7 of signs | 16 x nibbles s |    16 groups of 16: step d (1/2 + s) / 4."""
    return _half(blocks[:, :2]) * (0.5 + _nibbles(blocks[:, 66:])) * 0.25, None


def codes_iq2_xs(blocks: Tensor, spare: Tensor) -> Tensor:
    both = _numbers(blocks[:, 2:66], torch.int16) & 0xFFFF
    return _signed("IQ2_XS", both & 511, _even_signs(blocks.device)[both >> 9])


def scales_iq2_s(blocks: Tensor) -> Scales:
    """| f16 d | 32 x u8 index | 32 x u8 signs | 32 x two more bits of index | 16 x nibbles s |    as IQ2_XS."""
    return _half(blocks[:, :2]) * (0.5 + _nibbles(blocks[:, 74:])) * 0.25, None


def codes_iq2_s(blocks: Tensor, spare: Tensor) -> Tensor:
    index = blocks[:, 2:34].int() | _bits(blocks[:, 66:74], 2) << 8
    return _signed("IQ2_S", index, blocks[:, 34:66].int())


def scales_iq3_xxs(blocks: Tensor) -> Scales:
    """| f16 d | 64 x u8 index | 8 x u32: 4 x 7 bits of signs, 4 bits s |    8 groups of 32: step d (1/2 + s) / 2."""
    return _half(blocks[:, :2]) * (0.5 + _top_four(blocks[:, 66:].unflatten(1, (8, 4)))) * 0.5, None


def codes_iq3_xxs(blocks: Tensor, spare: Tensor) -> Tensor:
    return _signed("IQ3_XXS", blocks[:, 2:66], _sevens(blocks[:, 66:].unflatten(1, (8, 4))))


def scales_iq3_s(blocks: Tensor) -> Scales:
    """| f16 d | 64 x u8 index | 64 x one more bit | 32 x u8 signs | 8 x nibbles s |

    8 groups of 32: step d (1 + 2 s).
    """
    return _half(blocks[:, :2]) * (1 + 2 * _nibbles(blocks[:, 106:])), None


def codes_iq3_s(blocks: Tensor, spare: Tensor) -> Tensor:
    index = blocks[:, 2:66].int() | _bits(blocks[:, 66:74], 1) << 8
    return _signed("IQ3_S", index, blocks[:, 74:106].int())


def scales_iq1_s(blocks: Tensor) -> Scales:
    """| f16 d | 32 x u8 index | 8 x u16: 4 x 3 more bits, 3 bits s, sign of the shift |

    8 groups of 32: d (2 s + 1) (value -1, 0 or 1, shifted by an eighth). Codes are eighths, and so is the step.
    """
    s = _numbers(blocks[:, 34:], torch.int16) >> 12 & 7
    return _half(blocks[:, :2]) * (2 * s + 1) / 8, None


def codes_iq1_s(blocks: Tensor, spare: Tensor) -> Tensor:
    high = _numbers(blocks[:, 34:], torch.int16)
    more = torch.stack([high >> shift & 7 for shift in (0, 3, 6, 9)], dim=2).flatten(1)
    shift = torch.where(high & 0x8000 == 0, 1, -1).to(torch.int8)
    return _eighths(blocks[:, 2:34].int() | more << 8, shift.repeat_interleave(4, dim=1))


def scales_iq1_m(blocks: Tensor) -> Scales:
    """| 32 x u8 index | 32 x (3 more bits, sign of the shift) | 4 x u16: 4 x 3 bits s, a quarter of f16 d |

    16 groups of 16, as IQ1_S; the lowest quarter of d comes first.
    """
    words = _numbers(blocks[:, 48:], torch.int16) & 0xFFFF
    d = sum((words[:, each] >> 12) << 4 * each for each in range(4))
    assert isinstance(d, Tensor)
    s = torch.stack([words >> shift & 7 for shift in (0, 3, 6, 9)], dim=2).flatten(1)
    return d.to(torch.int16).view(torch.float16).float()[:, None] * (2 * s + 1) / 8, None


def codes_iq1_m(blocks: Tensor, spare: Tensor) -> Tensor:
    high = _bits(blocks[:, 32:48], 4)
    shift = torch.where(high & 8 == 0, 1, -1).to(torch.int8)
    return _eighths(blocks[:, :32].int() | (high & 7) << 8, shift)


def scales_nvfp4(blocks: Tensor) -> Scales:
    """| 4 x e4m3 without sign | 4 x (8 x nibbles, q[i+8] << 4 | q[i]) |

    4 groups of 16; the levels are doubled.
    """
    return _unsigned_e4m3(blocks.device)[blocks[:, :4].int()], None


def codes_nvfp4(blocks: Tensor, spare: Tensor) -> Tensor:
    groups = blocks[:, 4:].unflatten(1, (4, 8))
    return torch.cat((groups & 15, groups >> 4), dim=2).flatten(1)


# -- parts of these --------------------------------------------------------------------------------------------------


def _half(pair: Tensor) -> Tensor:
    """The f16 in two bytes, as float32 [n, 1]."""
    return pair.contiguous().view(torch.float16).float()


def _numbers(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Little-endian integers out of bytes, as int32."""
    return part.contiguous().view(dtype).int()


def _nibbles(part: Tensor) -> Tensor:
    """Low half first, as int32 [n, 2 bytes]."""
    return _bits(part, 4)


def _bits(part: Tensor, width: int) -> Tensor:
    """Fields of `width` bits of every byte, lowest first, as int32."""
    fields = [part.int() >> shift & ((1 << width) - 1) for shift in range(0, 8, width)]
    return torch.stack(fields, dim=2).flatten(1)


def _top_four(words: Tensor) -> Tensor:
    """The highest four bits of u32: uint8 [n, words, 4] -> int32 [n, words]."""
    return words[..., 3].int() >> 4


def _sevens(words: Tensor) -> Tensor:
    """Four times seven bits of each u32, lowest first, as signs of eight values.

    uint8 [n, words, 4] -> int32 [n, 4 words].
    """
    numbers = _numbers(words, torch.int32)[..., 0]
    fields = torch.stack([numbers >> shift & 127 for shift in (0, 7, 14, 21)], dim=2).flatten(1)
    return _even_signs(words.device)[fields]


def _signed(name: str, index: Tensor, signs: Tensor) -> Tensor:
    """Entries of a codebook with their signs, one bit a value: int8 [n, 256]."""
    values = codebook(name, index.device)[index.int()].flatten(1)
    negative = _bits_as_bytes(index.device)[signs].flatten(1)
    return values.bitwise_xor_(negative).sub_(negative)


def _eighths(index: Tensor, shift: Tensor) -> Tensor:
    """Entries of IQ1's codebook in eighths, each shifted up or down by one eighth: int8 [n, 256]."""
    values = codebook("IQ1", index.device)[index]
    return values.mul_(8).add_(shift[..., None]).flatten(1)


@cache
def _even_signs(device: torch.device) -> Tensor:
    """Seven bits of signs -> eight: the last bit makes the number of set bits even. int32 [128]."""
    with torch.inference_mode(False):
        codes = torch.arange(128, dtype=torch.int32)
        ones = sum(codes >> bit & 1 for bit in range(7))
        return (codes | (ones & 1) << 7).to(device)


@cache
def _bits_as_bytes(device: torch.device) -> Tensor:
    """Every byte -> its bits, lowest first, as 0 or -1: int8 [256, 8]."""
    with torch.inference_mode(False):
        return -(torch.arange(256)[:, None] >> torch.arange(8) & 1).to(torch.int8).to(device)


@cache
def _unsigned_e4m3(device: torch.device) -> Tensor:
    """Half of the value of an NVFP4 scale, float32 [256]: bias 7, the top bit is ignored; 0x7F is 0."""
    with torch.inference_mode(False):
        codes = torch.arange(256)
        exponent, mantissa = codes >> 3 & 15, (codes & 7).float()
        normal = (1 + mantissa / 8) * torch.exp2(exponent.float() - 7)
        scales = torch.where(exponent == 0, mantissa * 2.0**-9, normal) / 2
        return torch.where(codes == 0x7F, 0.0, scales).to(device)
