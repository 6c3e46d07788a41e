"""Products of fp8 matrices in pieces have the bits of whole products, or are not used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sluice.flux_core.processor import threads
from sluice.flux_core.processor.c_functions import Decoder
from sluice.flux_core.quant import fp8_products
from sluice.flux_core.quant.encoding import Encoding
from sluice.flux_core.quant.fp8 import FP8
from sluice.flux_core.quant.fp8_products import Fp8Products, in_pieces
from sluice.flux_core.quant.held import packed
from torch import Tensor


def plainly(codes: Tensor, values: Tensor) -> None:
    """The decoder of a machine that has a compiler, or none: slow, and always there."""
    values.copy_(codes.view(FP8["F8_E4M3"]))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices are multiplied as large ones are."""
    monkeypatch.setattr(fp8_products, "LARGE", 1)
    monkeypatch.setattr(fp8_products, "ROWS", 16)
    monkeypatch.setattr(fp8_products, "decoder", lambda dtype: plainly)
    monkeypatch.setattr(threads, "FEW", 0)


def product(dtype: torch.dtype, out: int = 100, with_bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    """x [64, 48], codes [out, 48], bias [out]: sums of small whole numbers, which are exact in any order."""
    generator = torch.Generator().manual_seed(out)
    x = torch.randint(-2, 3, (64, 48), generator=generator).to(dtype)
    codes = torch.tensor([0, 0x38, 0x40, 0xB8], dtype=torch.uint8)[torch.randint(0, 4, (out, 48), generator=generator)]
    return x, codes, torch.randint(-3, 4, (out,), generator=generator).to(dtype) if with_bias else None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("out", [5, 16, 100])
def test_every_row_is_in_one_piece(
    small: None,
    computing_threads: Callable[[int], None],
    count: int,
    out: int,
    with_bias: bool,
    dtype: torch.dtype,
) -> None:
    computing_threads(count)
    x, codes, bias = product(dtype, out, with_bias)
    assert torch.equal(
        in_pieces(x, codes, None, bias, plainly), F.linear(x, codes.view(FP8["F8_E4M3"]).to(dtype), bias)
    )


def test_a_kind_of_product_with_other_bits_is_computed_whole(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    products, (x, codes, bias) = Fp8Products(), product(torch.float32)
    kind = products.kind(x, codes.shape, bias)
    assert kind is not None
    monkeypatch.setattr(fp8_products, "in_pieces", lambda *given: in_pieces(*given).mul_(1.0000002))
    right = F.linear(x, codes.view(FP8["F8_E4M3"]).float(), bias)
    assert torch.equal(products.multiply(kind, x, codes, None, bias), right)
    assert products.kind(x, codes.shape, bias) is None
    assert products.kind(x, codes.shape, None) is not None


@pytest.mark.parametrize(
    ("rows", "found"), [(fp8_products.FEWEST_VECTORS, True), (fp8_products.FEWEST_VECTORS - 1, False)]
)
def test_few_vectors_and_small_matrices_are_multiplied_whole(
    rows: int, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders: dict[torch.dtype, Decoder] = {torch.float32: plainly}
    monkeypatch.setattr(fp8_products, "decoder", decoders.get)
    x = torch.empty(rows, 2048)
    assert (Fp8Products().kind(x, (2048, 2048), None) is not None) == found
    assert Fp8Products().kind(x, (2047, 2048), None) is None
    assert Fp8Products().kind(x.half(), (2048, 2048), None) is None


@pytest.mark.parametrize("encoding", [Encoding("F8_E4M3"), Encoding("F8_E4M3", 0.3), Encoding("F8_E5M2")])
def test_e4m3_weights_are_multiplied_in_pieces_with_their_scale(
    small: None, encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tensor] = []

    def noted(*given: Any) -> Tensor:
        made.append(in_pieces(*given))
        return made[-1]

    monkeypatch.setattr(fp8_products, "in_pieces", noted)
    x, codes, bias = product(torch.bfloat16)
    with packed(codes.view(-1), encoding, codes.shape).dense(torch.bfloat16) as weight:
        right = F.linear(x, weight, bias)
    assert torch.equal(packed(codes.view(-1), encoding, codes.shape).multiply(x, bias), right)
    assert len(made) == (encoding.format == "F8_E4M3")
