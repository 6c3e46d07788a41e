"""Blind votes on comparisons: which of two images of the same prompt is better, kept in SQLite.

The server draws a pair: two settings, one prompt and seed, left and right at random. The voter sees only the number of
the pair. Voters get pairs that they have not judged, of the two settings with the fewest votes.

The rate of a setting with w wins, t ties and n votes is p = (w + t / 2) / n, with the 95 % interval of Wilson (1927):
(p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4 n^2)) / (1 + z^2 / n), z = 1.959964.
"""

from __future__ import annotations

import math
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ..errors import InputError

LEFT, RIGHT, SAME = "left", "right", "same"
Z = 1.959964

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pairs (
    id         INTEGER PRIMARY KEY,
    comparison TEXT NOT NULL,
    voter      TEXT NOT NULL,
    prompt     INTEGER NOT NULL,
    seed       INTEGER NOT NULL,
    left_one   INTEGER NOT NULL,     -- numbers of the settings
    right_one  INTEGER NOT NULL,
    choice     TEXT,                 -- left, right or same; NULL before the vote
    voted      INTEGER               -- milliseconds since 1970
);
CREATE INDEX IF NOT EXISTS by_comparison ON pairs (comparison, voter);
"""


@dataclass(frozen=True)
class Pair:
    """left, right: numbers of the settings."""

    id: int
    comparison: str
    voter: str
    prompt: int
    seed: int
    left: int
    right: int
    choice: str | None
    voted: int | None


@dataclass(frozen=True)
class Rate:
    """The rate of one setting, over all its votes. low, high: the 95 % interval of `rate`; all None without votes."""

    wins: int
    losses: int
    ties: int
    rate: float | None
    low: float | None
    high: float | None


class Votes:
    """The votes of one user folder. Use from one thread."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a vote outlives the process; the last ones not a power cut
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def draw(
        self, comparison: str, voter: str, made: Sequence[tuple[int, int, int]], chance: random.Random
    ) -> Pair | None:
        """The next pair for this voter; None if every pair has been judged. made: (setting, prompt, seed) of every
        existing image.
        """
        judged = Counter[frozenset[int]]()
        own: set[tuple[frozenset[int], int, int]] = set()
        for pair in self.pairs(comparison):
            if pair.choice is None:
                continue
            settings = frozenset((pair.left, pair.right))
            judged[settings] += 1
            if pair.voter == voter:
                own.add((settings, pair.prompt, pair.seed))
        possible = [one for one in _possible(made) if one not in own]
        if not possible:
            return None
        fewest = min(judged[settings] for settings, _, _ in possible)
        settings, prompt, seed = chance.choice([one for one in possible if judged[one[0]] == fewest])
        left, right = chance.sample(sorted(settings), 2)
        cursor = self._db.execute(
            "INSERT INTO pairs (comparison, voter, prompt, seed, left_one, right_one) VALUES (?, ?, ?, ?, ?, ?)",
            (comparison, voter, prompt, seed, left, right),
        )
        return self.pair(int(cursor.lastrowid or 0))

    def pair(self, number: int) -> Pair:
        """The pair of this number. Raises InputError for a number that was never drawn."""
        found = next(self._select("id = ?", number), None)
        if found is None:
            raise InputError(f"There is no pair {number}. Load the page again.")
        return found

    def vote(self, number: int, choice: str) -> None:
        """Store a choice; the last one counts. Raises InputError for another word or an unknown pair."""
        if choice not in (LEFT, RIGHT, SAME):
            raise InputError(f"A vote is {LEFT}, {RIGHT} or {SAME}, not {choice!r}.")
        self.pair(number)
        now = int(time.time() * 1000)
        self._db.execute("UPDATE pairs SET choice = ?, voted = ? WHERE id = ?", (choice, now, number))

    def pairs(self, comparison: str) -> Iterator[Pair]:
        """All pairs that were drawn, in order."""
        return self._select("comparison = ?", comparison)

    def rates(self, comparison: str, settings: int) -> list[Rate]:
        """The rates of the settings 0 to `settings` - 1."""
        wins, losses, ties = Counter[int](), Counter[int](), Counter[int]()
        for pair in self.pairs(comparison):
            if pair.choice == SAME:
                ties.update((pair.left, pair.right))
            elif pair.choice is not None:
                won, lost = (pair.left, pair.right) if pair.choice == LEFT else (pair.right, pair.left)
                wins[won] += 1
                losses[lost] += 1
        return [rate(wins[number], losses[number], ties[number]) for number in range(settings)]

    def _select(self, where: str, *values: object) -> Iterator[Pair]:
        columns = "id, comparison, voter, prompt, seed, left_one, right_one, choice, voted"
        for row in self._db.execute(f"SELECT {columns} FROM pairs WHERE {where} ORDER BY id", values).fetchall():
            yield Pair(*row)


def rate(wins: int, losses: int, ties: int) -> Rate:
    """The rate and its interval, see above."""
    n = wins + losses + ties
    if not n:
        return Rate(0, 0, 0, None, None, None)
    p = (wins + ties / 2) / n
    middle, spread = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return Rate(wins, losses, ties, p, (middle - spread) / (1 + Z**2 / n), (middle + spread) / (1 + Z**2 / n))


def _possible(made: Sequence[tuple[int, int, int]]) -> Iterator[tuple[frozenset[int], int, int]]:
    """(two settings, prompt, seed) of all pairs of images."""
    by_place: dict[tuple[int, int], list[int]] = {}
    for setting, prompt, seed in made:
        by_place.setdefault((prompt, seed), []).append(setting)
    for (prompt, seed), settings in by_place.items():
        for two in combinations(sorted(set(settings)), 2):
            yield frozenset(two), prompt, seed
