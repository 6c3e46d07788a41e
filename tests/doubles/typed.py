"""Functions that narrow types in tests: a value is not None, or has a certain class."""

from __future__ import annotations

from typing import TypeVar

from sluice.flux_core.models.linear import Linear
from torch import Tensor, nn

Value = TypeVar("Value")


def present(value: Value | None) -> Value:
    assert value is not None
    return value


def tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def linear_at(model: nn.Module, name: str) -> Linear:
    """The linear layer of this name."""
    layer = model.get_submodule(name)
    assert isinstance(layer, Linear)
    return layer


def matrix_of(layer: Linear) -> Tensor:
    """The matrix that a layer owns itself."""
    return present(layer.weight)
