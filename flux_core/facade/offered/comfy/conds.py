"""comfy.conds: parts of a conditioning that a sampler's function can join into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

import torch
from torch import Tensor

from .utils import repeat_to_batch_size

__all__ = ["CONDConstant", "CONDCrossAttn", "CONDList", "CONDNoiseShape", "CONDRegular"]


class CONDRegular:
    """A tensor [B, ...] of one shape."""

    def __init__(self, cond: Any) -> None:
        self.cond = cond

    def _copy_with(self, cond: Any) -> Any:
        return type(self)(cond)

    def process_cond(self, batch_size: int, device: Any, **kwargs: Any) -> Any:
        """The same for a batch: repeated, on the device."""
        return self._copy_with(repeat_to_batch_size(self.cond, batch_size).to(device))

    def can_concat(self, other: Any) -> bool:
        return bool(self.cond.shape == other.cond.shape)

    def concat(self, others: Sequence[Any]) -> Any:
        return torch.cat([self.cond, *(other.cond for other in others)])

    def size(self) -> list[int]:
        return list(self.cond.size())


class CONDNoiseShape(CONDRegular):
    """A tensor with the height and width of the latent, of which `area` (h, w, y, x) is used."""

    def process_cond(self, batch_size: int, device: Any, area: Sequence[int] | None = None, **kwargs: Any) -> Any:
        data: Tensor = self.cond
        if area is not None:
            half = len(area) // 2
            for axis, (size, start) in enumerate(zip(area[:half], area[half:], strict=True)):
                data = data.narrow(axis + 2, start, size)
        return self._copy_with(repeat_to_batch_size(data, batch_size).to(device))


class CONDCrossAttn(CONDRegular):
    """Text tokens [B, L, D]. Texts of other lengths are repeated to a common one, which changes no attention."""

    def can_concat(self, other: Any) -> bool:
        if self.cond.shape == other.cond.shape:
            return True
        if self.cond.shape[0] != other.cond.shape[0] or self.cond.shape[2] != other.cond.shape[2]:
            return False
        mine, its = int(self.cond.shape[1]), int(other.cond.shape[1])
        return lcm(mine, its) // min(mine, its) <= 4

    def concat(self, others: Sequence[Any]) -> Any:
        every = [self.cond, *(other.cond for other in others)]
        length = lcm(*(one.shape[1] for one in every))
        return torch.cat([one.repeat(1, length // one.shape[1], 1) for one in every])


class CONDConstant(CONDRegular):
    """A value that is the same for all items of a batch."""

    def process_cond(self, batch_size: int, device: Any, **kwargs: Any) -> Any:
        return self._copy_with(self.cond)

    def can_concat(self, other: Any) -> bool:
        return bool(self.cond == other.cond)

    def concat(self, others: Sequence[Any]) -> Any:
        return self.cond

    def size(self) -> list[int]:
        return [1]


class CONDList(CONDRegular):
    """Several tensors."""

    def process_cond(self, batch_size: int, device: Any, **kwargs: Any) -> Any:
        return self._copy_with([repeat_to_batch_size(one, batch_size).to(device) for one in self.cond])

    def can_concat(self, other: Any) -> bool:
        return [one.shape for one in self.cond] == [one.shape for one in other.cond]

    def concat(self, others: Sequence[Any]) -> Any:
        return [torch.cat(same) for same in zip(self.cond, *(other.cond for other in others), strict=True)]

    def size(self) -> list[int]:
        """As of one long tensor with as many numbers."""
        first = self.cond[0]
        return [first.shape[0], 1, sum(one.numel() for one in self.cond) // first.shape[0]]
