"""Recognises which scene an image shows, by comparing it with the renderings of the drawing program.

No network is used: the background colour is read at the border, the figure's colour where the image differs most from
the background, and the figure is the rendering with the best overlap, over all figures, sizes and positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .drawing import BACKGROUNDS, COLOURS, FIGURES, POSITIONS, SIDE, mask

RIM = 4  # pixels at the border that are background in every scene
SURE = 0.75  # least overlap (Dice) of a figure that counts as recognised
SEEN = 0.15  # least colour distance of a figure from the background
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """The recognised attributes; None for those not recognised. `overlap` is 1 for a perfect rendering."""

    figure: str | None
    colour: str | None
    position: str | None
    background: str
    overlap: float


def recognise(picture: Array, figures: tuple[str, ...] = FIGURES) -> Seen:
    """Recognise the scene of an image [SIDE, SIDE, 3] in 0..1. figures: those that may be in it."""
    rim = np.concatenate([picture[:RIM].reshape(-1, 3), picture[-RIM:].reshape(-1, 3),
                          picture[:, :RIM].reshape(-1, 3), picture[:, -RIM:].reshape(-1, 3)])  # fmt: skip
    ground = np.median(rim, axis=0)
    background = nearest(ground, BACKGROUNDS)
    distance = np.linalg.norm(picture - ground, axis=-1)
    far = np.sort(distance, axis=None)[-SIDE:].mean()  # the hundred or so pixels that differ most
    if far < SEEN:
        return Seen(None, None, None, background, 0.0)
    colour = np.median(picture[distance > 0.6 * far], axis=0)
    along = colour - ground
    shape = np.clip((picture - ground) @ along / (along @ along), 0, 1).astype(np.float32)
    figure, (right, down), overlap = best_overlap(shape, figures)
    if overlap < SURE:
        return Seen(None, nearest(colour, COLOURS), None, background, overlap)
    position = min(POSITIONS, key=lambda name: np.hypot(POSITIONS[name][0] - right, POSITIONS[name][1] - down))
    return Seen(figure, nearest(colour, COLOURS), position, background, overlap)


def nearest(colour: Array, table: Mapping[str, tuple[int, int, int]]) -> str:
    """The name of the nearest colour in the table."""
    return min(table, key=lambda name: float(np.linalg.norm(colour - np.array(table[name]) / 255)))


def best_overlap(shape: Array, figures: tuple[str, ...] = FIGURES) -> tuple[str, tuple[int, int], float]:
    """The figure, its (right, down) from the middle and its overlap 2 |a b| / (|a|^2 + |b|^2), at their best."""
    names, spectra, powers = _renderings(figures)
    products = np.fft.irfft2(np.fft.rfft2(shape) * spectra, s=(SIDE, SIDE))  # [N, SIDE, SIDE], by shift
    overlap = 2 * products / ((shape**2).sum() + powers[:, None, None])
    which, down, right = np.unravel_index(int(overlap.argmax()), overlap.shape)
    from_middle = [(int(shift) + SIDE // 2) % SIDE - SIDE // 2 for shift in (right, down)]
    return names[which], (from_middle[0], from_middle[1]), float(overlap.max())


@lru_cache(maxsize=2)
def _renderings(figures: tuple[str, ...]) -> tuple[list[str], npt.NDArray[np.complex128], npt.NDArray[np.float64]]:
    """Every figure in a range of sizes: names, conjugate spectra [N, SIDE, SIDE // 2 + 1], sums of squares [N]."""
    kinds = [(figure, size) for figure in figures for size in range(24, 34, 2)]
    masks = np.stack([mask(figure, size) for figure, size in kinds]).astype(np.float64)
    return [figure for figure, _ in kinds], np.fft.rfft2(masks).conj(), (masks**2).sum(axis=(1, 2))
