"""Sums in float16: PyTorch's switch is on during our evaluations and unchanged at any other time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sluice.flux_core.errors import InputError
from sluice.flux_core.io.folders import TINY_MODELS
from sluice.flux_core.memory.cards import find_card
from sluice.flux_core.models.attention_library import RunAttention
from sluice.flux_core.quant import half_sums as module
from sluice.flux_core.quant.half_sums import check_half_sums, half_sums
from sluice.flux_core.runtime import flux_handle
from sluice.flux_core.runtime.handles import FluxModel, load_flux
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.sampling.guider import Run

TINY = TINY_MODELS / "diffusion_models" / "sluice-tiny.safetensors"


class Matmul:
    """Stands for torch.backends.cuda.matmul."""

    def __init__(self) -> None:
        self.allow_fp16_accumulation = False


@pytest.fixture
def matmul(monkeypatch: pytest.MonkeyPatch) -> Matmul:
    made = Matmul()
    monkeypatch.setattr(torch.backends.cuda, "matmul", made)
    return made


def test_it_is_set_for_an_evaluation_and_put_back_whatever_happens(matmul: Matmul) -> None:
    with half_sums():
        assert matmul.allow_fp16_accumulation
    assert not matmul.allow_fp16_accumulation
    with pytest.raises(ZeroDivisionError), half_sums():
        raise ZeroDivisionError
    assert not matmul.allow_fp16_accumulation
    matmul.allow_fp16_accumulation = True  # by someone else, who keeps it
    with half_sums():
        pass
    assert matmul.allow_fp16_accumulation and not module._users


def test_two_evaluations_at_once_put_it_back_with_the_last(matmul: Matmul) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with half_sums():
            begun.set()
            go_on.wait(10)

    thread = threading.Thread(target=other)
    with half_sums():
        thread.start()
        assert begun.wait(10)
    assert matmul.allow_fp16_accumulation
    go_on.set()
    thread.join()
    assert not matmul.allow_fp16_accumulation


def test_where_it_has_no_effect_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda", 0)
    with pytest.raises(InputError, match="NVIDIA cards, and this is cpu"):
        check_half_sums(torch.device("cpu"), torch.float16)
    with pytest.raises(InputError, match="bfloat16 is computed in. Add --dtype fp16"):
        check_half_sums(card, torch.bfloat16)
    monkeypatch.setattr(torch.backends.cuda, "matmul", object())
    with pytest.raises(InputError, match="2.7 and later can"):
        check_half_sums(card, torch.float16)


def test_a_model_evaluates_in_it_only_where_it_is_chosen(monkeypatch: pytest.MonkeyPatch, matmul: Matmul) -> None:
    @contextmanager
    def opened(self: FluxModel, run: Run, attend: RunAttention | None) -> Iterator[Any]:
        assert not matmul.allow_fp16_accumulation, "loading is not an evaluation"
        yield lambda inputs: matmul.allow_fp16_accumulation

    monkeypatch.setattr(FluxModel, "_opened_on_device", opened)
    monkeypatch.setattr(flux_handle, "check_half_sums", lambda device, dtype: None)
    run = Run((1, 16, 8, 8), (1.0,), ())
    for compute, expected in (("fp16-sums", True), ("16bit", False)):
        model = load_flux(Runtime(Settings.parse("cpu", "fp32", compute=compute)), TINY)
        with model._opened(run) as network:
            found: Any = network(None)  # type: ignore[arg-type]
        assert found is expected and not matmul.allow_fp16_accumulation


def test_the_table_of_cards_has_its_rate() -> None:
    """The study's gain of a whole step is 1.4; products alone gain this."""
    assert find_card("rtx4060").half_sums == pytest.approx(30.2 * 2 * 0.7)
    assert find_card("gtx1070").half_sums == find_card("gtx1070").gemm
