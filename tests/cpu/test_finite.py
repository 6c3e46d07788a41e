"""Values that are not finite are found: on a CPU at once, on another device without waiting for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.network import NetworkModel
from doubles.seeded import Seeded
from safetensors.torch import save_file
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.stored import whole
from sluice.flux_core.errors import NotFinite
from sluice.flux_core.images.files import to_pil
from sluice.flux_core.runtime.sound import unsound
from sluice.flux_core.sampling.finite import Answer, Diverged, FiniteCheck, are_finite
from sluice.flux_core.sampling.guider import BasicGuider
from sluice.flux_core.sampling.sample import Sampler, sample
from sluice.flux_core.sampling.schedule import FluxShift
from torch import Tensor

GOOD, BAD = torch.ones(3), torch.tensor([1.0, float("nan")])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_on_a_cpu_the_step_itself_is_told(bad: float) -> None:
    check = FiniteCheck()
    check(GOOD)
    with pytest.raises(Diverged) as error:
        check(torch.tensor([1.0, bad]))
    assert error.value.step == 2


def test_on_a_card_the_answer_is_that_of_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current card may be another one, whose stream is empty: its event says nothing about these numbers."""
    card, recorded = torch.device("cuda", 1), list[object]()

    class OnCard(Tensor):
        device = card

    class Event:
        def record(self, stream: object = None) -> None:
            recorded.append(stream)

        def query(self) -> bool:
            return False

        def synchronize(self) -> None: ...

    plain = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype, pin_memory: plain(*shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"the stream of {device}")
    answer = are_finite(BAD.as_subclass(OnCard))
    assert recorded == ["the stream of cuda:1"]
    assert answer(False) is None and answer(True) is False


class Slow:
    """A device whose answers arrive `late` questions later, or when they are waited for."""

    def __init__(self, late: int) -> None:
        self.late, self.asked, self.waited = late, 0, 0

    def __call__(self, numbers: Tensor) -> Answer:
        self.asked += 1
        number, finite = self.asked, bool(torch.isfinite(numbers).all())

        def answer(wait: bool) -> bool | None:
            self.waited += wait
            return finite if wait or self.asked >= number + self.late else None

        return answer


@pytest.mark.parametrize("late", [0, 1, 2])
def test_elsewhere_it_is_told_when_it_is_known_and_no_step_waits(late: int) -> None:
    device = Slow(late)
    check = FiniteCheck(device)
    check(GOOD)
    steps = 0
    with pytest.raises(Diverged) as error:
        for numbers in (BAD, *[GOOD] * 5):
            steps += 1
            check(numbers)
    assert (error.value.step, steps, device.waited) == (2, 1 + late, 0)


def test_the_end_of_the_run_waits_for_all_of_it() -> None:
    device = Slow(100)
    check = FiniteCheck(device)
    for numbers in (GOOD, GOOD, BAD, GOOD):
        check(numbers)
    with pytest.raises(Diverged) as error:
        check.finish(GOOD)
    assert error.value.step == 3
    sound = FiniteCheck(Slow(100))
    sound(GOOD)
    sound.finish(GOOD)


def test_the_tensor_that_is_no_number_is_found_and_named(tmp_path: Path) -> None:
    state = {"a": torch.ones(2, 2), "b": torch.ones(300, 300).bfloat16(), "c": torch.ones(4, dtype=torch.int32)}
    save_file(state, tmp_path / "good.safetensors")
    state["a"][1, 1] = 4e37
    save_file(state, tmp_path / "large.safetensors")
    state["b"][200, 7] = float("inf")
    save_file(state, tmp_path / "bad.safetensors")
    expected = {"good": "None", "large": "a in large.safetensors contains numbers up to 4e+37", "bad": "b in bad.safe"}
    for name, words in expected.items():
        file = open_weights(tmp_path / f"{name}.safetensors")
        told = unsound({key: whole(file, entry) for key, entry in file.entries.items()})
        assert words in str(told)


def test_no_picture_is_made_of_what_is_no_number() -> None:
    with pytest.raises(NotFinite, match="NaN"):
        to_pil(torch.full((2, 2, 3), float("nan")))


def test_text_beyond_the_number_type_is_told(seeded: Seeded) -> None:
    """In float16 the blocks replace what is not finite: a prompt weight of 1e30 made noise without a message."""
    model = NetworkModel(lambda inputs: torch.zeros_like(inputs.x), FluxShift(), dtype=torch.float16)
    latent = torch.zeros(1, 16, 8, 8)
    for scale, largest in ((1e30, "e+30, and float16 ends at 65504"), (1.0, None)):
        text: Any = [[scale * seeded("text", (1, 4, 32)), {"pooled_output": seeded("pooled", (1, 32))}]]
        guider = BasicGuider(model, text)
        if largest is None:
            sample(guider, Sampler("euler"), torch.tensor([1.0, 0.0]), latent, latent + 1, seed=1)
            continue
        with pytest.raises(NotFinite, match=re.escape(largest)):
            sample(guider, Sampler("euler"), torch.tensor([1.0, 0.0]), latent, latent + 1, seed=1)
