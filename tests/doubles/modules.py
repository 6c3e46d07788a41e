"""Parts of a network by their names, with their types."""

from __future__ import annotations

from sluice.flux_core.models.linear import Linear
from torch import Tensor, nn


def linear_at(model: nn.Module, name: str) -> Linear:
    """The linear layer of this name."""
    layer = model.get_submodule(name)
    assert isinstance(layer, Linear)
    return layer


def matrix_of(layer: Linear) -> Tensor:
    """The matrix that a layer owns itself."""
    assert layer.weight is not None
    return layer.weight
