"""The modulation table: all adaLN outputs of a run, computed once in advance.

A quarter of FLUX.1's weights turn one vector per step into shifts, scales and gates. The vector depends on the noise
level, the guidance and the pooled text, which are known before the first step. So each matrix is fetched once,
multiplied with the vectors of all steps one after the other, and not needed again. The results take 2 MB per step.

The vectors are multiplied one at a time, as in the plain model, so that the same product gives the same bits. Uses no
device and no budget.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..memory.workload import MiB
from ..models.flux_blocks import DoubleStreamBlock, FinalLayer, SingleStreamBlock
from ..models.flux_body import FluxBody
from ..models.linear import Linear

Rows = tuple[Tensor, ...]  # the return value of `modulations` of a transformer or ControlNet
Part = DoubleStreamBlock | SingleStreamBlock | FinalLayer  # a transformer or a ControlNet
KEPT_BYTES = (
    192 * MiB
)  # bytes of rows of earlier runs: four prompts of 20 steps; those used longest ago are dropped first


class ModulationTable:
    """Rows by a key of everything they depend on: noise level, guidance, pooled text, batch, number type."""

    def __init__(self) -> None:
        self._rows: OrderedDict[Hashable, Rows] = OrderedDict()
        self.expected: frozenset[Hashable] = frozenset()  # keys that the current run needs, which are kept

    def missing(self, keys: Sequence[Hashable]) -> list[Hashable]:
        return [key for key in dict.fromkeys(keys) if key not in self._rows]

    def fill(self, flux: FluxBody, vectors: dict[Hashable, Tensor]) -> None:
        """Compute rows for these vectors [B, D], fetching each matrix once."""
        for key, rows in zip(vectors, modulations(flux, list(vectors.values())), strict=True):
            self._rows[key] = rows
        too_many = self.nbytes - KEPT_BYTES
        for key in [key for key in self._rows if key not in self.expected and key not in vectors]:
            if too_many > 0:
                too_many -= _nbytes(self._rows.pop(key))

    def drop_others(self) -> None:
        """Drop all rows that are not expected."""
        self._rows = OrderedDict((key, rows) for key, rows in self._rows.items() if key in self.expected)

    def __getitem__(self, key: Hashable) -> Rows:
        self._rows.move_to_end(key)
        return self._rows[key]

    @property
    def nbytes(self) -> int:
        return sum(map(_nbytes, self._rows.values()))


def modulations(flux: FluxBody, vectors: Sequence[Tensor]) -> list[Rows]:
    """`flux.modulations(vec)` for each vec [B, D], with the same bits, using each matrix once."""
    active = [F.silu(vec) for vec in vectors]
    by_part = [[torch.cat(rows, dim=1) for rows in zip(*_outputs(part, active), strict=True)] for part in _parts(flux)]
    return [tuple(rows) for rows in zip(*by_part, strict=True)]


def rows_like(flux: FluxBody, vec: Tensor) -> Rows:
    """Uninitialised memory in the shape of `flux.modulations(vec)`."""
    counts = [sum(map(_count, modulators_of(part))) for part in _parts(flux)]
    return tuple(vec.new_empty(vec.shape[0], count, vec.shape[1]) for count in counts)


def with_branches(flux: FluxBody, rows: Rows, vec: Tensor) -> Rows:
    """`flux.modulations(vec)` with the same bits, from the rows of the same model without side branches.

    So another LoRA or strength fetches no matrix. Only for additive branches: DoRA and OFT depend on the matrix.
    """
    return branches_on_rows(flux, rows, F.silu(vec))


def branches_on_rows(module: FluxBody | Part, rows: Rows, active: Tensor) -> Rows:
    """The rows of a model, or of one part of it, with the outputs of its side branches added. active: silu(vec) [B,
    D].
    """
    parts = _parts(module) if isinstance(module, FluxBody) else (module,)
    return tuple(_adapted(part, row, active) for part, row in zip(parts, rows, strict=True))


def _adapted(part: Part, row: Tensor, active: Tensor) -> Tensor:
    linears = modulators_of(part)
    if not any(linear.branches for linear in linears):
        return row
    rows = row.clone().split([_count(linear) for linear in linears], dim=1)
    made = [_rows(linear, linear.add_branches(r.flatten(1), active)) for linear, r in zip(linears, rows, strict=True)]
    return torch.cat(made, dim=1)


def modulation_linears(flux: FluxBody) -> dict[str, Linear]:
    """The adaLN layers by name, in the order in which `modulations` uses them."""
    names = {module: name for name, module in flux.named_modules() if isinstance(module, Linear)}
    return {names[linear]: linear for linear in modulators(flux)}


def modulators(flux: FluxBody) -> Iterator[Linear]:
    """The adaLN layers in the order in which `modulations` uses them."""
    return (linear for part in _parts(flux) for linear in modulators_of(part))


def _parts(flux: FluxBody) -> Iterator[Part]:
    for block in flux.blocks():
        assert isinstance(block, (DoubleStreamBlock, SingleStreamBlock))
        yield block
    final = getattr(flux, "final_layer", None)  # a ControlNet has no final layer
    if final is not None:
        yield final


def modulators_of(part: Part) -> tuple[Linear, ...]:
    """The adaLN layers of a part, in the order in which `part.modulate` concatenates their outputs."""
    if isinstance(part, DoubleStreamBlock):
        return part.img_mod.lin, part.txt_mod.lin
    if isinstance(part, SingleStreamBlock):
        return (part.modulation.lin,)
    return (part.adaLN_modulation[1],)  # type: ignore[return-value]


def _outputs(part: Part, active: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    for linear in modulators_of(part):
        with linear.fetched(active[0].dtype) as layer:
            yield [_rows(layer, layer(one)) for one in active]


def _rows(linear: Linear, output: Tensor) -> Tensor:
    """The output of an adaLN layer, [B, count * D], as rows [B, count, D]."""
    rows: Tensor = output.unflatten(-1, (_count(linear), -1))
    return rows


def _count(linear: Linear) -> int:
    return linear.out_features // linear.in_features


def _nbytes(rows: Rows) -> int:
    return sum(row.nbytes for row in rows)
