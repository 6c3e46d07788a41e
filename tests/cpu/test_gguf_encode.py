"""Numbers become the GGUF blocks of the `gguf` package; for types that it cannot write, the loss is small."""

from __future__ import annotations

import gguf
import pytest
import torch
from sluice.flux_core.quant.encoding import Encoding
from sluice.flux_core.quant.formats import decode
from sluice.flux_core.quant.gguf_encode import ENCODED, encode_blocks
from sluice.flux_core.quant.sizes import BLOCK

K_QUANTS = [format for format in ENCODED if format.endswith("_K")]


def numbers(count: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, width, generator=generator)
    x[0] = 0
    x[1] = 3.5
    x[2, 5] = 1000
    x[3] = -x[3].abs()
    x[4] = x[4].abs() + 2
    x[5] *= 1e-3
    x[6, ::2] = 0.5 * x[6, 1::2].round()
    return x


@pytest.mark.parametrize("format", [format for format in ENCODED if format not in K_QUANTS])
def test_blocks_of_32_are_those_of_the_gguf_package(format: str) -> None:
    x = numbers(999, 32)
    expected = gguf.quantize(x.numpy(), gguf.GGMLQuantizationType[format])
    assert torch.equal(encode_blocks(x, format), torch.from_numpy(expected))


def lost(x: torch.Tensor, format: str) -> float:
    blocks = encode_blocks(x.view(-1, BLOCK[format][0]), format)
    got = decode(blocks.flatten(), Encoding(format), x.shape, torch.float32)
    return float((got - x).norm() / x.norm())


@pytest.mark.parametrize("format, plainer", [("Q4_K", "Q4_1"), ("Q5_K", "Q5_1"), ("Q6_K", "Q5_1")])
def test_k_quants_lose_less_than_the_blocks_of_32_of_as_many_bits(format: str, plainer: str) -> None:
    x = torch.randn(600, 256, generator=torch.Generator().manual_seed(7))
    assert lost(x, format) < (0.6 if format == "Q6_K" else 0.99) * lost(x, plainer)


@pytest.mark.parametrize("format", K_QUANTS)
def test_k_quants_of_odd_numbers_stay_near_them(format: str) -> None:
    x = numbers(64, 256)
    got = decode(encode_blocks(x, format).flatten(), Encoding(format), x.shape, torch.float32)
    assert torch.isfinite(got).all() and torch.equal(got[0], x[0])
    for row in (1, 3, 4, 5, 6, 20):
        assert ((got[row] - x[row]).norm() / x[row].norm()).item() < 0.11, row
