"""Tensor parallelism by held weights: each device holds some rows of a matrix; the held weight returns the product.

A product needs no other device's rows: each computes its own columns of the result, which are then gathered. Every
number is the same sum as on one device. So the model, its side branches and its stored format stay as they are, and
each device reads, keeps and streams its own part of the file only.

Only rows are cut, because a row of nearly any format is a run of bytes. Matrices whose rows are not (AWQ, bitsandbytes)
stay whole on each device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.stored import Range, Stored
from ..models.linear import HeldWeight, Linear
from ..quant.encoding import Encoding, Part
from ..quant.held import DenseProducts
from .split import Span, spans
from .wire import Wire

CUT = re.compile(
    r"(controlnets\.[^.]+\.)?(double|single)_blocks\."  # of a ControlNet too
    r"|encoder\.block\.|text_model\.encoder\.layers\."  # T5's and CLIP's
)
TILED = ("NVFP4", "MXFP8")  # their scales lie in tiles of TILE rows
TILE = 128
WHOLE = (
    "_mod.lin.", ".modulation.lin.",  # read once a run, for one vector a step
    ".relative_attention_bias.",  # a table
)  # fmt: skip


class ShardedWeight:
    """A matrix [out, in] of which this device holds the rows of one of `rows`; the others hold the rest."""

    def __init__(self, own: HeldWeight, rows: tuple[Span, ...], wire: Wire) -> None:
        self.own, self.rows, self.wire = own, rows, wire

    @property
    def _mine(self) -> slice:
        return slice(*self.rows[self.wire.rank])

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        mine = self.own.multiply(x, None if bias is None else bias[self._mine])  # [n, own rows]
        return torch.cat(self.wire.gather(mine, [(len(x), end - start) for start, end in self.rows]), dim=1)

    def multiply_transposed(self, grad: Tensor) -> Tensor:
        return self.wire.reduce(self.own.multiply_transposed(grad[:, self._mine].contiguous()))

    @contextmanager
    def dense(self, dtype: torch.dtype) -> Iterator[Tensor]:
        with self.own.dense(dtype) as mine:
            shapes = [(end - start, mine.shape[1]) for start, end in self.rows]
            whole = torch.cat(self.wire.gather(mine, shapes))
        yield whole

    @contextmanager
    def fetched(self, dtype: torch.dtype) -> Iterator[HeldWeight]:
        with self.own.fetched(dtype) as own:
            yield ShardedWeight(own, self.rows, self.wire)


class OwnRows(DenseProducts):
    """Rows that are in memory as numbers."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def dense(self, dtype: torch.dtype) -> AbstractContextManager[Tensor]:
        return nullcontext(self.weight.to(dtype))

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), bias)


