"""The LoRA that is trained: two thin matrices beside each chosen layer, in float32, and what computes from them.

    y = W x + alpha / rank * B A x      A `down` [rank, in], random; B `up` [out, rank], zero: so it begins as no change

(Hu et al. 2021.) One pair for each matrix as FLUX.1 stores it, queries, keys and values together: a quarter of the
products of a pair for each, and it can be cut into them without a rest (files.py). Knows no data and no optimiser.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...adapters.branches import LowRank
from ...errors import InputError
from ...models.copies import shallow, with_parts
from ...models.flux import Flux
from ...models.linear import Linear

BLOCKS, ATTENTION, SINGLE, ALL = "blocks", "attention", "single", "all"
LAYERS = {
    BLOCKS: ("double_blocks.*_attn.*", "double_blocks.*_mlp.*", "single_blocks.*.linear?"),
    ATTENTION: ("double_blocks.*_attn.*", "single_blocks.*.linear1"),
    SINGLE: ("single_blocks.*.linear?",),
    ALL: ("double_blocks.*", "single_blocks.*"),  # modulation too
}
MOST_RANK = 1024  # beyond it the pair is no smaller than what it changes


def chosen_layers(flux: Flux, layers: str) -> dict[str, tuple[int, int]]:
    """The layers to train and their shapes [out, in], in the model's order.

    layers: a name of LAYERS, or a text file with a pattern in each line, such as `single_blocks.7.linear2` or
    `double_blocks.*.img_attn.*`. Raises InputError if nothing fits.
    """
    patterns = LAYERS.get(layers) or _patterns_in(layers)
    found = {
        name: (part.out_features, part.in_features)
        for name, part in flux.named_modules()
        if isinstance(part, Linear)
        and name.startswith(("double_blocks.", "single_blocks."))
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not found:
        raise InputError(
            f"No layer of this model fits {', '.join(patterns[:3]) or 'nothing'} (from {layers}). Patterns are such as "
            "single_blocks.7.linear2 or double_blocks.*.img_attn.*; `--layers blocks` trains all of them."
        )
    return found


def _patterns_in(file: str) -> tuple[str, ...]:
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--layers takes {', '.join(LAYERS)} or a text file of patterns, not {file!r}.") from error
    return tuple(line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))


def parameter_count(shapes: Iterable[tuple[int, int]], rank: int) -> int:
    """Numbers in a LoRA of this rank on layers of these shapes."""
    return sum(rank * (outputs + inputs) for outputs, inputs in shapes)


class TrainedLora:
    """Pairs by layer. `masters` are what is learned (float32); `copies` are what computes, in the model's type."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], rank: int, alpha: float, device: torch.device, dtype: torch.dtype,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """The beginning depends on the seed and on each layer's name, not on which other layers there are."""
        self.shapes, self.rank, self.alpha = dict(shapes), rank, alpha
        self.names = [f"{path}.{part}" for path in shapes for part in ("down", "up")]
        self.masters: list[Tensor] = []
        for path, (outputs, inputs) in shapes.items():
            bound = 1 / math.sqrt(inputs)
            numbers = np.random.default_rng([seed, *path.encode()]).random((rank, inputs), np.float32)
            self.masters.append(torch.from_numpy((2 * numbers - 1) * bound).to(device))
            self.masters.append(torch.zeros(outputs, rank, device=device))
        for master in self.masters:
            master.requires_grad_()
        self.copies = [_copy(master, dtype) for master in self.masters]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def beside(self, flux: Flux) -> Flux:
        """A copy of the model with the LoRA beside its layers, as it is now and will be."""
        parts: dict[str, nn.Module] = {}
        pairs = zip(self.copies[::2], self.copies[1::2], strict=True)
        for path, (down, up) in zip(self.shapes, pairs, strict=True):
            linear = flux.get_submodule(path)
            assert isinstance(linear, Linear)
            parts[path] = layer = shallow(linear)
            layer.branches = (*linear.branches, LowRank(down, up, self.scale))
        return with_parts(flux, parts)

    @torch.no_grad()
    def refresh(self) -> None:
        """After the masters have changed."""
        for master, copy in zip(self.masters, self.copies, strict=True):
            if copy.data_ptr() != master.data_ptr():
                copy.copy_(master)

    def take_gradients(self, trained: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Give the masters the gradients that were found for these copies."""
        by_copy = {id(copy): master for copy, master in zip(self.copies, self.masters, strict=True)}
        for copy, gradient in zip(trained, gradients, strict=True):
            by_copy[id(copy)].grad = gradient.float()

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over masters by their `names`. Raises InputError if they are of another LoRA."""
        for name, master in zip(self.names, self.masters, strict=True):
            value = tensors.get(name)
            if value is None or value.shape != master.shape:
                there = "is not in it" if value is None else f"has the shape {list(value.shape)}"
                raise InputError(f"This LoRA cannot be gone on with: {name}, {list(master.shape)}, {there}.")
            master.copy_(value)
        self.refresh()

    def state(self) -> dict[str, Tensor]:
        return dict(zip(self.names, (master.detach() for master in self.masters), strict=True))


def _copy(master: Tensor, dtype: torch.dtype) -> Tensor:
    """In this type; the same memory if it is that of the masters."""
    return master.detach().to(dtype).requires_grad_()
