"""The linear layer of all models: it multiplies in the dtype of its input, for every kind of stored matrix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from doubles.seeded import Fill, Seeded
from doubles.typed import matrix_of, present
from sluice.flux_core.adapters.branches import Dense, Reweighing
from sluice.flux_core.adapters.branches import LowRank as LowRankOfFiles
from sluice.flux_core.models.copies import shallow
from sluice.flux_core.models.linear import Linear
from sluice.flux_core.quant.encoding import Encoding
from sluice.flux_core.quant.held import DenseProducts, packed
from torch import Tensor
from torch.testing import assert_close


class Held(DenseProducts):
    """A held weight that counts its uses, in memory that is overwritten when a use ends."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix.detach()
        self.calls: list[tuple[str, torch.dtype | None]] = []
        self.memory = torch.empty(matrix.numel() + 8, dtype=torch.float64)

    @contextmanager
    def dense(self, dtype: torch.dtype) -> Iterator[Tensor]:
        self.calls.append(("begin", dtype))
        raw = self.matrix.to(dtype).view(torch.uint8).flatten()
        self.memory.numpy().view("u1")[: raw.numel()] = raw.numpy()  # as a device writes: PyTorch does not see it
        try:
            yield self.memory.view(dtype)[: self.matrix.numel()].view(self.matrix.shape)
        finally:
            self.memory.numpy()[:] = 1e300
            self.calls.append(("end", None))


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
    tensors = ()

    def reweigh(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.fixture
def layer(fill: Fill) -> Linear:
    return fill(Linear(12, 20))


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_product_is_computed_in_the_inputs_dtype_from_the_values_as_stored(
    layer: Linear, seeded: Seeded, stored: torch.dtype
) -> None:
    x = seeded("x", (2, 3, 12))
    expected = F.linear(x, matrix_of(layer).to(stored).float(), present(layer.bias).to(stored).float())
    assert_close(layer.to(stored)(x), expected, rtol=0, atol=0)


def test_a_held_weight_is_used_for_one_product(layer: Linear, seeded: Seeded) -> None:
    x = seeded("x", (5, 12))
    expected = layer(x)
    held = Held(matrix_of(layer).half())
    layer.held, layer.weight = held, None
    assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)
    assert held.calls == [("begin", torch.float32), ("end", None)]


def test_a_use_of_a_held_weight_ends_when_the_product_fails(layer: Linear) -> None:
    layer.held = held = Held(torch.zeros(20, 11))
    with pytest.raises(RuntimeError):
        layer(torch.zeros(5, 12))
    assert held.calls[-1] == ("end", None)


@pytest.mark.parametrize("grad", [False, True])
def test_side_branches_equal_a_changed_matrix(layer: Linear, seeded: Seeded, grad: bool) -> None:
    x = seeded("x", (2, 3, 12))
    down, up, part = seeded("down", (4, 12)), seeded("up", (20, 4)), seeded("part", (7, 4))
    changed = matrix_of(layer).detach() + 0.5 * up @ down
    changed[3:10] += -2.0 * part @ down
    expected = F.linear(x, changed, layer.bias)
    layer.branches = (LowRank(down, up, 0.5), LowRank(down, part, -2.0, (3, 10)))
    with torch.set_grad_enabled(grad):
        assert_close(layer(x), expected)


def test_side_branches_train_while_the_matrix_rests(layer: Linear, seeded: Seeded) -> None:
    layer.requires_grad_(False)
    down, up = (seeded(name, shape).requires_grad_() for name, shape in (("down", (4, 12)), ("up", (7, 4))))
    layer.branches = (LowRank(down, up, 1.0, (0, 7)),)
    layer(seeded("x", (5, 12))).square().sum().backward()
    assert present(down.grad).count_nonzero() and present(up.grad).count_nonzero()
    assert matrix_of(layer).grad is None


def test_a_branch_may_take_more_columns_than_the_matrix_has(layer: Linear, seeded: Seeded) -> None:
    x, down, up = seeded("x", (2, 3, 15)), seeded("down", (4, 15)), seeded("up", (20, 4))
    layer.branches = (LowRank(down, up, 1.0),)
    padded = F.pad(matrix_of(layer).detach(), (0, 3))
    assert_close(layer(x), F.linear(x, padded + up @ down, layer.bias))


def test_a_reweighing_sees_the_matrix_wherever_it_lives(layer: Linear, seeded: Seeded) -> None:
    x = seeded("x", (5, 12))
    expected = F.linear(x, 2 * matrix_of(layer), layer.bias)
    layer.reweighings = (Doubled(),)
    assert_close(layer(x), expected)
    layer.held, layer.weight = Held(matrix_of(layer)), None
    assert_close(layer(x), expected)


def test_a_slice_of_something_wider_is_multiplied_as_its_copy_is(layer: Linear, seeded: Seeded) -> None:
    wide = seeded("wide", (2, 5, 30))
    assert_close(layer(wide[..., 7:19]), layer(wide[..., 7:19].contiguous()))


