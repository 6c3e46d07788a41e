"""Three loops in C for a CPU: fp8 codes to numbers, look-ups of sixteen-bit numbers, and rotations of queries and keys.

PyTorch computes them as chains of operations that each write their result to memory; a compiled loop keeps all steps in
registers. The loops are divided among PyTorch's own threads: threads of ours would find the cores taken, because
PyTorch's spin for a while after each of its operations. Arithmetic is used only if it gives the bits of PyTorch's
operations for a sample. Without a C compiler, and for few numbers, the callers use PyTorch's operations.

fp8: a code s eeee mmm with e > 0 has the mantissa and the exponent e - 7; with e = 0 it is mmm * 2^-9, which is a
normal number in every result type; 0x7f is NaN.

Independent of: formats of files, models.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .c_compiler import compiled

log = logging.getLogger(__name__)

SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* threads: the number of cores to compute with. */

/* type: an integer as wide as a result, which has `digits` bits of mantissa and this bias. nan: PyTorch's, with the
   sign of the code if `signed_nan`. */
#define DECODE(name, type, digits, bias, nan, signed_nan)                                       \
void name(const uint8_t *restrict codes, type *restrict values, size_t count, int threads) {    \
    const type seventh = (type)(bias - 7) << digits, one = (type)1 << digits; /* 2^-7; 2 as a factor */ \
    _Pragma("omp parallel for num_threads(threads)")                                            \
    for (size_t i = 0; i < count; i++) {                                                        \
        type magnitude = codes[i] & 0x7f, sign = (type)(codes[i] & 0x80) << (8 * sizeof(type) - 8); \
        type value = seventh + (magnitude << (digits - 3));                                     \
        value = magnitude < 8 ? seventh + ((magnitude - 4) << (digits - 2)) : value;            \
        value = magnitude < 4 ? seventh - one + ((magnitude - 2) << (digits - 1)) : value;      \
        value = magnitude < 2 ? (magnitude ? seventh - one - one : 0) : value;                  \
        values[i] = magnitude == 0x7f ? nan | (signed_nan ? sign : 0) : value | sign;           \
    }                                                                                           \
}

DECODE(fp8_to_bfloat16, uint16_t, 7, 127, 0x7fc0, 0)
DECODE(fp8_to_float16, uint16_t, 10, 15, 0x7f80, 1)
DECODE(fp8_to_float32, uint32_t, 23, 127, 0x7ff00000, 1)

/* values[i] = table[values[i]] in rows of `columns` numbers that begin `stride` numbers apart. */
void look_up(const uint16_t *table, uint16_t *values, size_t rows, size_t columns, size_t stride, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < rows; row++) {
        uint16_t *restrict here = values + row * stride;
        for (size_t i = 0; i < columns; i++) here[i] = table[here[i]];
    }
}

/* To the nearest, ties to even. */
static inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* x [tokens, heads, width]; turns [tokens, 2, width]; out: heads * width numbers for each token, `stride` apart. */
void rotate(const float *x, const float *turns, uint16_t *out, size_t tokens, size_t heads, size_t width,
            size_t stride, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (size_t token = 0; token < tokens; token++) {
        const float *restrict first = turns + token * 2 * width, *restrict second = first + width;
        for (size_t head = 0; head < heads; head++) {
            const float *restrict from = x + (token * heads + head) * width;
            uint16_t *restrict to = out + token * stride + head * width;
            for (size_t i = 0; i < width; i += 2) {
                to[i] = to_bfloat16(from[i] * first[i] + from[i + 1] * first[i + 1]);
                to[i + 1] = to_bfloat16(from[i] * second[i] + from[i + 1] * second[i + 1]);
            }
        }
    }
}
"""
LOOKED_UP_FROM, ROTATED_FROM = 1 << 20, 1 << 18  # numbers: for fewer, a process compiles longer than it saves
_DECODERS = {torch.bfloat16: "fp8_to_bfloat16", torch.float16: "fp8_to_float16", torch.float32: "fp8_to_float32"}

Decoder = Callable[[Tensor, Tensor], None]


def decoder(dtype: torch.dtype) -> Decoder | None:
    """Writes e4m3fn codes [n] uint8 as values [n] of this type, both contiguous on the CPU, with all cores; or None."""
    return _decoders().get(dtype)


