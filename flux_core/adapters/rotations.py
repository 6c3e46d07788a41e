"""Orthogonal adapters: a matrix is multiplied by blocks of orthogonal matrices, on the side of its rows or its columns.

    OFT     W' = s B^T W, B block-diagonal of k blocks b x b (Qiu et al. 2023); s [out, 1] if the file rescales
    BOFT    W' = s (B_m ... B_1) W, the factors of a butterfly: blocks of rows ever further apart (Liu et al. 2024)
    OFTv2   W' = W B^T: the inputs are rotated (Qiu et al. 2025), as in PEFT and OneTrainer

Files contain the skew-symmetric matrices Q from which the orthogonal ones are computed: B = (I + Q) (I - Q)^-1
(Cayley). The strength interpolates from I to B, which it reaches at 1; ComfyUI applies it twice for OFT.

Independent of: files, names, where W is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .branches import Rows

ROWS, BUTTERFLY, COLUMNS = "rows", "butterfly", "columns"


@dataclass(frozen=True)
class Rotation:
    """blocks [k, b, b] (of a butterfly [m, k, b, b]), orthogonal; rescale [out, 1] or None."""

    kind: str
    blocks: Tensor
    rescale: Tensor | None = None
    strength: float = 1.0
    rows: Rows = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the blocks, for messages: the adapter has only one side of the matrix."""
        return tuple(self.blocks.shape)

    def fits(self, outputs: int, inputs: int) -> bool:
        count, size = self.blocks.shape[-3], self.blocks.shape[-1]
        if self.kind == COLUMNS:
            return count * size == inputs or (count == 1 and inputs % size == 0)
        butterfly = self.kind != BUTTERFLY or outputs % (2 ** (self.blocks.shape[0] - 1) * size) == 0
        return count * size == outputs and butterfly

    def reweigh(self, weight: Tensor) -> Tensor:
        """W [out, in] -> W', in float32."""
        turned = weight.to(torch.float32, copy=True)
        part = turned[slice(*self.rows or (0, None))]
        blocks = torch.lerp(torch.eye(self.blocks.shape[-1], device=weight.device), self.blocks.float(), self.strength)
        part.copy_(_SIDES[self.kind](blocks, part))
        if self.rescale is not None:
            part.mul_(1 + self.strength * (self.rescale.float() - 1))
        return turned

    def to(self, device: torch.device, dtype: torch.dtype) -> Rotation:
        rescale = None if self.rescale is None else self.rescale.to(device, dtype)
        return replace(self, blocks=self.blocks.to(device), rescale=rescale)  # rounded blocks would not be orthogonal

    def times(self, strength: float) -> Rotation:
        return replace(self, strength=self.strength * strength)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.blocks,) if self.rescale is None else (self.blocks, self.rescale)


def _rows(blocks: Tensor, weight: Tensor) -> Tensor:
    grid: Tensor = weight.unflatten(0, blocks.shape[:2])
    return (blocks.transpose(1, 2) @ grid).flatten(0, 1)


def _butterfly(factors: Tensor, weight: Tensor) -> Tensor:
    size = factors.shape[-1]
    for level, blocks in enumerate(factors):
        apart = 2**level * (size // 2)
        pairs = weight.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2)  # rows that are rotated together
        pairs = (blocks @ pairs.unflatten(0, (-1, size))).flatten(0, 1)
        weight = pairs.unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return weight


def _columns(blocks: Tensor, weight: Tensor) -> Tensor:
    grid: Tensor = weight.unflatten(1, (-1, blocks.shape[-1])).transpose(0, 1)  # [blocks, out, b]
    return (grid @ blocks.transpose(1, 2)).transpose(0, 1).flatten(1)


_SIDES = {ROWS: _rows, BUTTERFLY: _butterfly, COLUMNS: _columns}


def cayley(blocks: Tensor, most: float = 0.0) -> Tensor:
    """Orthogonal blocks from what LyCORIS and kohya store: Q = blocks - blocks^T, scaled down to a norm of `most`.

    most: alpha times the number of outputs, 0 for no limit. blocks [..., b, b].
    """
    blocks = blocks.float()
    skew = blocks - blocks.transpose(-1, -2)
    norm = skew.norm() + 1e-8
    if 0 < most < norm:
        skew = skew * (most / norm)
    one = torch.eye(blocks.shape[-1])
    orthogonal: Tensor = torch.linalg.solve(one - skew, one + skew)  # the two factors commute
    return orthogonal


def cayley_of_triangles(upper: Tensor) -> Tensor:
    """Orthogonal blocks from what PEFT and OneTrainer store: the upper triangles of Q, row by row, [k, b (b - 1) / 2].

    As both compute them: the first five terms of the Neumann series, I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4.
    """
    size = side_of_triangle(upper.shape[1])
    above = torch.zeros(upper.shape[0], size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    above[:, rows, columns] = upper.float()
    skew = above - above.transpose(1, 2)
    square = skew @ skew
    return torch.eye(size) + 2 * skew + 2 * square + 2 * square @ skew + square @ square


def side_of_triangle(count: int) -> int:
    """b, if b (b - 1) / 2 = count; 0 if there is no such b."""
    side = int((1 + (1 + 8 * count) ** 0.5) / 2 + 0.5)
    return side if side * (side - 1) // 2 == count else 0
