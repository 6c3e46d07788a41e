"""How many bytes each stored format takes. Uses no torch, so that headers can be read without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

# (values, bytes) of the smallest unit that can be read by itself. Names are those of safetensors and ggml.
SAFETENSORS: Mapping[str, tuple[int, int]] = {
    "F64": (1, 8), "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2),
    "F8_E4M3": (1, 1), "F8_E5M2": (1, 1), "F8_E8M0": (1, 1), "F6_E2M3": (4, 3), "F6_E3M2": (4, 3), "F4": (2, 1),
    "I64": (1, 8), "I32": (1, 4), "I16": (1, 2), "I8": (1, 1),
    "U64": (1, 8), "U32": (1, 4), "U16": (1, 2), "U8": (1, 1), "BOOL": (1, 1), "C64": (1, 8),
}  # fmt: skip
GGML: Mapping[str, tuple[int, int]] = {
    "Q8_0": (32, 34), "Q5_1": (32, 24), "Q5_0": (32, 22), "Q4_1": (32, 20), "Q4_0": (32, 18),
    "Q6_K": (256, 210), "Q5_K": (256, 176), "Q4_K": (256, 144), "Q3_K": (256, 110), "Q2_K": (256, 84),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "MXFP4": (32, 17),
    "NVFP4_GGUF": (64, 36), "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110),
}  # fmt: skip
# Codes whose scales are separate tensors (see encoding.py): without these tensors.
CODES: Mapping[str, tuple[int, int]] = {
    "INT8": (1, 1), "INT4": (2, 1), "W4A8": (2, 1), "W6A8": (4, 3), "AWQ4": (2, 1),
    "SVDQ_INT4": (2, 1), "SVDQ_FP4": (2, 1),
    "NF4": (2, 1), "FP4": (2, 1), "NVFP4": (2, 1), "MXFP8": (1, 1),
}  # fmt: skip
BLOCK: Mapping[str, tuple[int, int]] = {**SAFETENSORS, **GGML, **CODES}


def nbytes_of(format: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor with this format and shape. ValueError if a row is not a whole number of blocks."""
    values, nbytes = BLOCK[format]
    if values > 1 and (not shape or shape[-1] % values):
        raise ValueError(f"rows of {shape[-1] if shape else 1} values do not divide into blocks of {values}")
    return prod(shape) // values * nbytes
