"""Products in 8-bit integers: exact sums, one rule for the codes, and numbers wherever numbers are needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sluice.flux_core.adapters.branches import LowRank, Reweighing
from sluice.flux_core.memory import rates
from sluice.flux_core.models.linear import Linear
from sluice.flux_core.quant import encoding as encoding_of
from sluice.flux_core.quant import formats, int8, workspace
from sluice.flux_core.quant.encoding import Encoding, Part, Side, multiplied_as_integers
from sluice.flux_core.quant.formats import decode
from sluice.flux_core.quant.held import IntegerWeight, stored_weight
from sluice.flux_core.quant.int8 import FEWEST_ROWS, Integers, TorchPasses
from sluice.flux_core.quant.rotation import root, rotate
from sluice.flux_core.runtime import integer_products
from sluice.flux_core.runtime.integer_products import integers_for
from torch import Tensor
from torch.testing import assert_close

Seeded = Callable[..., Tensor]
CPU = torch.device("cpu")
FLUX_SHAPES = [(9216, 3072), (3072, 3072), (12288, 3072), (3072, 12288), (21504, 3072), (3072, 15360)]


def stored(matrix: Tensor, rotation: int = 0) -> tuple[Tensor, Encoding]:
    """The raw bytes of a matrix [N, K] as int8 with a scale for each row, and their encoding."""
    floats = matrix.float().clone()
    if rotation:
        rotate(floats, rotation)
        floats /= root(rotation)
    scales = floats.abs().amax(1, keepdim=True) / 127
    codes = (floats / scales).round().clamp(-127, 127).to(torch.int8)
    raw = torch.cat([codes.view(torch.uint8).flatten(), scales.view(torch.uint8).flatten()])
    side = Side("scale", "F32", tuple(scales.shape), codes.numel())
    return raw, Encoding("INT8", sides=(side,), rotation=rotation)


def weight_of(matrix: Tensor, rotation: int = 0) -> IntegerWeight:
    raw, encoding = stored(matrix, rotation)
    weight = stored_weight(encoding, matrix.shape, lambda: nullcontext(raw), integers=Integers())
    assert isinstance(weight, IntegerWeight)
    return weight


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize(("outputs", "columns"), FLUX_SHAPES)
def test_sums_are_exact_for_every_shape_of_flux(outputs: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(outputs)
    x = torch.randint(-127, 128, (256, columns), dtype=torch.int8, generator=generator)
    w = torch.randint(-127, 128, (512, columns), dtype=torch.int8, generator=generator).repeat(outputs // 512, 1)
    x[0], w[0], w[-1] = 127, 127, -127
    seen = torch.tensor([0, 1, outputs // 2, outputs - 1])
    for rows in (17, 33, 256):
        sums = torch._int_mm(x[:rows], w.t())
        assert torch.equal(sums[:, seen].long(), x[:rows].long() @ w[seen].long().t())
        assert sums[0, 0] == 127 * 127 * columns and sums[0, -1] == -127 * 127 * columns


def test_codes_are_rounded_to_the_nearest_even_of_127_for_the_peak(seeded: Seeded) -> None:
    x = seeded("x", (40, 96))
    x[3] = 0
    x[4] = torch.arange(96) - 0.5
    x[4, 0] = 127  # its codes are the numbers themselves, and half of them are ties
    codes, scales = TorchPasses().quantise(x, 0)
    numbers = x.numpy()
    peak = np.maximum(np.abs(numbers).max(1), np.float32(1e-30))
    expected = np.rint(numbers * (np.float32(127) / peak)[:, None])
    assert np.array_equal(codes.numpy(), expected) and np.array_equal(scales.numpy(), peak / np.float32(127))
    assert codes[4, 1:5].tolist() == [0, 2, 2, 4] and not codes[3].any()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rotation", [0, 16])
def test_a_product_is_the_formula_rounded_once(seeded: Seeded, kind: torch.dtype, rotation: int) -> None:
    x, matrix, bias = seeded("x", (50, 64)).to(kind), seeded("w", (24, 64)), seeded("b", (24,))
    raw, encoding = stored(matrix, rotation)
    (operand,) = int8.operands_of(raw, encoding, (24, 64))
    y = Integers().multiply(x, [operand], bias)
    codes, scales = TorchPasses().quantise(x, rotation)
    sums = codes.double() @ operand.codes.double().t()
    exact = sums * scales.double()[:, None] * operand.scales.double() + bias.double()
    assert y.dtype == kind
    assert_close(y, exact.float().to(kind), rtol=2e-6 if kind is torch.float32 else torch.finfo(kind).eps, atol=1e-6)


@pytest.mark.parametrize("card", [False, True])
def test_codes_at_any_byte_are_moved_for_a_card_and_stay_on_a_cpu(seeded: Seeded, card: bool) -> None:
    """The second part of a fused matrix lies behind the scale of the first, which may have two bytes."""

    class OnCard(Tensor):
        device = torch.device("cuda")

    raw, encoding = stored(seeded("w", (24, 64)))
    memory = torch.zeros(len(raw) + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 16 + 2
    memory[start : start + len(raw)] = raw
    there = memory[start : start + len(raw)]
    (operand,) = int8.operands_of(there.as_subclass(OnCard) if card else there, encoding, (24, 64))
    (expected,) = int8.operands_of(raw, encoding, (24, 64))
    assert (operand.codes.data_ptr() % int8.ALIGNED == 0) == card
    assert torch.equal(operand.codes.as_subclass(Tensor), expected.codes)


def test_blocks_of_any_size_give_the_same_bits(seeded: Seeded, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = seeded("x", (70, 64)).bfloat16(), weight_of(seeded("w", (48, 64)), 64), seeded("b", (48,))
    whole = weight.multiply(x, bias)
    monkeypatch.setattr(int8, "SUMS", 70 * 16)
    monkeypatch.setattr(workspace, "CHUNK_CPU", 256)
    assert torch.equal(weight.multiply(x, bias), whole)


def test_the_stored_bytes_are_the_operand_and_nothing_is_decoded(
    seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, encoding = stored(seeded("w", (24, 64)))
    (operand,) = int8.operands_of(raw, encoding, (24, 64))
    assert operand.codes.data_ptr() == raw.data_ptr()

    def refuse(*args: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setitem(formats.FORMATS, "INT8", refuse)
    weight = weight_of(seeded("w", (24, 64)))
    assert weight.multiply(seeded("x", (FEWEST_ROWS, 64)), None).shape == (FEWEST_ROWS, 24)
    with pytest.raises(AssertionError, match="decoded"):
        weight.multiply(seeded("x", (FEWEST_ROWS - 1, 64)), None)


def test_a_rotation_spreads_outliers_and_costs_nothing_without_them(seeded: Seeded) -> None:
    """The errors of the study: 0.066 without and 0.011 with rotation, for three channels 40 times larger."""
    matrix, x = seeded("w", (64, 1024)) / 32, seeded("x", (128, 1024))
    with_outliers = x.clone()
    with_outliers[:, [5, 300, 900]] *= 40
    found = {
        (name, rotation): error(weight_of(matrix, rotation).multiply(inputs, None), inputs @ matrix.t())
        for name, inputs in (("plain", x), ("outliers", with_outliers))
        for rotation in (0, 256)
    }
    assert found["plain", 0] < 0.013 and found["plain", 256] < 0.013
    assert found["outliers", 0] > 0.03 and found["outliers", 256] < 0.016


def test_parts_of_a_fused_matrix_are_multiplied_one_by_one(seeded: Seeded) -> None:
    parts = [seeded(f"w{number}", (16, 64)) for number in range(3)]
    made = [stored(part, rotation) for part, rotation in zip(parts, (0, 64, 16), strict=True)]
    raw = torch.cat([each for each, _ in made])
    encoding = Encoding("INT8", parts=tuple(Part(16, each.numel(), encoding) for each, encoding in made))
    weight = stored_weight(encoding, (48, 64), lambda: nullcontext(raw), integers=Integers())
    x, bias = seeded("x", (40, 64)), seeded("b", (48,))
    singles = [
        weight_of(part, rotation).multiply(x, bias[16 * number : 16 * number + 16])
        for number, (part, rotation) in enumerate(zip(parts, (0, 64, 16), strict=True))
    ]
    assert isinstance(weight, IntegerWeight) and torch.equal(weight.multiply(x, bias), torch.cat(singles, dim=1))


def test_only_what_is_stored_as_integers_and_fits_is_multiplied_so(seeded: Seeded) -> None:
    _, encoding = stored(seeded("w", (24, 64)))
    assert multiplied_as_integers(encoding, (24, 64))
    assert not multiplied_as_integers(encoding, (20, 64)) and not multiplied_as_integers(encoding, (24, 60))
    assert not multiplied_as_integers(replace(encoding, full_precision=True), (24, 64))
    assert not multiplied_as_integers(replace(encoding, swapped=True), (24, 64))
    assert not multiplied_as_integers(Encoding("F8_E4M3"), (24, 64))
    assert not multiplied_as_integers(encoding, (8, encoding_of.MOST_COLUMNS // 8 * 8 + 8))


def layer_of(weight: IntegerWeight) -> Linear:
    outputs, inputs = weight.shape
    layer = Linear(inputs, outputs, bias=False)
    layer.weight, layer.held = None, weight
    return layer


def test_a_lora_stays_exact_beside_it(seeded: Seeded) -> None:
    layer, x = layer_of(weight_of(seeded("w", (24, 64)))), seeded("x", (40, 64))
    plain = layer(x)
    branch = LowRank(seeded("down", (4, 64)), seeded("up", (24, 4)), 0.5)
    layer.branches = (branch,)
    assert torch.equal(layer(x), plain + branch(x))


def test_a_change_of_the_matrix_itself_is_computed_from_numbers(seeded: Seeded) -> None:
    matrix, x = seeded("w", (24, 64)), seeded("x", (40, 64))
    raw, encoding = stored(matrix)
    numbers = decode(raw, encoding, (24, 64), torch.float32)
    layer = layer_of(weight_of(matrix))
    dora = Reweighing(LowRank(seeded("down", (4, 64)), seeded("up", (24, 4))), seeded("m", (24, 1)).abs())
    layer.reweighings = (dora,)
    assert_close(layer(x), F.linear(x, dora.reweigh(numbers)), rtol=1e-5, atol=1e-5)
    assert integer_products.products_of(layer).endswith("for 0 matrices, 1 decoded because a LoRA changes the "
                                                        "matrix itself (DoRA)")  # fmt: skip


def test_products_with_gradients_are_of_numbers(seeded: Seeded) -> None:
    matrix = seeded("w", (24, 64))
    raw, encoding = stored(matrix)
    numbers = decode(raw, encoding, (24, 64), torch.float32)
    x = seeded("x", (40, 64)).requires_grad_()
    y = layer_of(weight_of(matrix))(x)
    y.sum().backward()
    assert torch.equal(y, F.linear(x, numbers))
    assert x.grad is not None and torch.equal(x.grad, torch.ones(40, 24) @ numbers)


def test_a_fetched_weight_gives_the_same_bits_for_few_and_many_rows(seeded: Seeded) -> None:
    weight = weight_of(seeded("w", (24, 64)))
    few, many = seeded("few", (1, 64)), seeded("many", (40, 64))
    with weight.fetched(torch.float32) as fetched:
        inside = fetched.multiply(few, None), fetched.multiply(many, None)
    for each, x in zip(inside, (few, many), strict=True):
        assert torch.equal(each, weight.multiply(x, None)) and torch.equal(each, fetched.multiply(x, None))


def test_what_is_not_finite_stays_so(seeded: Seeded) -> None:
    x, weight = seeded("x", (40, 64)), weight_of(seeded("w", (24, 64)))
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    finite = torch.isfinite(weight.multiply(x, None)).all(1)
    assert not finite[3] and not finite[7] and finite.sum() == 38


def test_what_computes_is_chosen_by_word_by_exactness_and_by_measurement(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gain = [3.0]
    monkeypatch.setattr(rates, "integer_gain", lambda *args: gain[0])

    def chosen(compute: str, dtype: torch.dtype = torch.bfloat16) -> bool:
        return integers_for(CPU, dtype, compute) is not None

    assert chosen("auto") and chosen("int8") and not chosen("16bit")
    assert not chosen("auto", torch.float32) and chosen("int8", torch.float32), "float32 on a CPU is the reference"
    gain[0] = 1.05
    assert not chosen("auto") and chosen("int8")
    integer_products._integers.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(-32768, 32767))
    with caplog.at_level(logging.WARNING):
        assert not chosen("int8")
    assert "does not multiply 8-bit integers exactly" in caplog.text
    integer_products._integers.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_sums_are_finished_at_once_and_by_type_with_the_same_bits(
    seeded: Seeded, with_bias: bool, dtype: torch.dtype
) -> None:
    sums = torch.randint(-(127**2) * 300, 127**2 * 300, (9, 40), dtype=torch.int32)
    rows, columns = seeded("rows", (9, 1)).abs() * 1e-3, seeded("columns", (40,)).abs() * 1e-3
    bias = seeded("bias", (40,)) if with_bias else None
    made = [torch.zeros(9, 60, dtype=dtype) for _ in range(2)]
    for finished, out in zip((int8.finished_at_once, int8.finished_by_type), made, strict=True):
        finished(sums, rows, columns, bias, torch.empty(9, 40), out[:, 10:50])
    assert torch.equal(*made) and made[0].any()


def test_products_are_compared_in_turns_and_the_slow_first_ones_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each product takes 2 s at first; later a plain one takes 0.4 s and one in integers 0.1 s."""
    calls: list[str] = []

    def seconds(work: Callable[[], object], device: torch.device) -> float:
        integers = "integer" in work.__qualname__
        calls.append("integers" if integers else "numbers")
        return 2.0 if len(calls) <= 8 else 0.1 if integers else 0.4

    monkeypatch.setattr(rates, "_seconds", seconds)
    assert rates.integer_gain.__wrapped__(Integers(), CPU, torch.bfloat16, 8, 16) == pytest.approx(4.0)
    assert calls == ["numbers", "integers"] * 8