def look_up_rows(table: Tensor, values: Tensor) -> bool:
    """values[i] = table[values[i]], with all cores. False, and nothing has changed, if it is not computed so here.

    table: [65536] of a two-byte type. values [rows, columns] of a two-byte type, whose rows are contiguous.
    """
    library = _library() if values.numel() >= LOOKED_UP_FROM else None
    if library is None:
        return False
    library.look_up(table.data_ptr(), values.data_ptr(), *values.shape, values.stride(0), torch.get_num_threads())
    return True


def rotate(x: Tensor, turns: Tensor, out: Tensor) -> bool:
    """Rotate pairs of channels, with all cores. False, and nothing has changed, if it is not computed so here.

    x [L, H, d] and turns [L, 2, d]: float32, contiguous. out [L, H, d]: bfloat16, the channels of a token contiguous.
    Row 0 of a token's turns has the factors of the first numbers of all pairs, row 1 those of the second numbers.
    """
    width = out.shape[-1]
    fits = x.is_contiguous() and turns.is_contiguous() and out.stride()[1:] == (width, 1) and width % 2 == 0
    if out.dtype is not torch.bfloat16 or x.dtype is not torch.float32 or turns.dtype is not x.dtype or not fits:
        return False
    if x.numel() < ROTATED_FROM or not _rotates():
        return False
    _rotate(x, turns, out)
    return True


def _rotate(x: Tensor, turns: Tensor, out: Tensor) -> None:
    library = _library()
    assert library is not None
    library.rotate(x.data_ptr(), turns.data_ptr(), out.data_ptr(), *x.shape, out.stride(0), torch.get_num_threads())


@cache
def _library() -> ctypes.CDLL | None:
    """While its functions run, other Python threads run too."""
    library = compiled(SOURCE)
    if library is not None:
        pointer, number, threads = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        arguments = {**dict.fromkeys(_DECODERS.values(), (pointer, pointer, number, threads)),
                     "look_up": (pointer, pointer, number, number, number, threads),
                     "rotate": (pointer, pointer, pointer, number, number, number, number, threads)}  # fmt: skip
        for name, kinds in arguments.items():
            function = getattr(library, name)  # the same object at each use, unlike library[name]
            function.argtypes, function.restype = kinds, None
    return library


@cache
def _decoders() -> dict[torch.dtype, Decoder]:
    """The functions that give PyTorch's bits, by the type of their results."""
    library = _library()
    if library is None:
        return {}
    found = {dtype: _as_decoder(library, name) for dtype, name in _DECODERS.items()}
    return {dtype: decode for dtype, decode in found.items() if agrees(decode, dtype)}


def _as_decoder(library: ctypes.CDLL, name: str) -> Decoder:
    function = getattr(library, name)

    def decode(codes: Tensor, values: Tensor) -> None:
        function(codes.data_ptr(), values.data_ptr(), codes.numel(), torch.get_num_threads())

    return decode


def agrees(decode: Decoder, dtype: torch.dtype) -> bool:
    """Whether all codes, whole vectors and a rest, give the bits of PyTorch's own conversion."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(3)[:-5]
    values, right = torch.empty(len(codes), dtype=dtype), codes.view(torch.float8_e4m3fn).to(dtype)
    decode(codes, values)
    same = torch.equal(values.view(torch.uint8), right.view(torch.uint8))
    if not same:
        log.info("The compiled decoder of fp8 differs from PyTorch's in %s and is not used.", dtype)
    return same


@cache
def _rotates() -> bool:
    """Whether rotations have the bits of PyTorch's products and sums for numbers of all sizes."""
    if _library() is None:
        return False
    generator = torch.Generator().manual_seed(0)
    x, turns = (torch.randn(3, n, 22, generator=generator).exp_().sub_(1) for n in (5, 2))
    right, made = torch.empty(3, 5, 22, dtype=torch.bfloat16), torch.empty(3, 5, 22, dtype=torch.bfloat16)
    for number, row in enumerate(turns[:, None].unbind(2)):
        both = x * row
        right[..., number::2] = both[..., ::2] + both[..., 1::2]
    _rotate(x, turns, made)
    same = torch.equal(made, right)
    if not same:
        log.info("Compiled rotations differ from PyTorch's operations and are not used.")
    return same