@dataclass(frozen=True)
class WeightSharing:
    """Cuts the matrices of the blocks of a transformer or text encoder for one device of a tensor group."""

    wire: Wire

    def tensors(self, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
        """The same, with this device's rows of what is cut. Reads nothing."""
        rows = self.rows(tensors)
        return {
            name: cut_rows(stored, rows[name][self.wire.rank]) or stored if name in rows else stored
            for name, stored in tensors.items()
        }

    def rows(self, tensors: Mapping[str, Stored]) -> dict[str, tuple[Span, ...]]:
        """The rows of each device, of what is cut."""
        found = {}
        for name, stored in tensors.items():
            if not CUT.match(name) or not name.endswith(".weight") or any(part in name for part in WHOLE):
                continue
            cut = row_spans(stored.shape[0], self.wire.size) if len(stored.shape) == 2 else ()
            if cut and all(end > start and cut_rows(stored, (start, end)) is not None for start, end in cut):
                found[name] = cut
        return found

    def narrow(self, module: nn.Module, tensors: Mapping[str, Stored]) -> None:
        """Before a module on the meta device is filled from `self.tensors`: its matrices get the shapes of these."""
        for name, rows in self.rows(tensors).items():
            linear = _linear(module, name)
            start, end = rows[self.wire.rank]
            linear.out_features = end - start
            linear.weight = nn.Parameter(torch.empty(end - start, linear.in_features, device="meta"), False)

    def wrap(self, module: nn.Module, tensors: Mapping[str, Stored]) -> None:
        """After that: each product is made of the parts of all devices."""
        for name, rows in self.rows(tensors).items():
            linear = _linear(module, name)
            own: HeldWeight = linear.held if linear.held is not None else OwnRows(linear.own_weight.detach())
            linear.weight, linear.out_features = None, rows[-1][1]
            linear.held = ShardedWeight(own, rows, self.wire)


def row_spans(rows: int, size: int) -> tuple[Span, ...]:
    """The rows of each device, in whole tiles where there are enough of them."""
    unit = TILE if rows % TILE == 0 and rows // TILE >= size else 1
    return tuple((start * unit, end * unit) for start, end in spans(rows // unit, size))


def _linear(module: nn.Module, name: str) -> Linear:
    linear = module.get_submodule(name.rpartition(".")[0])
    assert isinstance(linear, Linear), name
    return linear


def cut_rows(stored: Stored, rows: Span) -> Stored | None:
    """Some rows of a stored matrix, without reading; None if they are not contiguous in its bytes."""
    start, end = rows
    encoding = stored.encoding
    parts = encoding.parts or (Part(stored.shape[0], stored.nbytes, encoding),)
    ranges: list[Range] = []
    kept: list[Part] = []
    row = offset = 0
    for part in parts:
        first, last = max(start, row) - row, min(end, row + part.rows) - row
        if first < last:
            cut = _cut_part(stored, part, offset, first, last)
            if cut is None:
                return None
            ranges += cut[0]
            kept.append(cut[1])
        row, offset = row + part.rows, offset + part.nbytes
    shape = (end - start, *stored.shape[1:])
    encoding = replace(encoding, parts=tuple(kept)) if encoding.parts else kept[0].encoding
    return replace(stored, shape=shape, ranges=tuple(ranges), encoding=encoding)


def _cut_part(stored: Stored, part: Part, offset: int, first: int, last: int) -> tuple[list[Range], Part] | None:
    """Rows [first, last) of a part whose raw bytes begin at `offset`: their ranges in the file, and what they are."""
    encoding = part.encoding
    if encoding.parts or encoding.swapped:
        return None
    if encoding.format in TILED and (first % TILE or (last % TILE and last != part.rows)):
        return None
    codes = encoding.codes_end if encoding.codes_end is not None else part.nbytes
    each, rest = divmod(codes, part.rows)
    if rest or Encoding(encoding.format).nbytes((1, *stored.shape[1:])) != each:
        return None
    wanted = [(offset + first * each, (last - first) * each)]
    sides, end = [], (last - first) * each
    for side in encoding.sides:
        shape, at, nbytes = side.shape, side.start, side.nbytes
        if prod(side.shape) != 1:
            if not side.shape or side.shape[0] != part.rows or nbytes % part.rows:
                return None  # one number for a block of several rows
            row = nbytes // part.rows
            shape, at, nbytes = (last - first, *side.shape[1:]), side.start + first * row, (last - first) * row
        wanted.append((offset + at, nbytes))
        sides.append(replace(side, shape=shape, start=end))
        end += nbytes
    ranges = [piece for begin, nbytes in wanted for piece in _in_file(stored.ranges, begin, nbytes)]
    return ranges, Part(last - first, end, replace(encoding, sides=tuple(sides)))


def _in_file(ranges: tuple[Range, ...], begin: int, nbytes: int) -> Iterator[Range]:
    """The ranges of a file that hold bytes [begin, begin + nbytes) of all ranges laid end to end."""
    for start, length in ranges:
        if nbytes <= 0:
            return
        if begin < length:
            taken = min(length - begin, nbytes)
            yield start + begin, taken
            nbytes -= taken
            begin = 0
        else:
            begin -= length
