"""Numbers that any machine can make again: they follow from a name."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn


def seeded_tensor(name: str, shape: Sequence[int]) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def seeded_weight(name: str, shape: Sequence[int]) -> Tensor:
    """Matrices of variance 1 / fan-in, norm weights about one, small biases."""
    numbers = seeded_tensor(name, shape)
    if len(shape) > 1:
        return numbers * numbers[0].numel() ** -0.5
    return 0.1 * numbers if name.endswith("bias") else 1 + 0.1 * numbers


def fill_module(module: nn.Module) -> nn.Module:
    module.load_state_dict({name: seeded_weight(name, value.shape) for name, value in module.state_dict().items()})
    return module.eval()


@pytest.fixture
def seeded() -> Callable[[str, Sequence[int]], Tensor]:
    """seeded("any name", shape): standard normal numbers that follow from the name."""
    return seeded_tensor


@pytest.fixture
def fill() -> Callable[[nn.Module], nn.Module]:
    """fill(module): the module, with weights that follow from its keys."""
    return fill_module


def _axes_reversed(x: Tensor) -> Tensor:
    back = tuple(reversed(range(x.ndim)))
    return x.permute(back).contiguous().permute(back)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 2 else x


def _part_of_something_wider(x: Tensor) -> Tensor:
    return torch.stack((x, x + 1), dim=-1)[..., 0]


def _other_strides_where_the_length_is_one(x: Tensor) -> Tensor:
    strides = [7 if length == 1 else stride for length, stride in zip(x.shape, x.contiguous().stride(), strict=True)]
    return x.contiguous().as_strided(x.shape, strides)


_LAYOUTS = (_axes_reversed, _channels_last, _part_of_something_wider, _other_strides_where_the_length_is_one)


@pytest.fixture(params=_LAYOUTS, ids=lambda layout: layout.__name__.strip("_"))
def layout(request) -> Callable[[Tensor], Tensor]:
    """layout(x): the same numbers in memory of another order."""

    def change(x: Tensor) -> Tensor:
        changed = request.param(x)
        assert torch.equal(changed, x)
        return changed

    return change
