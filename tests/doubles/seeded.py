"""Numbers that any machine can make again: they follow from a name. ComfyUI's were recorded with the same."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
Seeded = Callable[[str, Sequence[int]], Tensor]


def seeded_tensor(name: str, shape: Sequence[int]) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def seeded_weight(name: str, shape: Sequence[int]) -> Tensor:
    """Matrices of variance 1 / fan-in, norm weights about one, small biases."""
    numbers = seeded_tensor(name, shape)
    if len(shape) > 1:
        return numbers * float(numbers[0].numel() ** -0.5)
    return 0.1 * numbers if name.endswith("bias") else 1 + 0.1 * numbers


class Fill(Protocol):
    def __call__(self, module: Module) -> Module: ...


def fill_module(module: Module) -> Module:
    module.load_state_dict({name: seeded_weight(name, value.shape) for name, value in module.state_dict().items()})
    return module.eval()
