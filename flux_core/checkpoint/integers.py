"""Matrices as 8-bit integers: the encodings and bytes of weights that are quantised while they are loaded.

Independent of: when that is done, where the bytes go.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..quant.encoding import MULTIPLE, multiplied_as_integers
from ..quant.fp8 import FP8, encode_fp8
from ..quant.int8_encode import group_of, int8_encoding, quantise_into
from ..quant.rows import decoded_rows
from .stored import Stored


def as_integers(stored: Stored) -> Stored:
    """The matrix after quantisation; unchanged if it is stored as integers, or does not fit int8 products.

    Its byte ranges do not exist in any file yet.
    """
    if len(stored.shape) != 2 or multiplied_as_integers(stored.encoding, stored.shape):
        return stored
    outputs, inputs = stored.shape
    if outputs % MULTIPLE or inputs % MULTIPLE:
        return stored
    encoding = int8_encoding(stored.shape, group_of(inputs))
    return replace(stored, encoding=encoding, ranges=((0, encoding.nbytes(stored.shape)),), through=None)


def quantised(stored: Stored, raw: Tensor, round_to: torch.dtype | None) -> Tensor:
    """The raw bytes (uint8) of `as_integers(stored)`, computed from the raw bytes of `stored` on their device.

    round_to: the type to which every value is rounded first, or None.
    """
    encoding = as_integers(stored).encoding
    out = torch.empty(encoding.nbytes(stored.shape), dtype=torch.uint8, device=raw.device)
    rows = decoded_rows(raw, stored.encoding, stored.shape)
    quantise_into((chunk if round_to is None else _rounded(chunk, round_to) for chunk in rows), encoding, out)
    return out


def _rounded(values: Tensor, to: torch.dtype) -> Tensor:
    name = next((name for name, dtype in FP8.items() if dtype == to), None)
    return (values.to(to) if name is None else encode_fp8(values, name).view(to)).float()
