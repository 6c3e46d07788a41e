"""Decodes e4m3fn codes on a CPU by a C function that is compiled at first use, where a C compiler is installed.

A processor's vector instructions decode 32 codes at a time, at two to three times the rate of look-ups (fp8.py). A
chain of PyTorch's operations does not reach that, because each of them writes its result to memory. The compiler is
`$CC`, `cc`, `gcc` or `clang`. The library is made for this processor in a temporary folder, in 0.2 s, and its file is
deleted once it is loaded. It is used only if it gives PyTorch's bits for all codes. Without a compiler, or if
anything fails, `decoder` returns None.

The values: a code s eeee mmm with e > 0 has the mantissa and the exponent e - 7; with e = 0 it is mmm * 2^-9, which is
a normal number in every result type; 0x7f is NaN.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_COMPILE_SECONDS = 30
_NAMES = {torch.bfloat16: "to_bfloat16", torch.float16: "to_float16", torch.float32: "to_float32"}
SOURCE = r"""
#include <stddef.h>
#include <stdint.h>

/* type: an integer as wide as a result, which has `digits` bits of mantissa and this bias. nan: PyTorch's, with the
   sign of the code if `signed_nan`. */
#define DECODE(name, type, digits, bias, nan, signed_nan)                                       \
void name(const uint8_t *restrict codes, type *restrict values, size_t count) {                 \
    const type seventh = (type)(bias - 7) << digits, one = (type)1 << digits; /* 2^-7; 2 as a factor */ \
    for (size_t i = 0; i < count; i++) {                                                        \
        type magnitude = codes[i] & 0x7f, sign = (type)(codes[i] & 0x80) << (8 * sizeof(type) - 8); \
        type value = seventh + (magnitude << (digits - 3));                                     \
        value = magnitude < 8 ? seventh + ((magnitude - 4) << (digits - 2)) : value;            \
        value = magnitude < 4 ? seventh - one + ((magnitude - 2) << (digits - 1)) : value;      \
        value = magnitude < 2 ? (magnitude ? seventh - one - one : 0) : value;                  \
        values[i] = magnitude == 0x7f ? nan | (signed_nan ? sign : 0) : value | sign;           \
    }                                                                                           \
}

DECODE(to_bfloat16, uint16_t, 7, 127, 0x7fc0, 0)
DECODE(to_float16, uint16_t, 10, 15, 0x7f80, 1)
DECODE(to_float32, uint32_t, 23, 127, 0x7ff00000, 1)
"""

Decoder = Callable[[Tensor, Tensor], None]


def decoder(dtype: torch.dtype) -> Decoder | None:
    """Writes codes [n] uint8 as values [n] of this type, both contiguous on the CPU; or None."""
    return _decoders().get(dtype)


@cache
def _decoders() -> dict[torch.dtype, Decoder]:
    """The functions that give PyTorch's bits, by the type of their results."""
    library = compiled(SOURCE)
    if library is None:
        return {}
    found = {dtype: _as_decoder(library, name) for dtype, name in _NAMES.items()}
    return {dtype: decode for dtype, decode in found.items() if agrees(decode, dtype)}


def _as_decoder(library: ctypes.CDLL, name: str) -> Decoder:
    """The C function, for tensors. While it runs, other Python threads run too."""
    function = library[name]
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), None

    def decode(codes: Tensor, values: Tensor) -> None:
        function(codes.data_ptr(), values.data_ptr(), codes.numel())

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


def compiled(source: str) -> ctypes.CDLL | None:
    """A library from C source, for this processor; None if there is no compiler, or it fails."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix":
        return None
    with tempfile.TemporaryDirectory(prefix="sluice-") as folder:
        path, library = Path(folder) / "fp8.c", Path(folder) / "fp8.so"
        try:
            path.write_text(source, "ascii")
            command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(library), str(path)]
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
            return ctypes.CDLL(str(library))
        except (OSError, subprocess.SubprocessError) as error:
            log.info("fp8 is decoded by look-up, because %s did not make a library: %s", compiler, error)
            return None
