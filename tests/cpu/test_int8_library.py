"""Another library's 8-bit products: used only if they agree with ours and are faster."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from doubles.seeded import Seeded
from sluice.flux_core.memory import rates
from sluice.flux_core.quant import int8_library
from sluice.flux_core.quant.int8 import Integers, Operand
from sluice.flux_core.quant.int8_encode import quantise
from sluice.flux_core.quant.int8_library import ComfyKitchen, Library, LibraryIntegers, installed
from sluice.flux_core.runtime.integer_products import fastest
from torch import Tensor

Product = Callable[[Tensor, Operand, Tensor | None], Tensor]
CPU = torch.device("cpu")


class Counted:
    """A library whose product is this function."""

    name = "some library"

    def __init__(self, product: Product) -> None:
        self.product, self.rows = product, list[int]()

    def multiply(self, x: Tensor, operand: Operand, bias: Tensor | None) -> Tensor:
        self.rows.append(len(x))
        return self.product(x, operand, bias)


def nearly(x: Tensor, operand: Operand, bias: Tensor | None) -> Tensor:
    """Right, with other last bits."""
    return Integers().multiply(x, [operand], bias) * 1.001


def without_rotation(x: Tensor, operand: Operand, bias: Tensor | None) -> Tensor:
    return Integers().multiply(x, [Operand(operand.codes, operand.scales)], bias)


def fails(x: Tensor, operand: Operand, bias: Tensor | None) -> Tensor:
    raise RuntimeError("no kernel image is available")


@pytest.fixture
def operand(seeded: Seeded) -> Callable[[int], Operand]:
    def made(rotation: int = 0) -> Operand:
        codes, scales = quantise(seeded("w", (24, 64)), rotation)
        return Operand(codes, scales[:, 0].contiguous(), rotation)

    return made


def test_the_first_product_of_each_kind_is_compared_and_the_library_s_from_then_on(
    seeded: Seeded, operand: Callable[[int], Operand], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Counted(nearly)
    integers, own = LibraryIntegers(library, Integers()), Integers()
    bias = seeded("b", (24,))
    for x in (seeded("x", (40, 64)), seeded("x", (40, 64)).bfloat16()):
        for one in (operand(0), operand(16)):
            for _ in range(2):
                assert torch.equal(integers.multiply(x, [one], bias), nearly(x, one, bias.to(x.dtype)))
    assert integers.name == "int8 products (some library)" and library.rows == [40] * 8
    monkeypatch.setattr(int8_library, "SUMS", 24 * 16)
    assert torch.equal(integers.multiply(x, [one], bias), nearly(x, one, bias.bfloat16()))
    assert library.rows[8:] == [14, 13, 13], "some rows at a time, and no part of a few rows at the end"
    two = [operand(0), operand(16)]
    assert torch.equal(integers.multiply(x, two, None), own.multiply(x, two, None))


@pytest.mark.parametrize(
    ("product", "warning"),
    [
        (without_rotation, "off by"),
        (fails, "RuntimeError: no kernel image"),
        (lambda x, operand, bias: nearly(x, operand, bias).double(), "torch.float64"),
        (lambda x, operand, bias: nearly(x, operand, bias)[:, 1:], r"[40, 23] in place of"),
        (lambda x, operand, bias: nearly(x, operand, bias) * float("nan"), "off by nan"),
    ],
)
def test_a_library_that_does_not_agree_is_not_asked_again(
    product: Product, warning: str, seeded: Seeded, operand: Callable[[int], Operand], caplog: pytest.LogCaptureFixture
) -> None:
    library, x = Counted(product), seeded("x", (40, 64))
    integers = LibraryIntegers(library, Integers())
    for _ in range(3):
        assert torch.equal(integers.multiply(x, [operand(16)], None), Integers().multiply(x, [operand(16)], None))
    assert library.rows == [40] and integers.name == Integers().name
    assert len(caplog.records) == 1 and "some library is not used" in caplog.text and warning in caplog.text
    assert type(integers.quantising()) is Integers and integers.quantising().quantises


def test_lack_of_memory_is_no_disagreement(seeded: Seeded, operand: Callable[[int], Operand]) -> None:
    def full(x: Tensor, operand: Operand, bias: Tensor | None) -> Tensor:
        raise torch.OutOfMemoryError("full")

    integers = LibraryIntegers(Counted(full), Integers())
    with pytest.raises(torch.OutOfMemoryError):
        integers.multiply(seeded("x", (40, 64)), [operand(0)], None)
    quantising = integers.quantising()
    assert isinstance(quantising, LibraryIntegers) and quantising.library is integers.library and quantising.quantises


@pytest.mark.parametrize(
    ("product", "speed", "chosen"), [(nearly, 2.0, True), (nearly, 0.5, False), (fails, 2.0, False)]
)
def test_it_is_chosen_where_it_is_faster_and_agrees(
    product: Product, speed: float, chosen: bool, seeded: Seeded, operand: Callable[[int], Operand],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def rate(integers: Integers, *what: Any) -> float:
        integers.multiply(seeded("x", (40, 64)), [operand(0)], None)
        return speed if isinstance(integers, LibraryIntegers) else 1.0

    monkeypatch.setattr(rates, "integer_rate", rate)
    own, library = Integers(), Counted(product)
    libraries: list[Library] = [library]
    assert fastest(own, [], CPU) is own
    found = fastest(own, libraries, CPU)
    assert isinstance(found, LibraryIntegers) if chosen else found is own


def test_comfy_kitchen_is_asked_in_its_own_words(
    seeded: Seeded, operand: Callable[[int], Operand], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Any, out_dtype: Any, **more: Any) -> Tensor:
        asked.append(more | {"scale": tuple(weight_scale.shape), "dtype": out_dtype})
        return torch.zeros(len(x), len(weight), dtype=out_dtype)

    monkeypatch.setitem(sys.modules, "comfy_kitchen", SimpleNamespace(int8_linear=int8_linear))
    (library,) = installed()
    for rotation in (0, 16):
        library.multiply(seeded("x", (40, 64)).bfloat16(), operand(rotation), None)
    plain = {"scale": (24, 1), "dtype": torch.bfloat16}
    assert asked == [plain, plain | {"convrot": True, "convrot_groupsize": 16}]
    assert isinstance(library, ComfyKitchen) and library.name == "comfy-kitchen"


def test_a_library_that_is_not_there_or_cannot_be_imported_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    assert installed() == [] and not caplog.records

    def broken(name: str) -> ModuleType:
        raise AttributeError("no such operator")

    monkeypatch.setattr(int8_library, "import_module", broken)
    with caplog.at_level(logging.INFO):
        assert installed() == []
    assert "comfy-kitchen is not used: AttributeError: no such operator" in caplog.text
