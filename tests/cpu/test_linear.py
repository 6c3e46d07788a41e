"""The one linear layer: it multiplies in the dtype of its input, from wherever the matrix is lent."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from sluice.flux_core.models.linear import Linear
from torch import Tensor
from torch.testing import assert_close


class Lent:
    """A held matrix that counts its loans."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.calls = matrix, []

    def take(self, dtype: torch.dtype) -> Tensor:
        self.calls.append(("take", dtype))
        return self.matrix.to(dtype)

    def give_back(self) -> None:
        self.calls.append(("give back", None))


@dataclass
class LowRank:
    """A side branch: scale * up (down x), added to some of the outputs."""

    down: Tensor
    up: Tensor
    scale: float
    rows: tuple[int, int] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * x @ self.down.T @ self.up.T


class Doubled:
    def reweigh(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.fixture
def layer(fill) -> Linear:
    return fill(Linear(12, 20))


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_product_is_computed_in_the_inputs_dtype_from_the_values_as_stored(layer, seeded, stored):
    x = seeded("x", (2, 3, 12))
    expected = F.linear(x, layer.weight.to(stored).float(), layer.bias.to(stored).float())
    assert_close(layer.to(stored)(x), expected, rtol=0, atol=0)


def test_a_held_matrix_is_lent_for_one_product_and_given_back(layer, seeded):
    x = seeded("x", (5, 12))
    expected = layer(x)
    layer.held, layer.weight = Lent(layer.weight.detach().half()), None
    assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)
    assert layer.held.calls == [("take", torch.float32), ("give back", None)]


def test_a_held_matrix_is_given_back_when_the_product_fails(layer):
    layer.held = Lent(torch.zeros(20, 11))
    with pytest.raises(RuntimeError):
        layer(torch.zeros(5, 12))
    assert layer.held.calls[-1] == ("give back", None)


@pytest.mark.parametrize("grad", [False, True])
def test_side_branches_equal_a_changed_matrix(layer, seeded, grad):
    x = seeded("x", (2, 3, 12))
    down, up, part = seeded("down", (4, 12)), seeded("up", (20, 4)), seeded("part", (7, 4))
    changed = layer.weight.detach() + 0.5 * up @ down
    changed[3:10] += -2.0 * part @ down
    expected = F.linear(x, changed, layer.bias)
    layer.branches = (LowRank(down, up, 0.5), LowRank(down, part, -2.0, (3, 10)))
    with torch.set_grad_enabled(grad):
        assert_close(layer(x), expected)


def test_side_branches_train_while_the_matrix_rests(layer, seeded):
    layer.requires_grad_(False)
    down, up = (seeded(name, shape).requires_grad_() for name, shape in (("down", (4, 12)), ("up", (7, 4))))
    layer.branches = (LowRank(down, up, 1.0, (0, 7)),)
    layer(seeded("x", (5, 12))).square().sum().backward()
    assert down.grad.count_nonzero() and up.grad.count_nonzero() and layer.weight.grad is None


def test_a_branch_may_take_more_columns_than_the_matrix_has(layer, seeded):
    x, down, up = seeded("x", (2, 3, 15)), seeded("down", (4, 15)), seeded("up", (20, 4))
    layer.branches = (LowRank(down, up, 1.0),)
    padded = F.pad(layer.weight.detach(), (0, 3))
    assert_close(layer(x), F.linear(x, padded + up @ down, layer.bias))


def test_a_reweighing_sees_the_matrix_wherever_it_lives(layer, seeded):
    x = seeded("x", (5, 12))
    expected = F.linear(x, 2 * layer.weight, layer.bias)
    layer.reweighings = (Doubled(),)
    assert_close(layer(x), expected)
    layer.held, layer.weight = Lent(layer.weight.detach()), None
    assert_close(layer(x), expected)


def test_a_slice_of_something_wider_is_multiplied_as_its_copy_is(layer, seeded):
    wide = seeded("wide", (2, 5, 30))
    assert_close(layer(wide[..., 7:19]), layer(wide[..., 7:19].contiguous()))


def test_names_are_those_of_checkpoints():
    assert set(Linear(3, 4).state_dict()) == {"weight", "bias"}
    assert set(Linear(3, 4, bias=False).state_dict()) == {"weight"}
