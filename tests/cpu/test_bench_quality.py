"""`sluice bench quality` on the shipped model, small."""

from __future__ import annotations

import argparse
import math

import numpy as np
import pytest
from sluice.flux_core.bench import quality
from sluice.flux_core.bench.quality import psnr


def test_psnr_is_in_decibels_of_8_bit_values() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, grey) == pytest.approx(20 * math.log10(255 / 51))


def test_every_setting_is_compared_with_the_exact_images(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    rows = quality.measure(parser.parse_args(["--prompts", "2", "--steps", "8"]))["settings"]
    assert list(rows) == ["off", "fast", "faster", "int8", "int8, fast"] and rows["off"]["psnr_worst"] is None
    assert rows["faster"]["computed"] <= rows["fast"]["computed"] < 8
    assert 20 < rows["faster"]["psnr_worst"] <= rows["faster"]["psnr_median"]
    assert 40 < rows["int8"]["psnr_worst"] < 100, "other numbers, the same image"
    assert "PSNR worst" in capsys.readouterr().out
