"""Previews cost less than 2 % of the time, for any duration of a step."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from sluice.flux_core.images.previews import SIZE, Throttle, jpeg


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("step, cost, shown", [(1.0, 0.01, 100), (0.01, 0.01, 2), (0.1, 0.005, 34)])
def test_previews_take_a_fiftieth_of_the_time_and_come_at_each_step_if_they_can(
    step: float, cost: float, shown: int
) -> None:
    clock = Clock()
    throttle = Throttle(clock)
    spent = made = 0.0

    def preview() -> Image.Image:
        nonlocal spent
        clock.now += cost
        spent += cost
        return Image.new("RGB", (8, 8))

    for _ in range(100):
        clock.now += step
        made += throttle.make(preview) is not None
    assert made == shown
    assert spent - cost <= clock.now / 50


def test_a_preview_that_is_not_wanted_yet_is_not_made() -> None:
    clock = Clock()
    throttle = Throttle(clock)

    def first() -> Image.Image:
        clock.now += 1
        return Image.new("RGB", (8, 8))

    assert throttle.make(first) is not None
    assert throttle.make(lambda: pytest.fail("made too early")) is None


def test_previews_are_jpeg_of_the_pictures_size_as_far_as_they_fit_into_their_square() -> None:
    for size, fitted in (((2048, 1024), (SIZE, SIZE // 2)), ((256, 192), (SIZE, 384)), ((16, 12), (128, 96))):
        image = Image.open(io.BytesIO(jpeg(Image.new("RGBA", size, "red"))))
        assert image.format == "JPEG" and image.size == fitted


def test_a_preview_waits_for_the_cards_that_are_used_and_touches_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a card makes this process allocate memory there."""
    waited: list[int] = []

    class Stream:
        def __init__(self, card: int) -> None:
            self.card = card

        def synchronize(self) -> None:
            waited.append(self.card)

    answers = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 3,
        "memory_reserved": lambda card: 1000 if card == 1 else 0, "current_stream": Stream,
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    assert Throttle().make(lambda: Image.new("RGB", (4, 4))) is not None
    assert waited == [1]
