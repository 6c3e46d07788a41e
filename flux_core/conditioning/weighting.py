r"""Prompt syntax: emphasis in parentheses, escapes, and `embedding:` names.

    a (cat:1.3) and ((dog)) by \(me\)  ->  "a " 1   "cat" 1.3   " and " 1   "dog" 1.21   " by (me)" 1

A group multiplies the weight around it by 1.1, or, with a number after its last colon, has that weight regardless of
the weight around it. Square brackets have no meaning. The rules are ComfyUI's, including its handling of unbalanced
parentheses, so that a prompt means the same in both. Uses no tokenizer and no encoder: text in, text with weights out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

EMPHASIS = 1.1
# Groups nested deeper than this are literal text; 1.1 ** 100 is far beyond any use, and the work stays linear.
DEEPEST = 100

# Escaped parentheses are replaced during parsing by characters that no prompt contains.
_ESCAPES = {"\\(": "\ue0fe\ue0f0", "\\)": "\ue0fe\ue0f1"}
_PARENTHESIS = re.compile(r"[()]")
_BEFORE_EMBEDDING = re.compile(r"[ \n](?=embedding:)")


@dataclass(frozen=True)
class Segment:
    """A part of the prompt that is tokenised separately, and the weight of its tokens."""

    text: str
    weight: float


@dataclass(frozen=True)
class EmbeddingName:
    """The name after `embedding:` up to the first white space, and the text behind it."""

    name: str
    rest: str


def segments(prompt: str) -> list[Segment]:
    """Split a prompt at its weight groups, in reading order; escapes are resolved, empty segments left out."""
    return [Segment(unescape(text), weight) for text, weight in weighted(escape(prompt), 1.0) if text]


def weighted(escaped: str, weight: float) -> list[tuple[str, float]]:
    """(text, weight) of every part of an escaped prompt, in reading order; `weight` is that outside of all groups."""
    return list(_read(escaped, weight, depth=0))


def pieces(text: str) -> Iterator[str | EmbeddingName]:
    """Split a segment before each `embedding:` that starts it or follows a space or newline.

    An `embedding:` without a name stays text.
    """
    for part in _BEFORE_EMBEDDING.split(text):
        words = part.removeprefix("embedding:").split() if part.startswith("embedding:") else []
        if words:
            yield EmbeddingName(words[0], " ".join(words[1:]))
        elif part:
            yield part


def _read(text: str, weight: float, depth: int) -> Iterator[tuple[str, float]]:
    if depth == DEEPEST:
        yield text, weight
        return
    for item in _top_level(text):
        if len(item) >= 2 and item.startswith("(") and item.endswith(")"):
            yield from _read(*_weighted(item[1:-1], weight), depth + 1)
        else:
            yield item, weight


def _top_level(text: str) -> list[str]:
    """Split a text into balanced groups and the text between them.

    Every parenthesis counts. So after a superfluous closing one, the next group only brings the count back to zero and
    is not a group; and after an opening one that is never closed, the rest stays in one piece.
    """
    items, begin, level = [], 0, 0
    for match in _PARENTHESIS.finditer(text):
        if match.group() == "(":
            if level == 0:
                items.append(text[begin : match.start()])
                begin = match.start()
            level += 1
        else:
            level -= 1
            if level == 0:
                items.append(text[begin : match.end()])
                begin = match.end()
    items.append(text[begin:])
    return [item for item in items if item]


def _weighted(inside: str, outer: float) -> tuple[str, float]:
    """The text of a group without its number, and its weight."""
    text, colon, number = inside.rpartition(":")
    if colon and text:
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if math.isfinite(weight):  # "nan" and "inf" are words here: as weights they would make the image black
            return text, weight
    return inside, outer * EMPHASIS


def escape(text: str) -> str:
    """Replace escaped parentheses by characters that are no parentheses."""
    for written, carried in _ESCAPES.items():
        text = text.replace(written, carried)
    return text


def unescape(text: str) -> str:
    """The parentheses that `escape` replaced, without their backslash."""
    for written, carried in _ESCAPES.items():
        text = text.replace(carried, written[1])
    return text
