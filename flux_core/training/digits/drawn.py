"""Digits drawn like handwriting: the outlines of drawing.py with random thickness, slant, rotation, size and position.

The same seed gives the same images everywhere. Uses no tensors and no model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ..drawing import DIGITS, OUTLINES, Pen

SIDE, OVERSAMPLE = 28, 4
THICKNESS = (0.16, 0.34)  # of a stroke, in the units of the outlines (half a digit's height is 1)
HALF = (7.5, 10.5)  # half a digit's height, in pixels
SLANT, TURN, STRETCH, SHIFT = 0.25, 0.15, 0.2, 2.0  # shear; radians; width against height; pixels


def draw_digits(seed: int, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images [count, 28, 28], white on black, and labels [count]: 0 to 9, repeated."""
    rng = np.random.default_rng([seed, 28])
    labels = (np.arange(count) % 10).astype(np.uint8)
    return np.stack([_draw(DIGITS[label], rng) for label in labels]), labels


def _draw(digit: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One digit: drawn upright, then slanted, turned, stretched and shifted in one affine step."""
    side = SIDE * OVERSAMPLE
    half = float(rng.uniform(*HALF)) * OVERSAMPLE
    canvas = Image.new("L", (side, side))
    OUTLINES[digit](Pen(ImageDraw.Draw(canvas), half, side / 2, float(rng.uniform(*THICKNESS))))
    turn, slant = rng.uniform(-TURN, TURN), rng.uniform(-SLANT, SLANT)
    wide = 1 + rng.uniform(-STRETCH, STRETCH)
    shift = rng.uniform(-SHIFT, SHIFT, 2) * OVERSAMPLE
    there = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.array([[wide, slant], [0, 1]])
    back = np.linalg.inv(there)
    offset = side / 2 - back @ (side / 2 + shift)
    rows = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    moved = canvas.transform((side, side), Image.Transform.AFFINE, tuple(map(float, rows)), Image.Resampling.BILINEAR)
    return np.asarray(moved.reduce(OVERSAMPLE), np.uint8)
