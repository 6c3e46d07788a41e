"""Products in 8-bit integers (W8A8): inputs and weights are codes of -127 to 127 with a scale for each row.

    peak[m]   = max |x[m, :]|                      inputs, at every product, for each token m
    X[m, k]   = round(x[m, k] * (127 / peak[m]))   to nearest, ties to even; s_x[m] = peak[m] / 127
    S[m, n]   = sum over k of X[m, k] W[n, k]      exact: |S| <= 127^2 K, which int32 holds up to K = 133,152
    y[m, n]   = S s_x[m] s_w[n] + b[n]             in float32, rounded once to the type of x

If the columns of W were rotated (rotation.py), those of x are rotated before they are quantised. W is stored in the
form in which it is multiplied, so nothing is decoded. If a value in a row of x is not finite, the whole row of y is not
finite.

The sums come from `torch._int_mm`. The passes before and after it are limited by memory bandwidth: `TorchPasses` uses
few operations on chunks that stay in a cache; `int8_cuda.py` has a kernel for each of the two. Source: LLM.int8()
(arXiv 2208.07339) for scales by row; ConvRot (arXiv 2512.03673) for the rotation.

Independent of: files, where bytes are kept, whether integers are faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .encoding import LEVELS, MULTIPLE, Encoding
from .rotation import root, rotate
from .sides import codes_of, needed
from .workspace import chunk_values, scratch

SMALLEST = 1e-30  # the peak of a row of zeros: its codes are 0 for any divisor
FEWEST_ROWS = 17  # rows of x: CUDA's product requires as many, and with fewer the time is that of reading W
ALIGNED = 16  # bytes: cuBLAS refuses 8-bit integers at other addresses than multiples of 4, and is slow at others of 16
SUMS = 1 << 22  # int32 numbers allocated at a time


@dataclass(frozen=True)
class Operand:
    """The right side of a product, or some rows of it: codes int8 [N, K] and scales float32 [N]."""

    codes: Tensor
    scales: Tensor
    rotation: int = 0


class Passes(Protocol):
    """The processing of inputs before the integer product, and of sums after it."""

    name: str

    def quantise(self, x: Tensor, rotation: int) -> tuple[Tensor, Tensor]:
        """x [M, K] -> codes int8 [M, K] and scales float32 [M]; x is first rotated in groups of `rotation` columns."""
        ...

    def finish(self, sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out [M, N], possibly strided = sums int32 [M, N] * rows [M] * columns [N] + bias [N], in float32."""
        ...


