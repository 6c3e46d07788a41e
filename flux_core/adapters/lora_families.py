"""The families of LoRA files: how the tensors for one matrix become changes of it.

One function for each family; `changes_of` calls them in turn. LoRA, LoHa, LoKr, DoRA, OFT, BOFT, full differences and
the FLUX.1 control LoRAs are supported, as kohya, diffusers/PEFT, BFL, LyCORIS, OneTrainer and XLabs write them.

Independent of: which matrix a name means (lora_names.py), models, where weights are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .branches import Branch, Constant, Dense, Kronecker, LowRank, Reweighing, hadamard
from .lora_names import Target
from .rotations import BUTTERFLY, COLUMNS, ROWS, Rotation, cayley, cayley_of_triangles, side_of_triangle

Change = Branch | Reweighing | Rotation

# suffixes of the two factors of a plain LoRA: (up, down)
FACTORS = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".up.weight", ".down.weight"),
)
CONTROL = "single_blocks.0.norm.key_norm.scale"  # the mark of BFL's control LoRAs
REFUSED = (".a1.weight", ".a2.weight", ".lora_mid.weight", ".hada_t1", ".lokr_t2")  # GLoRA, convolutions


class Found(NamedTuple):
    """A change, its kind ("matrix", "bias", "diff", "diff_b"), and the tensors from which it was made."""

    kind: str
    change: Change
    names: list[str]


@dataclass(frozen=True)
class Group:
    """The tensors of a file whose names begin with `prefix`, which is the name of `target`."""

    prefix: str
    target: Target
    tensors: Mapping[str, Tensor]  # all tensors of the file

    def has(self, *suffixes: str) -> bool:
        return all(self.prefix + suffix in self.tensors for suffix in suffixes)

    def get(self, suffix: str) -> Tensor:
        return self.tensors[self.prefix + suffix]

    def names(self, *suffixes: str) -> list[str]:
        """The full names of those that exist."""
        return [self.prefix + suffix for suffix in suffixes if self.has(suffix)]

    @property
    def alpha(self) -> float | None:
        return float(self.get(".alpha")) if self.has(".alpha") else None

    def rows_of(self, suffix: str) -> Tensor:
        """A matrix or vector over the outputs, in the order of the model's rows."""
        tensor = self.get(suffix)
        return _swapped(tensor.flatten(1) if tensor.ndim > 1 else tensor, self.target.swap)


def changes_of(group: Group) -> Iterator[Found]:
    """The changes of one target. Raises InputError for tensors that belong to no known family."""
    beside = group.names(".alpha", ".reshape_weight")
    found = list(_low_rank(group)) or [each for family in (_loha, _lokr, _oft) for each in family(group)]
    for kind, change, names in found:
        yield Found(kind, change, [*names, *beside])
    rows = group.target.rows
    if group.has(".lora_B.bias") and found:
        yield Found("bias", Constant(group.get(".lora_B.bias"), 1.0, rows), group.names(".lora_B.bias"))
    if group.has(".diff"):
        yield Found("diff", Dense(group.rows_of(".diff"), 1.0, rows), group.names(".diff"))
    if group.has(".diff_b"):
        yield Found("diff_b", Constant(group.rows_of(".diff_b"), 1.0, rows), group.names(".diff_b"))


def _low_rank(group: Group) -> Iterator[Found]:
    """LoRA: a product of two thin matrices; DoRA if there is a magnitude as well."""
    names = next((each for each in FACTORS if group.has(*each)), None)
    if names is None:
        return
    up, down = names
    factors = group.get(down).flatten(1), group.rows_of(up)
    widens = group.has(".reshape_weight") or (group.prefix == "img_in" and CONTROL in group.tensors)
    scale = 1.0 if group.alpha is None else group.alpha / factors[0].shape[0]
    change: Change = LowRank(*factors, scale, group.target.rows, widens)
    if isinstance(change, LowRank) and group.has(".dora_scale"):
        change = Reweighing(change, group.get(".dora_scale").flatten(1), 1.0, group.target.rows)
    yield Found("matrix", change, group.names(up, down, ".dora_scale"))


