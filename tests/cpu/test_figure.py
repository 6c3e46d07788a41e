"""The folder and the prompts of `sluice bench figure`, and the recogniser that judges its images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sluice.flux_core.bench.figure import (
    FIGURE,
    PICTURES,
    TRIGGER,
    UNSEEN_COLOURS,
    by_novelty,
    interval,
    learned,
    recogniser,
    triggered,
    write_pictures,
)  # fmt: skip
from sluice.flux_core.training.captions import POSITION_WORDS
from sluice.flux_core.training.drawing import BACKGROUNDS, COLOURS, FIGURES, UNSEEN
from sluice.flux_core.training.lora.folder import read_folder
from sluice.flux_core.training.recognise import recognise

OTHER_PLACES = {text for place, texts in POSITION_WORDS.items() if place != "centre" for text in texts}


def test_the_recogniser_knows_the_figure_in_drawings_that_are_not_trained_on_and_no_other_figure_as_it() -> None:
    assert recogniser((*FIGURES, *UNSEEN), 12) == {"recogniser_figure": 1.0, "recogniser_others": 1.0}
    assert recogniser(FIGURES, 3)["recogniser_figure"] == 0, "without the class nothing is recognised as the figure"


def test_the_twelve_images_show_the_figure_in_the_middle_and_their_captions_say_nothing_else(tmp_path: Path) -> None:
    write_pictures(tmp_path / "3_figure")
    folder = read_folder(tmp_path)
    assert len(folder.pictures) == PICTURES and folder.without_caption == 0
    for picture in folder.pictures:
        seen = recognise(np.asarray(Image.open(picture.path), np.float32) / np.float32(255), (*FIGURES, *UNSEEN))
        assert (seen.figure, seen.position, picture.repeats) == (FIGURE, "centre", 3)
        for caption in picture.captions:
            assert TRIGGER in caption.replace(",", " ").split(), caption
            assert not any(caption.endswith(place) or f"{place}," in caption for place in OTHER_PLACES), caption


def test_every_background_is_on_three_of_the_twelve_and_prompts_also_have_what_none_of_them_has() -> None:
    scenes, asked = learned(), triggered(40)
    assert Counter(scene.background for scene in scenes) == dict.fromkeys(BACKGROUNDS, 3)
    assert {scene.colour for scene in scenes} == set(COLOURS) - set(UNSEEN_COLOURS)
    pairs = {(scene.colour, scene.background) for scene in scenes}
    assert len(pairs) == PICTURES, "no two of the twelve are the same image"
    places = by_novelty(asked)
    assert sorted(number for these in places.values() for number in these) == list(range(40))
    for kind, these in places.items():
        assert len(these) >= 5, kind
        for scene in (asked[number].scene for number in these):
            assert ((scene.colour, scene.background) in pairs) == (kind == "seen_pair")
            assert (scene.colour in UNSEEN_COLOURS) == (kind == "new_colour")


def test_prompts_with_the_trigger_name_no_place_or_always_one() -> None:
    middle, placed = triggered(20), triggered(20, places=True)
    assert all(prompt.scene.position == "centre" and "position" not in prompt.said for prompt in middle)
    assert all("position" in prompt.said for prompt in placed)
    assert len({prompt.scene.position for prompt in placed}) > 2
    assert len({prompt.seed for prompt in middle}) == 20


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval(0, 40) == pytest.approx((0.0, 0.0876), abs=1e-4)
