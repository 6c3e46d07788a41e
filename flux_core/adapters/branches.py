"""Side branches: the part that a LoRA adds to y = W x, while W stays unchanged.

A branch is a small function of the layer's input. LoHa (Hadamard of two low-rank products) is a low-rank product of
rank r^2, LoKr a Kronecker product; only changes that depend on W itself (DoRA) need the matrix.

Independent of: files, names, where W is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Rows = tuple[int, int] | None  # the outputs [start, end) to which a branch is added; None means all


class Product:
    """A branch that is a product with a matrix: it can be added beside W, or to W."""

    rows: Rows

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """float32 [out, in], multiplied by its strength."""
        raise NotImplementedError

    def reweigh(self, weight: Tensor) -> Tensor:
        """W [out, in] -> W with the matrix added, in float32."""
        changed = weight.to(torch.float32, copy=True)
        changed[slice(*self.rows or (0, None))] += self.matrix()
        return changed


@dataclass(frozen=True)
class LowRank(Product):
    """y += B diag(s) A x   (Hu et al. 2021). down A [r, in], up B [out, r], scale s: a number, or one per rank [r].

    widens: x may have more columns than W; then this branch uses all of them.
    """

    down: Tensor
    up: Tensor
    scale: float | Tensor = 1.0
    rows: Rows = None
    widens: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def matrix(self) -> Tensor:
        return (self.up.float() * self.scale) @ self.down.float()

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x[..., : self.down.shape[1]], self.down) * self.scale, self.up)

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        scale = self.scale.to(device, dtype) if isinstance(self.scale, Tensor) else self.scale
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype), scale=scale)

    def times(self, strength: float) -> LowRank:
        return replace(self, scale=self.scale * strength)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.down, self.up


@dataclass(frozen=True)
class Kronecker(Product):
    """y += s (W1 kron W2) x   (LoKr, Yeh et al. 2023). w1 [a, b], w2 [c, d], in = b d, out = a c."""

    w1: Tensor
    w2: Tensor
    scale: float = 1.0
    rows: Rows = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.w1.shape[0] * self.w2.shape[0], self.w1.shape[1] * self.w2.shape[1]

    def matrix(self) -> Tensor:
        return torch.kron(self.w1.float(), self.w2.float()) * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        x = x[..., : self.w1.shape[1] * self.w2.shape[1]]
        grid = x.unflatten(-1, (self.w1.shape[1], self.w2.shape[1]))  # [..., b, d]
        grid = F.linear(grid, self.w2).transpose(-1, -2)  # [..., c, b]
        return F.linear(grid, self.w1).transpose(-1, -2).flatten(-2) * self.scale  # [..., a c]

    def to(self, device: torch.device, dtype: torch.dtype) -> Kronecker:
        return replace(self, w1=self.w1.to(device, dtype), w2=self.w2.to(device, dtype))

    def times(self, strength: float) -> Kronecker:
        return replace(self, scale=self.scale * strength)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.w1, self.w2


@dataclass(frozen=True)
class Dense(Product):
    """y += s D x: a full difference of weights, as some files contain. difference D [out, in]."""

    difference: Tensor
    scale: float = 1.0
    rows: Rows = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.difference.shape[0], self.difference.shape[1]

    def matrix(self) -> Tensor:
        return self.difference.float() * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x[..., : self.difference.shape[1]], self.difference) * self.scale

    def to(self, device: torch.device, dtype: torch.dtype) -> Dense:
        return replace(self, difference=self.difference.to(device, dtype))

    def times(self, strength: float) -> Dense:
        return replace(self, scale=self.scale * strength)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.difference,)


@dataclass(frozen=True)
class Constant:
    """y += s b: a difference of biases. bias [out]."""

    bias: Tensor
    scale: float = 1.0
    rows: Rows = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.bias.shape)

    def __call__(self, x: Tensor) -> Tensor:
        return (self.bias * self.scale).expand(*x.shape[:-1], -1)

    def to(self, device: torch.device, dtype: torch.dtype) -> Constant:
        return replace(self, bias=self.bias.to(device, dtype))

    def times(self, strength: float) -> Constant:
        return replace(self, scale=self.scale * strength)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.bias,)


@dataclass(frozen=True)
class Reweighing:
    """DoRA (Liu et al. 2024): V = (W + delta) * magnitude / norm, W' = W + strength (V - W). Depends on the matrix
    itself.

    magnitude [out, 1]: the norm is that of W's rows, as trained. [1, in]: that of the columns of W + delta.
    """

    delta: LowRank
    magnitude: Tensor
    strength: float = 1.0
    rows: Rows = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.delta.shape

    def reweigh(self, weight: Tensor) -> Tensor:
        """W [out, in] -> W', in float32."""
        whole = weight.float()
        w = whole if self.rows is None else whole[self.rows[0] : self.rows[1]]
        v = w + self.delta.matrix()
        per_row = self.magnitude.shape[0] != 1 or v.shape[0] == 1
        norm = w.norm(dim=1, keepdim=True) if per_row else v.norm(dim=0, keepdim=True)
        v = v * (self.magnitude.float() / (norm + torch.finfo(torch.float32).eps))
        changed: Tensor = w + self.strength * (v - w)
        if self.rows is not None:
            whole = whole.clone() if whole is weight else whole
            whole[self.rows[0] : self.rows[1]] = changed
            changed = whole
        return changed

    def to(self, device: torch.device, dtype: torch.dtype) -> Reweighing:
        return replace(self, delta=self.delta.to(device, dtype), magnitude=self.magnitude.to(device, dtype))

    def times(self, strength: float) -> Reweighing:
        return replace(self, strength=self.strength * strength)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return *self.delta.tensors, self.magnitude


def hadamard(w1a: Tensor, w1b: Tensor, w2a: Tensor, w2b: Tensor, scale: float, rows: Rows) -> LowRank:
    """(w1a w1b) * (w2a w2b), elementwise, as one product of rank r1 r2   (LoHa, Hyeon-Woo et al. 2021)."""
    up = (w1a[:, :, None] * w2a[:, None, :]).flatten(1)  # [out, r1 r2]
    down = (w1b[:, None, :] * w2b[None, :, :]).flatten(0, 1)  # [r1 r2, in]
    return LowRank(down, up, scale, rows)


def merge(branches: list[LowRank]) -> LowRank:
    """Several low-rank branches of the same rows as one, concatenated along the rank: one pair of products."""
    if len(branches) == 1:
        return branches[0]
    scales = [b.scale if isinstance(b.scale, Tensor) else b.down.new_full((len(b.down),), b.scale) for b in branches]
    down, up = torch.cat([b.down for b in branches]), torch.cat([b.up for b in branches], dim=1)
    return LowRank(down, up, torch.cat(scales), branches[0].rows)


Branch = LowRank | Kronecker | Dense | Constant
