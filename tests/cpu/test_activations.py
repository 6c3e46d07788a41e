"""tanh-GELU by table: every number as PyTorch's function gives it, in place, also in part of something wider."""

from __future__ import annotations

import pytest
import torch
from sluice.flux_core.models import activations
from sluice.flux_core.models.activations import gelu, gelu_


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_two_bytes_is_pytorchs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    expected = gelu(numbers).view(torch.int16)
    monkeypatch.setattr(activations, "LOOKED_UP", 1000)
    assert torch.equal(gelu_(numbers.view(64, 1024).clone()).view(-1).view(torch.int16), expected)
    assert torch.equal(gelu_(numbers.clone()).view(torch.int16), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_changes_its_columns_and_no_others(dtype: torch.dtype) -> None:
    wide = torch.randn(2, 5, 256).to(dtype)
    before, part = wide.clone(), wide[..., 64:192]
    assert gelu_(part) is part
    assert torch.equal(part, gelu(before[..., 64:192]))
    assert torch.equal(wide[..., :64], before[..., :64]) and torch.equal(wide[..., 192:], before[..., 192:])


def test_rows_that_are_no_view_are_changed_too() -> None:
    turned = torch.randn(4, 64, 32).bfloat16().permute(2, 0, 1)
    expected = gelu(turned)
    assert torch.equal(gelu_(turned), expected)
    assert gelu_(torch.empty(0, 64, dtype=torch.bfloat16)).shape == (0, 64)
