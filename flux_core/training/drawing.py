"""The training images of the tiny model: one digit or one shape, drawn by this file alone.

A `Scene` has what a caption can mention (figure, colour, position, background) and random details (a shift of a few
pixels, the size). `draw` turns scenes into pixels. Every figure is defined here by its outline in a box of -1..1, x to
the right and y down, so no font is needed and the same scene gives the same image everywhere. Uses no tensor, no model
and no caption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SIDE = 128  # pixels, width and height of every picture
Mask = npt.NDArray[np.float32]  # [SIDE, SIDE], 1 where the figure is
Pixels = npt.NDArray[np.float32]  # [..., SIDE, SIDE, 3] in 0..1

DIGITS = tuple("0123456789")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
FIGURES = DIGITS + SHAPES
COLOURS = {
    "red": (224, 32, 32), "orange": (255, 140, 0), "yellow": (250, 225, 30), "green": (30, 160, 60),
    "cyan": (40, 205, 215), "blue": (40, 80, 230), "purple": (130, 45, 185), "pink": (255, 125, 185),
}  # fmt: skip
BACKGROUNDS = {"white": (248, 248, 248), "black": (12, 12, 12), "grey": (128, 128, 128), "navy": (14, 24, 80)}
POSITIONS = {"centre": (0, 0), "left": (-32, 0), "right": (32, 0), "top": (0, -32), "bottom": (0, 32)}

SIZES = (27, 28)  # half the height of a figure, in pixels
SHIFTS = (-2, 0, 2)  # how far a figure's centre may be from its named position, in pixels
STROKE = 0.36  # thickness of a digit's line, in the units of the outlines
OVERSAMPLE = 4

Point = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """One image in words and numbers. `shift` is (right, down) in pixels, `size` half the figure's height."""

    figure: str
    colour: str
    position: str
    background: str
    shift: tuple[int, int] = (0, 0)
    size: int = 28

    @property
    def centre(self) -> tuple[int, int]:
        """The figure's centre relative to the picture's, (right, down) in pixels."""
        right, down = POSITIONS[self.position]
        return right + self.shift[0], down + self.shift[1]


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene with every figure, colour, position and background equally likely.

    The named positions are whole tokens apart (16 pixels) and there are few shifts and sizes, so that the transformer
    learns each figure only a few times and not at every offset within a token.
    """
    figure, colour, position, background = _picked(rng)
    right, down = (int(value) for value in rng.choice(SHIFTS, size=2))
    return Scene(figure, colour, position, background, shift=(right, down), size=int(rng.choice(SIZES)))


def loose_scene(rng: np.random.Generator) -> Scene:
    """A scene with a less strict position and size: nearer to the middle, any shift, larger or smaller.

    For the autoencoder, which must encode a figure at any position, and for the transformer's first steps.
    """
    figure, colour, position, background = _picked(rng)
    right, down = (int(value) for value in rng.integers(-4, 5, size=2))
    inwards = (-np.sign(POSITIONS[position]) * 6).astype(int).tolist()
    return Scene(
        figure,
        colour,
        position,
        background,
        shift=(right + inwards[0], down + inwards[1]),
        size=int(rng.choice(range(27, 34))),
    )


def _picked(rng: np.random.Generator) -> list[str]:
    """One name of each table: figure, colour, position, background."""
    return [str(rng.choice(list(table))) for table in (FIGURES, COLOURS, POSITIONS, BACKGROUNDS)]


def draw(scenes: Sequence[Scene]) -> Pixels:
    """Pixels [B, SIDE, SIDE, 3] in 0..1, one picture per scene."""
    masks = np.stack([shifted(mask(scene.figure, scene.size), *scene.centre) for scene in scenes])[..., None]
    front = np.array([COLOURS[scene.colour] for scene in scenes], np.float32)[:, None, None] / np.float32(255)
    back = np.array([BACKGROUNDS[scene.background] for scene in scenes], np.float32)[:, None, None] / np.float32(255)
    pixels: Pixels = back + masks * (front - back)
    return pixels


def collage(rng: np.random.Generator) -> Pixels:
    """One image [SIDE, SIDE, 3] of several figures in any colours on a shaded background.

    The autoencoder is trained on these besides the scenes, so that it also encodes images that no caption describes.
    """
    corners = rng.random((2, 2, 3), dtype=np.float32)
    ramp = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None]
    sides = corners[:, 0, None] * (1 - ramp) + corners[:, 1, None] * ramp  # [2, SIDE, 3]
    picture: Pixels = (sides[0] * (1 - ramp[:, None]) + sides[1] * ramp[:, None]).astype(np.float32, copy=False)
    for _ in range(int(rng.integers(1, 7))):
        figure = mask(str(rng.choice(FIGURES)), int(rng.integers(10, 44)))
        place = shifted(figure, *(int(value) for value in rng.integers(-56, 57, size=2)))[..., None]
        picture = picture + place * (rng.random(3, dtype=np.float32) - picture)
    return picture


@lru_cache(maxsize=1024)
def mask(figure: str, size: int) -> Mask:
    """The figure in the middle of an image, `size` pixels from its centre to its top; edges are antialiased."""
    big = Image.new("L", (SIDE * OVERSAMPLE, SIDE * OVERSAMPLE))
    pen = Pen(ImageDraw.Draw(big), scale=size * OVERSAMPLE, middle=SIDE * OVERSAMPLE / 2)
    OUTLINES[figure](pen)
    shape: Mask = np.asarray(big.reduce(OVERSAMPLE), np.float32) / np.float32(255)
    return shape


def shifted(picture: Mask, right: int, down: int) -> Mask:
    """The same mask moved by whole pixels; parts outside the image are lost, new parts are empty."""
    padded = np.pad(picture, ((max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0))))
    top, left = max(-down, 0), max(-right, 0)
    return padded[top : top + SIDE, left : left + SIDE]


class Pen:
    """Draws outlines given in -1..1 onto the oversampled canvas."""

    def __init__(self, canvas: ImageDraw.ImageDraw, scale: float, middle: float, stroke: float = STROKE) -> None:
        """scale, middle: in pixels; stroke: thickness of lines, in the units of the outlines."""
        self.canvas, self.scale, self.middle, self.stroke = canvas, scale, middle, stroke

    def line(self, *points: Point) -> None:
        """A thick line through the points, with round joints and ends."""
        radius = self.stroke / 2 * self.scale
        places = [self._place(point) for point in points]
        self.canvas.line(places, fill=255, width=round(2 * radius))
        for x, y in places:
            self.canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)

    def area(self, *points: Point, fill: int = 255) -> None:
        """A filled polygon."""
        self.canvas.polygon([self._place(point) for point in points], fill=fill)

    def _place(self, point: Point) -> Point:
        return self.middle + point[0] * self.scale, self.middle + point[1] * self.scale


def _arc(centre: Point, radii: Point, start: float, end: float) -> list[Point]:
    """Points of an ellipse from angle `start` to `end` in degrees; 0 is right, 90 is down."""
    turns = [math.radians(start + (end - start) * step / 48) for step in range(49)]
    return [(centre[0] + radii[0] * math.cos(a), centre[1] + radii[1] * math.sin(a)) for a in turns]


def _six(turn: int) -> Callable[[Pen], None]:
    """A six (turn 1) or, upside down, a nine (turn -1)."""

    def outline(pen: Pen) -> None:
        curve = ((-0.5, 0.35), (-0.52, -0.5), (0.28, -0.85))
        steps = [step / 32 for step in range(33)]
        stem = [
            tuple((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t * t * c for a, b, c in zip(*curve, strict=True))
            for t in steps
        ]
        for points in (_arc((0, 0.35), (0.5, 0.5), 0, 360), stem):
            pen.line(*[(turn * x, turn * y) for x, y in points])

    return outline


def _ring(pen: Pen) -> None:
    pen.area(*_arc((0, 0), (0.95, 0.95), 0, 360))
    pen.area(*_arc((0, 0), (0.52, 0.52), 0, 360), fill=0)


def _star() -> list[Point]:
    radii = (1.0, 0.42)
    turns = [math.radians(-90 + 36 * step) for step in range(10)]
    return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a) + 0.08) for i, a in enumerate(turns)]


def _heart() -> list[Point]:
    turns = [math.tau * step / 96 for step in range(96)]
    return [
        (math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 15)
        for a in turns
    ]


def _eight(pen: Pen) -> None:
    pen.line(*_arc((0, -0.44), (0.4, 0.41), 0, 360))
    pen.line(*_arc((0, 0.42), (0.5, 0.43), 0, 360))


def _one(pen: Pen) -> None:
    pen.line((-0.38, -0.5), (0.05, -0.85), (0.05, 0.85))
    pen.line((-0.35, 0.85), (0.45, 0.85))


_CROSS = [(-0.32, -0.95), (0.32, -0.95), (0.32, -0.32), (0.95, -0.32), (0.95, 0.32), (0.32, 0.32)]

_ARROW = [(0.0, -0.95), (0.85, -0.05), (0.3, -0.05), (0.3, 0.95), (-0.3, 0.95), (-0.3, -0.05), (-0.85, -0.05)]

OUTLINES: dict[str, Callable[[Pen], None]] = {
    "0": lambda pen: pen.line(*_arc((0, 0), (0.48, 0.85), 0, 360)),
    "1": _one,
    "2": lambda pen: pen.line(*_arc((0, -0.4), (0.5, 0.45), 185, 395), (-0.5, 0.85), (0.52, 0.85)),
    "3": lambda pen: pen.line(
        *_arc((-0.05, -0.43), (0.47, 0.42), 205, 440), *_arc((-0.05, 0.42), (0.53, 0.43), 280, 515)
    ),
    "4": lambda pen: pen.line((0.22, 0.85), (0.22, -0.85), (-0.55, 0.38), (0.6, 0.38)),
    "5": lambda pen: pen.line(
        (0.45, -0.85), (-0.4, -0.85), (-0.45, -0.08), *_arc((-0.02, 0.3), (0.52, 0.55), 235, 515)
    ),
    "6": _six(1),
    "7": lambda pen: pen.line((-0.5, -0.85), (0.5, -0.85), (-0.15, 0.85)),
    "8": _eight,
    "9": _six(-1),
    "circle": lambda pen: pen.area(*_arc((0, 0), (0.95, 0.95), 0, 360)),
    "square": lambda pen: pen.area((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    "triangle": lambda pen: pen.area((0, -0.95), (1.0, 0.85), (-1.0, 0.85)),
    "diamond": lambda pen: pen.area((0, -1), (0.75, 0), (0, 1), (-0.75, 0)),
    "star": lambda pen: pen.area(*_star()),
    "heart": lambda pen: pen.area(*_heart()),
    "cross": lambda pen: pen.area(*_CROSS, *[(-x, -y) for x, y in _CROSS]),
    "ring": _ring,
    "arrow": lambda pen: pen.area(*_ARROW),
}
UNSEEN = ("arrow",)  # figures that the shipped model has never seen: for LoRAs to learn
