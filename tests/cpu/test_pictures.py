"""The training data of the tiny model: drawings, captions, words, and the latent code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sluice.flux_core.conditioning.vocabulary import load_clip, load_t5
from sluice.flux_core.models import latents
from sluice.flux_core.training.captions import caption, describe, vocabulary
from sluice.flux_core.training.code import Code, fit
from sluice.flux_core.training.drawing import (
    BACKGROUNDS,
    FIGURES,
    POSITIONS,
    SHIFTS,
    SIDE,
    SIZES,
    Scene,
    collage,
    draw,
    mask,
    random_scene,
)
from sluice.flux_core.training.recipe import Sizes
from sluice.flux_core.training.recognise import RIM, recognise
from sluice.flux_core.training.words import learn_merges, write_clip, write_t5


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(count)]


@pytest.mark.parametrize("figure", FIGURES)
def test_no_figure_touches_the_part_of_the_rim_that_recognition_reads_the_ground_from(figure: str) -> None:
    far = [Scene(figure, "red", place, "white", (shift, shift), max(SIZES)) for place in POSITIONS for shift in SHIFTS]
    ground = np.array(BACKGROUNDS["white"], np.float32) / 255
    rim = np.ones((SIDE, SIDE), bool)
    rim[RIM:-RIM, RIM:-RIM] = False
    covered = np.abs(draw(far) - ground).max(axis=-1)[:, rim] > 0.5
    assert covered.mean(axis=1).max() < 0.1


def test_a_scene_is_the_same_picture_every_time_and_two_figures_are_never_the_same() -> None:
    assert np.array_equal(draw(scenes(5)), draw(scenes(5)))
    masks = np.stack([mask(figure, 30) for figure in FIGURES]).reshape(len(FIGURES), -1)
    overlap = 2 * masks @ masks.T / np.add.outer((masks**2).sum(1), (masks**2).sum(1))
    assert (overlap - np.eye(len(FIGURES))).max() < 0.95


def test_recognition_is_the_inverse_of_drawing() -> None:
    asked = scenes(24, seed=1)
    for scene, picture in zip(asked, draw(asked), strict=True):
        seen = recognise(picture)
        assert (seen.figure, seen.colour, seen.position, seen.background) == (
            scene.figure, scene.colour, scene.position, scene.background,
        )  # fmt: skip


def test_recognition_sees_no_figure_where_there_is_none() -> None:
    rng = np.random.default_rng(2)
    flat = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    blob = flat.copy()
    blob[40:50, 10:100] = (1, 0, 0)
    for picture in (rng.random((SIDE, SIDE, 3), dtype=np.float32), flat, blob):
        assert recognise(picture).figure is None


def test_captions_use_known_words_only_except_the_ones_that_mean_nothing(tmp_path: Path) -> None:
    rng, known = np.random.default_rng(3), set(vocabulary())
    said = {"figure", "colour", "position", "background"}
    for scene in scenes(300, seed=3):
        assert set(describe(scene, said, rng).replace(",", "").split()) <= known


def test_a_caption_names_what_it_says_and_only_that() -> None:
    rng = np.random.default_rng(4)
    for scene in scenes(100, seed=4):
        words = describe(scene, {"colour"}, rng).split()
        assert {scene.colour, "violet" if scene.colour == "purple" else scene.colour} & set(words)
        assert not set(words) & {"left", "right", "top", "bottom", "above", "below", "background"}


def test_every_word_is_one_token_for_both_encoders_and_unknown_words_stay_short(tmp_path: Path) -> None:
    write_t5(tmp_path / "t5", vocabulary(), Sizes().t5_length)
    write_clip(tmp_path / "clip", vocabulary())
    t5, clip = load_t5(tmp_path / "t5"), load_clip(tmp_path / "clip")
    for word in vocabulary():
        assert len(t5.vocabulary.encode(word, add_special_tokens=False).ids) == 1
        assert len(clip.vocabulary.encode(word, add_special_tokens=False).ids) == 1
    unknown = t5.vocabulary.encode("A Gorgeous RED, Star!", add_special_tokens=False).tokens
    assert [token for token in unknown if token.strip("▁") in vocabulary()] == ["▁a", "▁red", "▁star"]
    assert len(unknown) == 4
    spelled = clip.vocabulary.encode("gorgeous").tokens
    assert len(spelled) > 1 and "".join(spelled) == "gorgeous</w>"


def test_no_caption_is_longer_than_the_text_the_transformer_is_trained_on(tmp_path: Path) -> None:
    write_t5(tmp_path, vocabulary(), Sizes().t5_length)
    t5, rng = load_t5(tmp_path), np.random.default_rng(5)
    rows = {len(t5.row(caption(scene, rng)).tokens) for scene in scenes(2000, seed=5)}
    assert rows == {Sizes().t5_length}


def test_merges_make_every_word_one_entry() -> None:
    words = [b"three", b"tree", b"red", b"circle", b"circles"]
    merges = learn_merges(words)
    made = {first + second for first, second in merges}
    assert {word.decode() + "</w>" for word in words} <= made


@pytest.fixture(scope="module")
def code() -> Code:
    rng = np.random.default_rng(6)
    pictures = np.concatenate([draw(scenes(96, seed=6)), np.stack([collage(rng) for _ in range(48)])])
    return fit(torch.from_numpy(pictures).movedim(-1, 1) * 2 - 1)


def test_the_latent_code_carries_unseen_scenes_at_unit_scale(code: Code) -> None:
    pixels = torch.from_numpy(draw(scenes(16, seed=7))).movedim(-1, 1) * 2 - 1
    latent = code.encode(pixels)
    assert latent.shape == (16, latents.CHANNELS, SIDE // 8, SIDE // 8)
    assert 0.7 < latents.process_in(latent).std() < 1.4
    error = ((code.decode(latent) - pixels) / 2).square().mean()
    assert error < 10**-2.8  # 28 dB


def test_the_latent_preview_of_flux_shows_the_code_in_true_colours(code: Code) -> None:
    pixels = torch.from_numpy(draw(scenes(8, seed=8))).movedim(-1, 1) * 2 - 1
    small = torch.nn.functional.avg_pool2d(pixels, 8)
    for latent, wanted in zip(latents.process_in(code.encode(pixels)), small, strict=True):
        seen = latents.preview(latent).movedim(-1, 0) / 127.5 - 1
        assert torch.corrcoef(torch.stack((seen.flatten(), wanted.flatten())))[0, 1] > 0.99
