"""What a model can be converted to: for each tensor the tensors that are written in its place, and their bytes.

    bf16, fp16, fp32    numbers
    fp8                 e4m3 with one scale per matrix: ComfyUI's `float8_e4m3fn`
    int8                a scale per row: ComfyUI's `int8_tensorwise`, with `convrot` if it is to be rotated
    Q8_0, Q6_K, ...     GGUF

Only matrices inside blocks are quantised, as in published files: vectors, embedders and the last layer are 1 % of the
bytes.

Independent of: files, the order of tensors in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..quant.gguf_encode import ENCODED, FALLBACKS, encode_blocks
from ..quant.int8_encode import group_of, quantise
from ..quant.sizes import BLOCK, nbytes_of
from .rows import Rows

NUMBERS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
ALIGNMENT = 8  # bytes, so that what lies behind a small tensor is where its numbers may be


@dataclass(frozen=True)
class Written:
    """One tensor of the new file, but for its bytes."""

    name: str
    format: str  # as the container calls it
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.format, self.shape)


class Form(Protocol):
    """One way to store a tensor."""

    def outline(self, name: str, shape: tuple[int, ...]) -> list[Written]:
        """The tensors that take the place of one of this name and shape."""
        ...

    def data(self, rows: Rows) -> Iterator[Tensor]:
        """Their bytes (uint8), one after the other, in any pieces."""
        ...


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(torch.uint8).flatten()


@dataclass(frozen=True)
class Plain:
    """Numbers, rounded once."""

    format: str

    def outline(self, name: str, shape: tuple[int, ...]) -> list[Written]:
        return [Written(name, self.format, shape)]

    def data(self, rows: Rows) -> Iterator[Tensor]:
        for chunk in rows:
            yield _bytes(chunk.to(NUMBERS[self.format]))


@dataclass(frozen=True)
class Blocks:
    """GGUF blocks along the rows."""

    format: str

    def outline(self, name: str, shape: tuple[int, ...]) -> list[Written]:
        return [Written(name, self.format, shape)]

    def data(self, rows: Rows) -> Iterator[Tensor]:
        for chunk in rows:
            yield encode_blocks(chunk.reshape(-1, BLOCK[self.format][0]), self.format).flatten()


@dataclass(frozen=True)
class Fp8:
    """w = q s with one s: the largest value becomes the largest number that e4m3 has."""

    def outline(self, name: str, shape: tuple[int, ...]) -> list[Written]:
        scale = Written(_beside(name, "weight_scale"), "F32", ())
        return [Written(name, "F8_E4M3", shape), scale, _said(name, prod(shape) + 4, {"format": "float8_e4m3fn"})]

    def data(self, rows: Rows) -> Iterator[Tensor]:
        largest = max(float(chunk.abs().amax()) for chunk in rows)
        scale = torch.tensor(largest / 448 if largest else 1.0)
        for chunk in rows:
            yield _bytes((chunk / scale).clamp_(-448, 448).to(torch.float8_e4m3fn))
        yield _bytes(scale.view(1))
        yield _padded({"format": "float8_e4m3fn"}, prod(rows.shape) + 4)


@dataclass(frozen=True)
class Int8:
    """w = q s with one s for each row; the columns rotated first in groups, if they divide into groups."""

    rotated: bool

    def _conf(self, columns: int) -> dict[str, object]:
        group = self._group(columns)
        rotation = {"convrot": True, "convrot_groupsize": group} if group else {}
        return {"format": "int8_tensorwise", **rotation}

    def _group(self, columns: int) -> int:
        return group_of(columns) if self.rotated else 0

    def outline(self, name: str, shape: tuple[int, ...]) -> list[Written]:
        scale = Written(_beside(name, "weight_scale"), "F32", (shape[0], 1))
        return [Written(name, "I8", shape), scale, _said(name, prod(shape) + 4 * shape[0], self._conf(shape[1]))]

    def data(self, rows: Rows) -> Iterator[Tensor]:
        group, scales = self._group(rows.shape[1]), []
        for chunk in rows:
            codes, scale = quantise(chunk, group)
            scales.append(scale)
            yield _bytes(codes)
        yield _bytes(torch.cat(scales))
        yield _padded(self._conf(rows.shape[1]), prod(rows.shape) + 4 * rows.shape[0])


def _beside(name: str, suffix: str) -> str:
    return f"{name.removesuffix('.weight')}.{suffix}"


def _said(name: str, before: int, conf: Mapping[str, object]) -> Written:
    return Written(_beside(name, "comfy_quant"), "U8", (len(_padded(conf, before)),))


def _padded(conf: Mapping[str, object], before: int) -> Tensor:
    """JSON as bytes, with spaces behind it so that what follows after `before` bytes and these is aligned."""
    text = json.dumps(conf).encode()
    text += b" " * (-(before + len(text)) % ALIGNMENT)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


@dataclass(frozen=True)
class Target:
    """A format by the name that people give it. `form` is for matrices inside blocks, `rest` for all else (None: as it
    is stored, in 16 bits if it was quantised)."""

    name: str
    container: str  # "safetensors" or "GGUF"
    form: Form
    rest: Form | None = None

    def matrix(self, shape: tuple[int, ...]) -> Form:
        """The form of a matrix inside a block: another one where its rows do not divide into blocks."""
        if isinstance(self.form, Blocks):
            for format in (self.form.format, FALLBACKS.get(self.form.format, "")):
                if format and shape[1] % BLOCK[format][0] == 0:
                    return Blocks(format)
            return Plain("BF16")
        return self.form


def target(name: str, rotated: bool = False) -> Target:
    """bf16, fp16, fp32, fp8, int8, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1 or Q4_0. Raises InputError for another."""
    plain = {"BF16": "BF16", "FP16": "F16", "F16": "F16", "FP32": "F32", "F32": "F32"}
    upper = name.upper().replace("_K_S", "_K").replace("_K_M", "_K").replace("_K_L", "_K")
    if rotated and upper != "INT8":
        raise InputError(f"--rotate belongs to int8; {name} is not rotated.")
    if upper in plain:
        return Target(plain[upper].lower(), "safetensors", Plain(plain[upper]), Plain(plain[upper]))
    if upper in ("FP8", "FP8_E4M3FN", "FP8_SCALED"):
        return Target("fp8", "safetensors", Fp8())
    if upper == "INT8":
        return Target("int8_rotated" if rotated else "int8", "safetensors", Int8(rotated))
    if upper in ENCODED:
        return Target(upper, "GGUF", Blocks(upper))
    raise InputError(
        f"There is no format {name!r} to convert to; choose bf16, fp16, fp32, fp8, int8, {', '.join(ENCODED)}."
    )
