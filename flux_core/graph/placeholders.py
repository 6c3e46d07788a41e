"""Replacements in texts that the browser makes before sending: choices in prompts, fields in file names.

"a {red|{dark|light} green} ball // note"   ->  "a dark green ball "
"%date:yyyy-MM-dd%/%KSampler.seed%"         ->  "2026-03-01/42"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

_DEPTH = 100  # braces nested deeper than this are plain characters
_DATE_PART = re.compile("dd?|MM?|hh?|mm?|ss?|yyyy|yy")
_COMMENT, _LINE_COMMENT = re.compile(r"/[*/]"), re.compile("//")
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')

Choose = Callable[[Sequence[str]], str]


def as_written(options: Sequence[str]) -> str:
    """A `Choose` that makes no choice: the options stay as they were written."""
    return "{" + "|".join(options) + "}"


def choices_made(text: str, choose: Choose) -> str:
    """A prompt with one option of each {a|b} chosen and comments (/* */, //) removed; a backslash escapes {, | and
    }.
    """
    levels: list[list[list[str]]] = [[[]]]  # for each open brace the options so far, each in pieces
    pieces = iter(re.findall(r"\\.|[{}|]|[^\\{}|]+|\\", _without_comments(text), re.DOTALL))
    for piece in pieces:
        if piece == "{" and len(levels) <= _DEPTH:
            levels.append([[]])
        elif piece == "|" and len(levels) > 1:
            levels[-1].append([])
        elif piece == "}" and len(levels) > 1:
            _close(levels, choose)
        else:
            levels[-1][-1].append(piece)
    while len(levels) > 1:
        _close(levels, choose)
    return re.sub(r"\\([{}|])", r"\1", "".join(levels[0][0]))


def _close(levels: list[list[list[str]]], choose: Choose) -> None:
    options = levels.pop()
    levels[-1][-1].append(choose(["".join(option) for option in options]))


def _without_comments(text: str) -> str:
    kept, position, blocks_close = [], 0, True
    while start := (_COMMENT if blocks_close else _LINE_COMMENT).search(text, position):
        block = start[0] == "/*"
        end = text.find("*/" if block else "\n", start.end())
        if block and end < 0:  # this comment is never closed, so no later one is either
            blocks_close = False
            continue
        kept.append(text[position : start.start()])
        position = len(text) if end < 0 else end + 2 * block
    return "".join(kept) + text[position:]


def fields_filled(text: str, value_of: Callable[[str, str], Any], now: datetime) -> str:
    """A file name prefix with %date:...% and %node.widget% replaced; unknown fields stay unchanged.

    `value_of(node, widget)` returns None for an unknown widget. %width% and the like are replaced when the file is
    saved.
    """

    def fill(match: re.Match[str]) -> str:
        node, dot, widget = match[1].partition(".")
        if dot and "." not in widget:
            value = value_of(node, widget)
            return match[0] if value is None else _UNSAFE.sub("_", str(value))
        return _date(match[1][5:], now) if match[1].startswith("date:") else match[0]

    return re.sub("%([^%]+)%", fill, text)


def _date(form: str, now: datetime) -> str:
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def write(match: re.Match[str]) -> str:
        token = match[0]
        return str(now.year)[-len(token) :] if token[0] == "y" else str(parts[token[0]]).zfill(len(token))

    return _DATE_PART.sub(write, form)