class TorchPasses:
    """The two passes as PyTorch operations."""

    name = "PyTorch"

    def quantise(self, x: Tensor, rotation: int) -> tuple[Tensor, Tensor]:
        codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
        scales = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        # as tensors, because PyTorch turns quotients with a Python number into products, which round differently
        levels = scales.new_full((), LEVELS)
        divisor = levels * root(rotation) if rotation else levels
        count = max(1, chunk_values(x.device) // x.shape[1])
        for start in range(0, x.shape[0], count):
            rows = slice(start, start + count)
            floats = scratch("rows", tuple(x[rows].shape), torch.float32, x.device)
            floats.copy_(x[rows])
            if rotation:
                rotate(floats, rotation)
            magnitudes = torch.abs(floats, out=scratch("magnitudes", tuple(floats.shape), torch.float32, x.device))
            peaks = magnitudes.amax(1).clamp_(min=SMALLEST)
            codes[rows].copy_(floats.mul_((levels / peaks)[:, None]).round_())
            scales[rows] = peaks / divisor
        return codes, scales

    def finish(self, sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor) -> None:
        finished = finished_by_type if sums.device.type == "cpu" else finished_at_once
        count = max(1, chunk_values(sums.device) // sums.shape[1])
        for start in range(0, sums.shape[0], count):
            part = slice(start, start + count)
            floats = scratch("sums as floats", tuple(sums[part].shape), torch.float32, sums.device)
            finished(sums[part], rows[part, None], columns, bias, floats, out[part])


def finished_at_once(
    sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, floats: Tensor, out: Tensor
) -> None:
    """`Passes.finish` in two operations. rows [M, 1]. floats: memory for float32 [M, N]."""
    torch.mul(sums, rows, out=floats)
    _scaled(floats, columns, bias, out)


def finished_by_type(
    sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, floats: Tensor, out: Tensor
) -> None:
    """The same numbers by operations on one type each: a CPU converts the operands of others in new memory, which takes
    three times as long, and fifteen times where the pages of freed memory are returned, as under a RAM budget.
    """
    floats.copy_(sums).mul_(rows)
    _scaled(floats, columns, bias, floats)
    out.copy_(floats)


def _scaled(floats: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mul(floats, columns, out=out)
    else:
        torch.addcmul(bias, floats, columns, out=out)


class Integers:
    """Integer products on one device.

    quantises: also matrices in other formats are converted to integers when they are loaded.
    """

    def __init__(self, passes: Passes | None = None, quantises: bool = False) -> None:
        self.passes, self.quantises = passes or TorchPasses(), quantises

    @property
    def name(self) -> str:
        return f"int8 products ({self.passes.name})"

    def quantising(self) -> Integers:
        """The same for matrices that are converted when they are loaded."""
        return Integers(self.passes, quantises=True)

    def multiply(self, x: Tensor, operands: Sequence[Operand], bias: Tensor | None) -> Tensor:
        """x [M, K] times the operands, which are stacked by rows -> [M, N] in x's type. bias [N]."""
        out = x.new_empty(x.shape[0], sum(operand.codes.shape[0] for operand in operands))
        bias = None if bias is None else bias.float()
        quantised: dict[int, tuple[Tensor, Tensor]] = {}
        begin = 0
        for operand in operands:
            if operand.rotation not in quantised:
                quantised[operand.rotation] = self.passes.quantise(x, operand.rotation)
            end = begin + operand.codes.shape[0]
            part = None if bias is None else bias[begin:end]
            self._product(*quantised[operand.rotation], operand, part, out[:, begin:end])
            begin = end
        return out

    def _product(self, codes: Tensor, scales: Tensor, operand: Operand, bias: Tensor | None, out: Tensor) -> None:
        """Computes some columns of the result at a time, so that their sums take little memory."""
        width = max(MULTIPLE, SUMS // len(codes) // MULTIPLE * MULTIPLE)
        for start in range(0, out.shape[1], width):
            columns = slice(start, start + width)
            weight = operand.codes[columns]
            sums = scratch("sums", (len(codes), len(weight)), torch.int32, codes.device)
            torch._int_mm(codes, weight.t(), out=sums)
            part = None if bias is None else bias[columns]
            self.passes.finish(sums, scales, operand.scales[columns], part, out[:, columns])


def operands_of(raw: Tensor, encoding: Encoding, shape: Sequence[int]) -> list[Operand]:
    """The operands in the stored bytes of a matrix [N, K]; views of them. `multiplied_as_integers` must hold."""
    if not encoding.parts:
        codes = _aligned(codes_of(raw, encoding)).view(torch.int8).view(tuple(shape))
        scales = needed(raw, encoding, "scale").reshape(-1).expand(shape[0])
        return [Operand(codes, scales, encoding.rotation)]
    operands, byte = [], 0
    for part in encoding.parts:
        operands += operands_of(raw[byte : byte + part.nbytes], part.encoding, (part.rows, shape[1]))
        byte += part.nbytes
    return operands


def _aligned(codes: Tensor) -> Tensor:
    """The codes at an address that cuBLAS accepts. Those of a part of a matrix may lie behind a scale of two bytes."""
    return codes if codes.device.type == "cpu" or codes.data_ptr() % ALIGNED == 0 else codes.clone()
