"""The default number type of each device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from sluice.flux_core.memory import rates
from sluice.flux_core.quant.encoding import Encoding
from sluice.flux_core.runtime.device import autoencoder_dtype, model_dtype
from sluice.flux_core.training.small_networks import fast_dtype

CARD = torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("bfloat16", "half", "expected"),
    [
        (True, 1.0, torch.bfloat16),  # RTX 30 and later
        (False, 4.0, torch.float16),  # RTX 20: tensor cores
        (False, 1.9, torch.float16),  # GTX 16: twice the rate, without them
        (False, 1.05, torch.float32),
        (False, 1 / 64, torch.float32),  # GTX 10
    ],
)
def test_a_card_computes_in_what_it_is_measured_to_be_fastest_in(
    monkeypatch: pytest.MonkeyPatch, bfloat16: bool, half: float, expected: torch.dtype
) -> None:
    def rate(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> float:
        assert device == CARD and not bfloat16, "a card that computes in bfloat16 is not measured"
        return {torch.float16: half, torch.float32: 1.0}[dtype]

    current = [torch.device("cuda", 0)]

    @contextmanager
    def chosen(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def supported(including_emulation: bool = True) -> bool:
        """Another card, beside the one that is asked about, computes in the other type."""
        return bfloat16 if current[-1] == CARD else not bfloat16

    monkeypatch.setattr(torch.cuda, "device", chosen)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(rates, "gemm_rate", rate)
    assert model_dtype(CARD, "auto") is expected
    assert (fast_dtype(CARD) is torch.bfloat16) == bfloat16
    assert model_dtype(CARD, "fp32") is torch.float32, "whatever is fastest"


def test_the_autoencoder_computes_as_the_transformer_but_on_a_cpu_not_in_float16() -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float32)
    assert [autoencoder_dtype(kind, CARD) for kind in kinds] == list(kinds)
    assert [autoencoder_dtype(kind, torch.device("cpu")) for kind in kinds] == [torch.float32, *kinds[1:]]


def test_the_rate_of_decoding_is_measured_with_numbers_as_models_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros are decoded faster: plans that were made with their rate promised too much."""
    seen: list[int] = []

    def decode(raw: torch.Tensor, out: torch.Tensor, encoding: Encoding) -> None:
        seen.append(len(raw.unique()))

    monkeypatch.setattr(rates, "decode_into", decode)
    encoding = Encoding("F8_E4M3")
    assert rates._decode_rate.__wrapped__(torch.device("cpu"), torch.bfloat16, encoding, (64, 64)) > 0
    assert seen and all(30 < codes < 200 for codes in seen), "weights use some of the 256 codes"
