"""The similarity of two images: PSNR, and SSIM (Wang, Bovik, Sheikh and Simoncelli 2004, eq. 13)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from PIL import Image

WINDOW, SPREAD = 11, 1.5  # of the Gaussian, in pixels
K1, K2 = 0.01, 0.03


def psnr(one: Image.Image, other: Image.Image) -> float | None:
    """In dB over RGB; infinite for equal images, None for other sizes."""
    a, b = _pixels(one), _pixels(other)
    if a.shape != b.shape:
        return None
    error = float(((a - b) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(one: Image.Image, other: Image.Image) -> float | None:
    """The mean over pixels and channels, 1 for equal images; None for other sizes or sides shorter than the window."""
    a, b = _pixels(one), _pixels(other)
    if a.shape != b.shape or min(a.shape[-2:]) < WINDOW:
        return None
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    line = torch.exp(-(at**2) / (2 * SPREAD**2))
    window = (torch.outer(line, line) / line.sum() ** 2)[None, None]

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, window)

    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    ma, mb = mean(a), mean(b)
    va, vb, covariance = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    found = ((2 * ma * mb + c1) * (2 * covariance + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(found.mean())


def nearest(image: Path, others: Sequence[Path]) -> tuple[int, float | None, float | None]:
    """(index, psnr, ssim) of the one of `others`, at least one file, that is most similar to `image`."""
    from PIL import Image

    with Image.open(image) as shown:
        shown.load()
    found: list[tuple[float, int, float | None]] = []
    for index, path in enumerate(others):
        with Image.open(path) as other:
            decibels = psnr(shown, other)
            found.append((-1.0 if decibels is None else decibels, -index, decibels))
    _, index, decibels = max(found, key=lambda one: one[:2])
    with Image.open(others[-index]) as other:
        return -index, decibels, ssim(shown, other)


def _pixels(image: Image.Image) -> torch.Tensor:
    """[3, 1, height, width] in float64, 0 to 255."""
    array = np.asarray(image.convert("RGB"), dtype=np.float64)
    return torch.from_numpy(array).permute(2, 0, 1)[:, None]