def trained(
    seeded: Seeded, dtype: torch.dtype = torch.float32
) -> tuple[tuple[Dense | Reweighing, ...], tuple[LowRankOfFiles, ...]]:
    """Reweighings and branches in `dtype`, made of float32 tensors that are trained."""

    def parameter(name: str, *shape: int) -> Tensor:
        return seeded(name, shape).requires_grad_()

    inside = (
        Dense(parameter("difference", 20, 12), 0.3),
        Reweighing(LowRankOfFiles(parameter("d", 3, 12), parameter("u", 20, 3)), parameter("m", 20, 1), 0.7),
    )
    beside = (
        LowRankOfFiles(parameter("down", 4, 12), parameter("up", 20, 4), 0.5),
        LowRankOfFiles(parameter("part down", 2, 12), parameter("part up", 7, 2), -2.0, (3, 10)),
    )
    cpu = torch.device("cpu")
    return tuple(change.to(cpu, dtype) for change in inside), tuple(change.to(cpu, dtype) for change in beside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("inside", [False, True], ids=["branches", "with reweighings"])
def test_gradients_through_a_held_weight_are_those_of_a_parameter(
    layer: Linear, seeded: Seeded, dtype: torch.dtype, inside: bool
) -> None:
    """Equal bits, although the memory of the weight has other contents by the time of the backward pass."""
    layer.requires_grad_(False)
    present(layer.bias).requires_grad_(True)
    reweighings, branches = trained(seeded, dtype)
    layer.reweighings, layer.branches = (reweighings if inside else ()), branches
    held = shallow(layer)
    held.held, held.weight = Held(matrix_of(layer)), None
    x, direction = seeded("x", (2, 5, 12)).to(dtype).requires_grad_(), seeded("direction", (2, 5, 20))
    tensors = [tensor for change in (*(reweighings if inside else ()), *branches) for tensor in change.tensors]
    results = [
        torch.autograd.grad((one(x) * direction).sum(), (x, present(layer.bias), *tensors)) for one in (layer, held)
    ]
    for wanted, got in zip(*results, strict=True):
        assert got.isfinite().all() and got.count_nonzero() and torch.equal(got, wanted)


@pytest.mark.parametrize("inside", [False, True], ids=["branches", "with reweighings"])
def test_of_a_held_weight_nothing_is_kept_and_of_the_input_only_what_is_trained_with(
    layer: Linear, seeded: Seeded, inside: bool
) -> None:
    layer.requires_grad_(False)
    reweighings, _ = trained(seeded)
    layer.reweighings = reweighings if inside else ()
    held = Held(matrix_of(layer))
    layer.held, layer.weight = held, None
    x = seeded("x", (5, 12)).requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()] * inside
    assert held.calls == [("begin", torch.float32), ("end", None)]
    y.sum().backward()
    assert held.calls == [("begin", torch.float32), ("end", None)] * 2


def test_a_held_weight_that_nothing_is_learned_before_is_not_fetched_again(layer: Linear, seeded: Seeded) -> None:
    layer.requires_grad_(False)
    held = Held(matrix_of(layer))
    layer.held, layer.weight = held, None
    _, branches = trained(seeded)
    layer.branches = branches
    layer(seeded("x", (5, 12))).sum().backward()
    assert present(branches[0].down.grad).count_nonzero()
    assert held.calls == [("begin", torch.float32), ("end", None)]


def test_a_layer_fetches_its_matrix_once_for_several_products(layer: Linear, seeded: Seeded) -> None:
    inputs = [seeded(f"x{number}", (1, 12)) for number in range(3)]
    with layer.fetched(torch.float32) as same:
        assert same is layer
    held = Held(matrix_of(layer))
    layer.held, layer.weight = held, None
    expected = [layer(x) for x in inputs]
    held.calls.clear()
    with layer.fetched(torch.float32) as fetched:
        assert all(torch.equal(fetched(x), y) for x, y in zip(inputs, expected, strict=True))
        assert held.calls == [("begin", torch.float32)] and layer.held is held
        x = inputs[0].clone().requires_grad_()
        slopes = [torch.autograd.grad(fetched(x).sum(), x)[0]]
        late = fetched(x).sum()
    assert held.calls[1:] == [("end", None)]
    slopes.append(torch.autograd.grad(late, x)[0])
    slopes.append(torch.autograd.grad(layer(x).sum(), x)[0])
    assert torch.equal(slopes[0], slopes[2]) and torch.equal(slopes[1], slopes[2]), "its memory was used meanwhile"


def test_names_are_those_of_checkpoints() -> None:
    assert set(Linear(3, 4).state_dict()) == {"weight", "bias"}
    assert set(Linear(3, 4, bias=False).state_dict()) == {"weight"}


def test_a_matrix_gives_the_same_bits_wherever_it_begins_in_its_file() -> None:
    """Products of one row too, for which the CPU reads sixteen bytes at a time."""
    matrix, x = torch.randn(512, 256), torch.randn(1, 256)
    raw = torch.empty(matrix.nbytes + 128, dtype=torch.uint8)
    expected = F.linear(x, matrix)
    for offset in (0, 4, 8, 16, 24, 60):
        start = -raw.data_ptr() % 64 + offset
        there = raw[start : start + matrix.nbytes]
        there.copy_(matrix.view(torch.uint8).flatten())
        assert torch.equal(packed(there, Encoding("F32"), matrix.shape).multiply(x, None), expected)
