"""`sluice bench quality` on the shipped model, small."""

from __future__ import annotations

import argparse
import math

import numpy as np
import pytest
from sluice.flux_core.bench import quality
from sluice.flux_core.bench.quality import psnr, seen_alike
from sluice.flux_core.training.drawing import Scene, draw


def test_psnr_is_in_decibels_of_8_bit_values() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, grey) == pytest.approx(20 * math.log10(255 / 51))


def test_images_are_alike_if_the_same_scene_is_seen_in_them() -> None:
    scenes = [
        Scene("3", "red", "left", "black"),
        Scene("3", "red", "left", "black"),
        Scene("3", "red", "right", "black"),
    ]
    shown = [(np.asarray(picture) * 255).astype(np.uint8) for picture in draw(scenes)]
    assert seen_alike(shown[0], shown[1]) and not seen_alike(shown[0], shown[2])


def test_every_setting_is_compared_with_the_exact_images(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    rows = quality.measure(parser.parse_args(["--prompts", "2", "--steps", "8"]))["settings"]
    assert list(rows) == ["off", "fast", "faster", "int8", "int8, fast"] and rows["off"]["psnr_worst"] is None
    assert rows["faster"]["computed"] <= rows["fast"]["computed"] < 8
    assert 20 < rows["faster"]["psnr_worst"] <= rows["faster"]["psnr_median"]
    assert 40 < rows["int8"]["psnr_worst"] < 100, "other numbers, the same image"
    assert rows["off"]["seen_alike"] == rows["int8"]["seen_alike"] == 2
    assert "PSNR worst" in capsys.readouterr().out
