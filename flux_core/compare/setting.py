"""One side of a comparison: a workflow and the options it runs with, written as the rest of a `sluice run` line.

"dev.png"                        "fast: dev.png --cache fast"                "schnell.png --set steps=4 --dtype bf16"
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from ..commands.arguments import add_device_arguments
from ..errors import InputError
from ..graph.axes import Axis, cells
from ..memory.budget import add_budget_arguments
from ..runtime.settings import Settings

_NAMED = re.compile(r"(?P<name>[^\s/\\:][^/\\:]{0,39}):\s+(?P<words>.*)", re.DOTALL)


@dataclass(frozen=True)
class Setting:
    """`values`: NODE.INPUT=VALUE, as for `sluice run --set`."""

    name: str
    words: str
    workflow: Path
    settings: Settings
    values: tuple[str, ...]


def parse(text: str) -> Setting:
    """Raises InputError for what is no such line."""
    named = _NAMED.fullmatch(text.strip())
    words = named["words"] if named else text.strip()
    try:
        split = shlex.split(words)
    except ValueError as error:  # a quotation mark without its other half
        raise InputError(f"{text!r} cannot be read: {error}.") from None
    given = _parser(text).parse_args(split)
    sizes = given.vram, given.ram
    chosen = Settings.parse(given.device, given.dtype, *sizes, given.cache, given.compute, given.attention)
    name = named["name"] if named else " ".join([given.workflow.stem, *words.split()[1:]])
    return Setting(name, words, given.workflow, chosen, tuple(given.values))


def parse_all(texts: Sequence[str]) -> list[Setting]:
    """Raises InputError if two have the same name."""
    settings = [parse(text) for text in texts]
    names = [setting.name for setting in settings]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f'Two settings are called {twice!r}: give each a name, for example "fast: dev.png --cache fast".'
        )
    return settings


def of_cells(setting: Setting, across: Axis, down: Axis) -> list[Setting]:
    """The setting with the values of each cell of a grid, row by row."""
    made = []
    for cell in cells(across, down):
        words = " ".join([setting.words, *(f"--set {shlex.quote(value)}" for value in cell)])
        made.append(replace(setting, name=", ".join(cell), words=words, values=(*setting.values, *cell)))
    return made


class _Parser(argparse.ArgumentParser):
    def __init__(self, text: str) -> None:
        super().__init__(prog="", add_help=False)
        self._text = text

    def error(self, message: str) -> NoReturn:
        raise InputError(f'{self._text!r} is no setting: {message}. Write it like "fast: dev.png --cache fast".')


def _parser(text: str) -> argparse.ArgumentParser:
    parser = _Parser(text)
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="values")
    add_device_arguments(parser)
    add_budget_arguments(parser)
    return parser
