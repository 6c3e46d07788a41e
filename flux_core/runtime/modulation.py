"""The modulation table: all adaLN outputs of a run, computed once.

A quarter of FLUX.1's weights turn one vector per step into shifts, scales and gates. The vector depends on the noise
level, the guidance and the pooled text, which are known before the first step: so each matrix is fetched once,
multiplied with the vectors of all steps one after the other, and not needed again. What is kept is 2 MB a step.

One vector at a time, as the plain path has it: the same product gives the same bits. Knows no device and no budget.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..memory.workload import MiB
from ..models.flux import Flux
from ..models.flux_blocks import DoubleStreamBlock, FinalLayer, SingleStreamBlock
from ..models.linear import Linear

Rows = tuple[Tensor, ...]  # what Flux.modulations returns
KEPT_BYTES = 192 * MiB  # of rows of earlier runs: four prompts of 20 steps; those used longest ago go first


class ModulationTable:
    """Rows by whatever names them completely: noise level, guidance, pooled text, batch, number type."""

    def __init__(self) -> None:
        self._rows: OrderedDict[Hashable, Rows] = OrderedDict()
        self.expected: frozenset[Hashable] = frozenset()  # what the run under way will ask for, and so stays

    def missing(self, keys: Sequence[Hashable]) -> list[Hashable]:
        return [key for key in dict.fromkeys(keys) if key not in self._rows]

    def fill(self, flux: Flux, vectors: dict[Hashable, Tensor]) -> None:
        """Compute rows for these vectors [B, D], fetching each matrix once."""
        for key, rows in zip(vectors, modulations(flux, list(vectors.values())), strict=True):
            self._rows[key] = rows
        too_many = self.nbytes - KEPT_BYTES
        for key in [key for key in self._rows if key not in self.expected and key not in vectors]:
            if too_many > 0:
                too_many -= _nbytes(self._rows.pop(key))

    def __getitem__(self, key: Hashable) -> Rows:
        self._rows.move_to_end(key)
        return self._rows[key]

    def clear(self) -> None:
        self._rows.clear()

    @property
    def nbytes(self) -> int:
        return sum(map(_nbytes, self._rows.values()))


def modulations(flux: Flux, vectors: Sequence[Tensor]) -> list[Rows]:
    """`flux.modulations(vec)` for each vec [B, D], bit for bit, with one use of every matrix."""
    active = [F.silu(vec) for vec in vectors]
    by_part = [[torch.cat(rows, dim=1) for rows in zip(*_outputs(part, active), strict=True)] for part in _parts(flux)]
    return [tuple(rows) for rows in zip(*by_part, strict=True)]


def with_branches(flux: Flux, rows: Rows, vec: Tensor) -> Rows:
    """`flux.modulations(vec)`, bit for bit, from the rows of the same model without its side branches.

    So another LoRA, or another strength, fetches no matrix. Only for branches: reweighings depend on the matrix.
    """
    active = F.silu(vec)
    return tuple(_adapted(part, row, active) for part, row in zip(_parts(flux), rows, strict=True))


def _adapted(part: DoubleStreamBlock | SingleStreamBlock | FinalLayer, row: Tensor, active: Tensor) -> Tensor:
    linears = [linear for linear, _ in _modulators(part)]
    if not any(linear.branches for linear in linears):
        return row
    counts = [linear.out_features // row.shape[-1] for linear in linears]
    made = [
        linear.add_branches(rows.flatten(1), active).unflatten(1, (count, -1))
        for linear, rows, count in zip(linears, row.clone().split(counts, dim=1), counts, strict=True)
    ]
    return torch.cat(made, dim=1)


def modulation_linears(flux: Flux) -> dict[str, Linear]:
    """The adaLN layers by name, in the order `modulations` uses them."""
    names = {module: name for name, module in flux.named_modules() if isinstance(module, Linear)}
    return {names[linear]: linear for linear in modulators(flux)}


def modulators(flux: Flux) -> Iterator[Linear]:
    """The adaLN layers in the order `modulations` uses them."""
    return (linear for part in _parts(flux) for linear, _ in _modulators(part))


def _parts(flux: Flux) -> Iterator[DoubleStreamBlock | SingleStreamBlock | FinalLayer]:
    for block in flux.blocks():
        assert isinstance(block, (DoubleStreamBlock, SingleStreamBlock))
        yield block
    yield flux.final_layer


def _modulators(
    part: DoubleStreamBlock | SingleStreamBlock | FinalLayer,
) -> list[tuple[Linear, Callable[[Tensor], Tensor]]]:
    """(the matrix, the function that uses it) in the order in which `part.modulate` joins their outputs."""
    if isinstance(part, DoubleStreamBlock):
        return [(part.img_mod.lin, part.img_mod), (part.txt_mod.lin, part.txt_mod)]
    if isinstance(part, SingleStreamBlock):
        return [(part.modulation.lin, part.modulation)]
    return [(part.adaLN_modulation[1], part.modulate)]  # type: ignore[list-item]


def _outputs(
    part: DoubleStreamBlock | SingleStreamBlock | FinalLayer, active: Sequence[Tensor]
) -> Iterator[list[Tensor]]:
    for linear, modulate in _modulators(part):
        with kept(linear, active[0].dtype):
            yield [modulate(one) for one in active]


@contextmanager
def kept(linear: Linear, dtype: torch.dtype) -> Iterator[None]:
    """Take a matrix once for several products."""
    held = linear.held
    if held is None:
        yield
        return
    linear.held = _Kept(held.take(dtype))
    try:
        yield
    finally:
        linear.held = held
        held.give_back()


def _nbytes(rows: Rows) -> int:
    return sum(row.nbytes for row in rows)


class _Kept:
    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def take(self, dtype: torch.dtype) -> Tensor:
        return self.matrix

    def give_back(self) -> None:
        pass
