"""An X/Y grid over two inputs of a workflow: its axes, the values of each cell, and the graph that makes all cells.

    "KSampler.steps=4,8,20"       an axis: NODE.INPUT (the node by number, title or class), values with commas between
    "Prompt.text=a fox;a wolf"    values that hold commas are separated by semicolons

A cell is the workflow with its values in place. Nodes that do not depend on them are shared by all cells.

Uses no node class and no image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .prompt import is_link, name_of, title_of

JsonPrompt = Mapping[str, Mapping[str, Any]]

MOST_CELLS = 400
EXAMPLE = '"KSampler.steps=4,8,20"'


@dataclass(frozen=True)
class Axis:
    """`target`: NODE.INPUT. `values`: as texts, in order."""

    target: str
    values: tuple[str, ...]

    @property
    def settings(self) -> tuple[str, ...]:
        """The values as `--set` takes them."""
        return tuple(f"{self.target}={value}" for value in self.values)

    @property
    def labels(self) -> tuple[str, ...]:
        """What stands beside the rows or above the columns."""
        return tuple(f"{self.target.rpartition('.')[2]} {value}" for value in self.values)


NOTHING = Axis("", ("",))


def parse_axis(text: str) -> Axis:
    """Raises InputError for what is no axis."""
    target, equals, values = text.strip().partition("=")
    mark = ";" if ";" in values else ","
    found = tuple(value.strip() for value in values.split(mark) if value.strip())
    if not equals or not target.strip() or not found:
        raise InputError(f"{text!r} is no axis of a grid. Write NODE.INPUT=VALUE,VALUE, for example {EXAMPLE}.")
    if len(set(found)) < len(found):
        raise InputError(f"The axis {text!r} has a value twice.")
    return Axis(target.strip(), found)


def parse_axes(x: str, y: str) -> tuple[Axis, Axis]:
    """The columns and the rows; one of the two texts may be empty. Raises InputError."""
    if not x.strip() and not y.strip():
        raise InputError(f"A grid needs an axis, for example {EXAMPLE}.")
    across, down = (parse_axis(text) if text.strip() else NOTHING for text in (x, y))
    if across.target == down.target:
        raise InputError(f"Both axes of the grid change {across.target}: choose two inputs.")
    if len(across.values) * len(down.values) > MOST_CELLS:
        raise InputError(f"The grid has {len(across.values) * len(down.values)} cells; {MOST_CELLS} are the most.")
    return across, down


def cells(across: Axis, down: Axis) -> list[tuple[str, ...]]:
    """The settings of each cell, row by row."""
    return [
        tuple(setting for axis, setting in ((across, column), (down, row)) if axis is not NOTHING)
        for row in down.settings
        for column in across.settings
    ]


def grown_cells(
    prompt: JsonPrompt, end: Sequence[Any], settings: Iterable[Sequence[str]], new_id: Callable[[int, str], str]
) -> tuple[dict[str, Any], list[list[Any]]]:
    """The nodes to add to a prompt for these cells, and the link to the end of each.

    end: the link whose value is wanted in each cell. new_id: (number of the cell, id of a node) -> id of its copy.
    Copied are the nodes that a cell changes and those behind them. Raises InputError for settings that fit nowhere, or
    that do not reach the end.
    """
    behind = _behind(prompt, str(end[0]))
    added: dict[str, Any] = {}
    ends: list[list[Any]] = []
    for number, cell in enumerate(settings):
        changes = [_change(prompt, behind, setting) for setting in cell]
        copied = {node_id for node_id in behind if any(change[0] in behind[node_id] for change in changes)}
        for node_id in copied:
            node = prompt[node_id]
            inputs = {
                name: [new_id(number, str(value[0])), value[1]] if is_link(value) and str(value[0]) in copied else value
                for name, value in node["inputs"].items()
            }
            inputs |= {name: value for changed, name, value in changes if changed == node_id}
            added[new_id(number, node_id)] = {**node, "inputs": inputs}
        ends.append([new_id(number, str(end[0])), end[1]])
    return added, ends


def _behind(prompt: JsonPrompt, end: str) -> dict[str, set[str]]:
    """All nodes that `end` depends on and itself, each with those that it depends on and itself."""
    found: dict[str, set[str]] = {}
    waiting = [end]
    while waiting:
        node_id = waiting[-1]
        inputs = prompt[node_id]["inputs"] if node_id in prompt else {}
        sources = [str(value[0]) for value in inputs.values() if is_link(value)]
        missing = [source for source in sources if source not in found and source not in waiting]
        if missing:
            waiting += missing
            continue
        waiting.pop()
        found[node_id] = {node_id}.union(*(found.get(source, set()) for source in sources))
    return found


def _change(prompt: JsonPrompt, behind: Mapping[str, Any], setting: str) -> tuple[str, str, Any]:
    """(node, input, value) of a setting, for one of the nodes that the grid can change."""
    target, _, text = setting.partition("=")
    named, _, name = target.rpartition(".")
    wanted = named.casefold()
    having = [node_id for node_id in behind if node_id in prompt and name in prompt[node_id]["inputs"]]
    having = [node_id for node_id in having if not is_link(prompt[node_id]["inputs"][name])]
    ways: tuple[Callable[[str], bool], ...] = (
        lambda node_id: not wanted or node_id == named,
        lambda node_id: title_of(prompt[node_id]).casefold() == wanted,
        lambda node_id: (
            str(prompt[node_id].get("class_type", "")).casefold().removeprefix("sluice")
            == wanted.removeprefix("sluice")
        ),
    )
    found = next((chosen for way in ways if (chosen := [node_id for node_id in having if way(node_id)])), [])
    if len(found) != 1:
        raise InputError(_unclear(prompt, target, name, found, having))
    before = prompt[found[0]]["inputs"][name]
    return found[0], name, text if isinstance(before, str) else _number(setting, text)


def _unclear(prompt: JsonPrompt, target: str, name: str, found: Sequence[str], having: Sequence[str]) -> str:
    """Why `target` is not one value. found: the nodes that it may mean. having: all that have an input of the name."""
    there = "; ".join(name_of(node_id, prompt[node_id]) for node_id in (found or having))
    if found:
        return f"{target} may mean {there}. Name one by its number: {found[0]}.{name}=..."
    told = f"{target} is no value of a node before the grid."
    return (
        f"{told} {name!r} is one of {there}: write {having[0]}.{name}=..." if having else f"{told} None has {name!r}."
    )


def _number(setting: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, (int, float)):
        raise InputError(f"{setting}: a number, true or false is needed, not {text!r}.")
    return value
