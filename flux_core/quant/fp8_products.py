"""Products of an fp8 matrix with many vectors on a CPU: some rows are decoded and multiplied at a time, by each core.

The rows stay in the core's second-level cache between the two, so that the decoded matrix is neither written to memory
nor read from it: 7 % more time than the product of a decoded matrix, and 11 to 19 % if the whole matrix is decoded
first. Only with the compiled decoder, because look-ups spoil the cache with their tables.

A result has the bits of the whole product. That is not promised by PyTorch's library for matrices, so the first product
of each kind is computed both ways and compared; a kind that differs is computed whole from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..processor.c_functions import Decoder, decoder
from ..processor.threads import run_parts, thread_count
from .workspace import matrix_scratch

log = logging.getLogger(__name__)

Kind = tuple[object, ...]  # what decides how PyTorch's library computes a product

FEWEST_VECTORS = 64  # below it the product is limited by reading the matrix, and is computed whole
LARGE = 1 << 22  # codes of a matrix
ROWS = 256  # decoded at a time: 1.5 MiB of 3072 columns of two bytes


class Fp8Products:
    """Products x W^T + bias in pieces, for the kinds of which the first gave the bits of the whole product."""

    def __init__(self) -> None:
        self._same: dict[Kind, bool] = {}

    def kind(self, x: Tensor, shape: Sequence[int], bias: Tensor | None) -> Kind | None:
        """The kind of a product of x [n, in] with a matrix [out, in]; None if it is not computed so here."""
        if x.device.type != "cpu" or len(x) < FEWEST_VECTORS or prod(shape) < LARGE or decoder(x.dtype) is None:
            return None
        kind = x.dtype, *x.shape, *shape, bias is None, torch.get_num_threads()
        return kind if self._same.get(kind, True) else None

    def multiply(self, kind: Kind, x: Tensor, codes: Tensor, scale: float | None, bias: Tensor | None) -> Tensor:
        """x [n, in] -> [n, out] in x's type. codes: uint8 [out, in]. scale: of the whole matrix. kind: from `kind`."""
        decode = decoder(x.dtype)
        assert decode is not None, "kind() is None then"
        made = in_pieces(x, codes, scale, bias, decode)
        if kind not in self._same:
            whole = matrix_scratch(tuple(codes.shape), x.dtype, x.device)
            _decode(codes, whole, scale, decode)
            right = F.linear(x, whole, bias)
            self._same[kind] = torch.equal(made.view(torch.uint8), right.view(torch.uint8))
            if not self._same[kind]:
                log.info("Products of fp8 in pieces differ from whole ones for %s and are not used.", kind)
                return right
        return made


def in_pieces(x: Tensor, codes: Tensor, scale: float | None, bias: Tensor | None, decode: Decoder) -> Tensor:
    """As `Fp8Products.multiply`. Each thread takes the next rows until there are none left.

    The decoded rows are in the scratch that a whole matrix would take, so that the plan of the memory holds.
    """
    (count, columns), threads = codes.shape, thread_count(codes.numel())
    size = min(ROWS, count // threads)
    out = torch.empty(len(x), count, dtype=x.dtype)
    pieces = iter([slice(start, min(start + size, count)) for start in range(0, count, size)])

    def work(rows: Tensor) -> None:
        with torch.inference_mode():
            for piece in pieces:
                weight = rows[: piece.stop - piece.start]
                _decode(codes[piece], weight, scale, decode)
                if bias is None:
                    torch.mm(x, weight.t(), out=out[:, piece])
                else:
                    torch.addmm(bias[piece], x, weight.t(), out=out[:, piece])

    run_parts(work, [(rows,) for rows in matrix_scratch((threads, size, columns), x.dtype, x.device)])
    return out


def _decode(codes: Tensor, values: Tensor, scale: float | None, decode: Decoder) -> None:
    """As `formats.decode_into`: the scale multiplies rounded values."""
    decode(codes.view(-1), values.view(-1))
    if scale is not None:
        values.mul_(scale)


PRODUCTS = Fp8Products()
