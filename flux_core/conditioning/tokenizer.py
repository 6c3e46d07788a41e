"""Prompts to token rows: CLIP's in chunks of 77, T5's in one row of at least 256.

All special ids are part of the vocabulary (read by `vocabulary.py`), so that a small one works like a large one.
Depends on the row layout; uses no files, no encoder, no prompt weights and no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from .weighting import EmbeddingName, pieces, segments

log = logging.getLogger(__name__)

CLIP_LENGTH = 77  # rows of CLIP-L's position table
T5_LENGTH = 256  # length to which FLUX.1 pads T5's row
SPLITTABLE = 8  # a group of at least this many tokens may be split by the end of a chunk


@dataclass(frozen=True)
class Vector:
    """One row of a textual inversion file, in the place of a token id."""

    source: Hashable  # the file and its state
    row: int
    values: Any = field(compare=False, repr=False)  # Tensor [width]


Token = int | Vector
Lookup = Callable[[str], Sequence[Vector] | None]  # the vectors of an `embedding:` name, None if there are none


@dataclass(frozen=True)
class Row:
    """The input of one encoder call: tokens and as many prompt weights."""

    tokens: tuple[Token, ...]
    weights: tuple[float, ...]

    @property
    def weighted(self) -> bool:
        return any(weight != 1.0 for weight in self.weights)


_Group = list[tuple[Token, float]]


@dataclass(frozen=True)
class ClipTokenizer:
    """CLIP's byte-pair encoding, laid out as start, up to `length` - 2 tokens, end, padding."""

    vocabulary: Tokenizer
    start: int
    end: int
    pad: int
    length: int = CLIP_LENGTH

    def rows(self, prompt: str, lookup: Lookup | None = None) -> list[Row]:
        """The prompt in chunks of `length`, at least one."""
        chunks: list[_Group] = [[]]
        room = self.length - 2
        for group in _groups(self.vocabulary, prompt, lookup):
            moves_whole = len(group) < SPLITTABLE and len(group) <= room
            while len(group) > room - len(chunks[-1]):
                cut = 0 if moves_whole else room - len(chunks[-1])
                chunks[-1] += group[:cut]
                group = group[cut:]
                chunks.append([])
            chunks[-1] += group
        return [self._row(chunk) for chunk in chunks]

    def empty_row(self, length: int) -> Row:
        """The reference for prompt weights: start, end, padding."""
        return _row([(token, 1.0) for token in (self.start, self.end)], self.pad, length)

    def _row(self, chunk: _Group) -> Row:
        return _row([(self.start, 1.0), *chunk, (self.end, 1.0)], self.pad, self.length)


@dataclass(frozen=True)
class T5Tokenizer:
    """T5's SentencePiece vocabulary, laid out as tokens, end, padding to at least `length`; never truncated."""

    vocabulary: Tokenizer
    end: int
    pad: int
    length: int = T5_LENGTH

    def row(
        self, prompt: str, lookup: Lookup | None = None, *, min_padding: int = 0, min_length: int | None = None
    ) -> Row:
        """The whole prompt in one row. `min_padding` pad tokens are always added after the end."""
        tokens = [token for group in _groups(self.vocabulary, prompt, lookup) for token in group]
        tokens.append((self.end, 1.0))
        least = self.length if min_length is None else min_length
        return _row(tokens, self.pad, max(len(tokens) + min_padding, least))

    def empty_row(self, length: int) -> Row:
        """The reference for prompt weights: end, padding."""
        return _row([(self.end, 1.0)], self.pad, length)


def _row(tokens: _Group, pad: int, length: int) -> Row:
    padded = [*tokens, *[(pad, 1.0)] * (length - len(tokens))]
    return Row(tuple(token for token, _ in padded), tuple(weight for _, weight in padded))


def _groups(vocabulary: Tokenizer, prompt: str, lookup: Lookup | None) -> Iterator[_Group]:
    """The prompt's tokens in groups that were tokenised together: a segment's text, or one embedding."""
    for segment in segments(prompt):
        for piece in pieces(segment.text) if lookup else [segment.text]:
            text = piece
            if lookup and isinstance(piece, EmbeddingName):
                vectors, text = _find_embedding(piece, lookup)
                if vectors is None:
                    log.warning("embedding:%s is not in any of the embeddings folders and is left out.", piece.name)
                else:
                    yield [(vector, segment.weight) for vector in vectors]
            if text:
                ids = vocabulary.encode(text, add_special_tokens=False).ids
                yield [(token, segment.weight) for token in ids]


def _find_embedding(piece: EmbeddingName, lookup: Lookup) -> tuple[Sequence[Vector] | None, str]:
    """The vectors of a name, and the rest of the text; commas around a name are tried as part of it, then as text."""
    vectors = lookup(piece.name)
    bare = piece.name.strip(",")
    if vectors is None and bare and bare != piece.name:
        return lookup(bare), f"{piece.name.replace(bare, '', 1)} {piece.rest}"
    return vectors, piece.rest
