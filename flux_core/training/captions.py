"""Captions of a scene: the words, the word orders, and which attributes are left out.

`caption` describes a `Scene`. Attributes are sometimes left out, so that a short prompt leaves them open; only a
missing position means the middle. The tiny model knows only the words of this file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from .drawing import COLOURS, DIGITS, Scene

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FIGURE_WORDS: dict[str, tuple[str, ...]] = {
    **{
        digit: (digit, word, f"digit {digit}", f"digit {word}", f"number {digit}", f"number {word}", f"figure {word}")
        for digit, word in zip(DIGITS, NUMBER_WORDS, strict=True)
    },
    "circle": ("circle", "circle", "disc", "dot"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "diamond", "rhombus"),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "cross", "plus"),
    "ring": ("ring", "ring", "hoop"),
}
COLOUR_WORDS = {colour: (colour,) for colour in COLOURS} | {"purple": ("purple", "purple", "violet")}
POSITION_WORDS = {
    "centre": ("in the middle", "in the centre", "in the center", "centre", "at the centre"),
    "left": ("on the left", "left", "at the left", "on the left side"),
    "right": ("on the right", "right", "at the right", "on the right side"),
    "top": ("at the top", "top", "on top", "above"),
    "bottom": ("at the bottom", "bottom", "on the bottom", "below"),
}
GROUND_WORDS = {
    "white": ("white",), "black": ("black",), "grey": ("grey", "gray"), "navy": ("navy", "navy", "dark blue"),
}  # fmt: skip
GROUND_PHRASES = ("on a {} background", "on {}", "{} background", "in front of {}", "on a {} ground")
OPENINGS = ("", "", "", "", "a picture of ", "a drawing of ", "an image of ", "draw ", "show me ")

SAID = {"figure": 0.97, "colour": 0.92, "position": 1.0, "background": 0.6}  # how often each attribute is mentioned
MIDDLE_SAID = 0.5  # how often the middle is mentioned; other positions always are
NOISE = 0.06  # how often a caption contains a meaningless word, so that unknown words do no harm


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the scene: every word is true, and usually some attributes are left out."""
    chances = SAID | ({"position": MIDDLE_SAID} if scene.position == "centre" else {})
    said = {attribute for attribute, often in chances.items() if rng.random() < often}
    text = describe(scene, said, rng)
    return _with_unknown_word(text, rng) if rng.random() < NOISE else text


def describe(scene: Scene, said: Collection[str], rng: np.random.Generator) -> str:
    """The scene in words, mentioning those of "figure", "colour", "position" and "background" that are in `said`."""
    figure = _one(FIGURE_WORDS[scene.figure], rng) if "figure" in said else _one(("thing", "figure", "object"), rng)
    named = f"{_one(COLOUR_WORDS[scene.colour], rng)} {figure}" if "colour" in said else figure
    named = _one(("a ", "a ", "a ", "", "the "), rng) + named
    where = _one(POSITION_WORDS[scene.position], rng) if "position" in said else ""
    ground = _one(GROUND_WORDS[scene.background], rng) if "background" in said else ""
    ground = _one(GROUND_PHRASES, rng).format(ground) if ground else ""
    return _arranged(named, where, ground, rng)


def _with_unknown_word(text: str, rng: np.random.Generator) -> str:
    letters = rng.integers(ord("a"), ord("z") + 1, size=int(rng.integers(3, 9)))
    words = text.split(" ")
    words.insert(int(rng.integers(len(words) + 1)), "".join(map(chr, letters)))
    return " ".join(words)


def _arranged(named: str, where: str, ground: str, rng: np.random.Generator) -> str:
    """The parts in one of the usual orders, with a comma or without."""
    comma = _one((" ", " ", ", "), rng)
    if where and rng.random() < 0.15:
        return comma.join(part for part in (where, named, ground) if part)
    if ground and rng.random() < 0.15:
        return ", ".join(part for part in (ground, comma.join(part for part in (named, where) if part)) if part)
    return comma.join(part for part in (_one(OPENINGS, rng) + named, where, ground) if part)


def vocabulary() -> list[str]:
    """Every word a caption can contain, each once, in a fixed order."""
    tables = (FIGURE_WORDS, COLOUR_WORDS, POSITION_WORDS, GROUND_WORDS)
    phrases = [phrase for table in tables for words in table.values() for phrase in words]
    phrases += [*GROUND_PHRASES, *OPENINGS, "thing figure object a the an"]
    words = " ".join(phrases).replace("{}", " ").split()
    return list(dict.fromkeys(words))


def _one(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
