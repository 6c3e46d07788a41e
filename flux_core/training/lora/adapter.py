"""The LoRA in training: two thin float32 matrices for each chosen layer, and copies with which the model computes.

    y = W x + alpha / rank * B A x      A `down` [rank, in], random; B `up` [out, rank], zero: at first without effect

(Hu et al. 2021.) There is one pair for each matrix of FLUX.1's files, with queries, keys and values together. This
takes a quarter of the products that separate pairs take, and a pair can be divided exactly into separate ones
(lora_file.py). Uses no data and no optimiser.
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
MOST_RANK = 1024  # a pair with a larger rank is no smaller than the matrix that it changes


def chosen_layers(flux: Flux, layers: str) -> dict[str, tuple[int, int]]:
    """The layers to train and their shapes [out, in], in the model's order.

    layers: a name of LAYERS, or a text file with a pattern in each line, such as `single_blocks.7.linear2` or
    `double_blocks.*.img_attn.*`. Raises InputError if no layer matches.
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
    """The number of values of a LoRA with this rank on layers of these shapes."""
    return sum(rank * (outputs + inputs) for outputs, inputs in shapes)


class TrainedLora:
    """Pairs by layer. `masters` are trained (float32); `copies` are used in products, in the model's type."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], rank: int, alpha: float, device: torch.device, dtype: torch.dtype,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """The initial values depend on the seed and on each layer's name, not on which other layers there are.

        On the meta device there are none: a plan needs shapes only.
        """
        self.shapes, self.rank, self.alpha = dict(shapes), rank, alpha
        self.names = [f"{path}.{part}" for path in shapes for part in ("down", "up")]
        self.masters: list[Tensor] = []
        for path, (outputs, inputs) in shapes.items():
            if device.type == "meta":
                self.masters.append(torch.empty(rank, inputs, device=device))
            else:
                self.masters.append(_drawn([seed, *path.encode()], rank, inputs).to(device))
            self.masters.append(torch.zeros(outputs, rank, device=device))
        for master in self.masters:
            master.requires_grad_()
        self.copies = [_copy(master, dtype) for master in self.masters]

    @property
    def numbers(self) -> int:
        """How many values are trained."""
        return sum(master.numel() for master in self.masters)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def beside(self, flux: Flux) -> Flux:
        """A copy of the model with the LoRA added to its layers; it follows later changes of the LoRA."""
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
        """Must be called after the masters have changed."""
        for master, copy in zip(self.masters, self.copies, strict=True):
            if copy.data_ptr() != master.data_ptr():
                copy.copy_(master)

    def take_gradients(self, trained: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Set the masters' gradients to those of these copies."""
        by_copy = {id(copy): master for copy, master in zip(self.copies, self.masters, strict=True)}
        for copy, gradient in zip(trained, gradients, strict=True):
            by_copy[id(copy)].grad = gradient.float()

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the masters to tensors with their `names`. Raises InputError for tensors of another LoRA."""
        for name, master in zip(self.names, self.masters, strict=True):
            value = tensors.get(name)
            if value is None or value.shape != master.shape:
                there = "is not in it" if value is None else f"has the shape {list(value.shape)}"
                raise InputError(f"This LoRA cannot be continued: {name}, {list(master.shape)}, {there}.")
            master.copy_(value)
        self.refresh()

    def state(self) -> dict[str, Tensor]:
        return dict(zip(self.names, (master.detach() for master in self.masters), strict=True))


def _drawn(seed: Sequence[int], rank: int, inputs: int) -> Tensor:
    """Even between -1 / sqrt(inputs) and 1 / sqrt(inputs)."""
    numbers = np.random.default_rng(seed).random((rank, inputs), np.float32)
    return torch.from_numpy((2 * numbers - 1) * (1 / math.sqrt(inputs)))


def _copy(master: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in this type; the same memory if the masters have this type."""
    return master.detach().to(dtype).requires_grad_()