def _loha(group: Group) -> Iterator[Found]:
    """A Hadamard product of two low-rank products."""
    names = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
    if group.has(*names):
        w1a, w1b, w2a, w2b = (group.get(name).float() for name in names)
        scale = 1.0 if group.alpha is None else group.alpha / w1b.shape[0]
        w1a, w2a = (_swapped(part, group.target.swap) for part in (w1a, w2a))
        yield Found("matrix", hadamard(w1a, w1b, w2a, w2b, scale, group.target.rows), group.names(*names))


def _lokr(group: Group) -> Iterator[Found]:
    """A Kronecker product of two matrices, each of which may be a low-rank product."""
    factors: list[Tensor] = []
    names: list[str] = []
    rank = None
    for whole in (".lokr_w1", ".lokr_w2"):
        a, b = f"{whole}_a", f"{whole}_b"
        if group.has(whole):
            factors.append(group.get(whole).float())
            names += group.names(whole)
        elif group.has(a, b):
            factors.append(group.get(a).float() @ group.get(b).float())
            names += group.names(a, b)
            rank = group.get(b).shape[0]
    if len(factors) == 2:
        scale = group.alpha / rank if group.alpha is not None and rank else 1.0
        w1, w2 = factors
        change: Change = Kronecker(w1, w2, scale, group.target.rows)
        if group.target.swap:
            change = Dense(_swapped(torch.kron(w1, w2), True), scale, group.target.rows)
        yield Found("matrix", change, names)


def _oft(group: Group) -> Iterator[Found]:
    """Orthogonal blocks: LyCORIS and kohya rotate rows, PEFT and OneTrainer columns. alpha limits Q, per output."""
    if group.has(".oft_R.weight"):
        yield _oft_of_columns(group)
    if group.has(".oft_blocks"):
        yield _oft_of_rows(group)
    alpha, start, number = group.alpha or 0, (group.target.rows or (0, 0))[0], 0
    while group.has(f".oft_blocks.{number}"):  # kohya: one for each of the matrices that FLUX fuses
        blocks = group.get(f".oft_blocks.{number}")
        end = start + blocks.shape[0] * blocks.shape[1]
        turned = Rotation(ROWS, cayley(blocks, alpha * (end - start)), rows=(start, end))
        yield Found("matrix", turned, group.names(f".oft_blocks.{number}"))
        start, number = end, number + 1


def _oft_of_columns(group: Group) -> Found:
    triangles = group.get(".oft_R.weight").float()
    if group.has(".dora_scale") or triangles.ndim != 2 or not side_of_triangle(triangles.shape[1]):
        beside = ", as dora_scale is beside it" if group.has(".dora_scale") else ""
        raise InputError(
            f"{group.prefix}.oft_R.weight {list(triangles.shape)} is no OFT known here{beside}. Leave it out."
        )
    if group.has(".oft_R.scaled_oft"):
        triangles = triangles / triangles.shape[1] ** 0.5
    names = group.names(".oft_R.weight", ".oft_R.scaled_oft")
    return Found("matrix", Rotation(COLUMNS, cayley_of_triangles(triangles), rows=group.target.rows), names)


def _oft_of_rows(group: Group) -> Found:
    blocks = group.get(".oft_blocks")
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise InputError(
            f"{group.prefix}.oft_blocks has the shape {list(blocks.shape)}; an OFT has square blocks. "
            "Fetch the file again, or leave it out."
        )
    rescale = group.get(".rescale").flatten(1) if group.has(".rescale") else None
    kind, count = (BUTTERFLY, 1) if blocks.ndim == 4 else (ROWS, 0)
    outputs = blocks.shape[count] * blocks.shape[-1]
    turned = Rotation(kind, cayley(blocks, (group.alpha or 0) * outputs), rescale, rows=group.target.rows)
    return Found("matrix", turned, group.names(".oft_blocks", ".rescale"))


def _swapped(rows: Tensor, swap: bool) -> Tensor:
    """diffusers stores scale before shift, BFL shift before scale."""
    return torch.cat(rows.chunk(2)[::-1]) if swap else rows
