"""Workflow files with gaps for a program to fill: "{{SEED}}" or "${prompt}" where a value should be.

A gap in place of a number or a choice gets the value of a fresh widget. A gap in place of a text, a file or an image
must be filled in by the user who runs the file. A seed of -1 is a gap as well: scripts of packs replace it when the
editor sends the workflow.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .interface import Classes, Input, Interfaces
from .prompt import name_of
from .widgets import default

GAP = re.compile(r"\{\{\s*([\w.-]+)\s*\}\}|\$\{\s*([\w.-]+)\s*\}")

_SEEDS = 1 << 32

Prompt = Mapping[str, Mapping[str, Any]]


def is_gap(value: Any) -> bool:
    """Whether a value is nothing but a gap."""
    return isinstance(value, str) and GAP.fullmatch(value.strip()) is not None


def gaps(prompt: Prompt) -> Iterator[tuple[str, str, str]]:
    """(node, input, gap) of every gap in a value, including gaps within a longer text."""
    for node_id, node in prompt.items():
        for name, value in node.get("inputs", {}).items():
            if isinstance(value, str):
                yield from ((node_id, name, match[0]) for match in GAP.finditer(value))


def filled(prompt: Prompt, gap: str, value: str) -> tuple[dict[str, Any], int]:
    """A copy with `value` in place of every such gap, and their number. `gap` is given with its braces."""
    wanted, count = _named(gap), 0

    def put(text: Any) -> Any:
        nonlocal count
        if not isinstance(text, str) or not any(_named(match[0]) == wanted for match in GAP.finditer(text)):
            return text
        count += 1
        return GAP.sub(lambda match: value if _named(match[0]) == wanted else match[0], text)

    made = {
        node_id: {**node, "inputs": {name: put(text) for name, text in node.get("inputs", {}).items()}}
        for node_id, node in prompt.items()
    }
    return made, count


def with_defaults(prompt: Prompt, classes: Classes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A copy in which gaps for numbers and choices have the values of fresh widgets, and seeds of -1 a new number;
    and a sentence for each of them.
    """
    interfaces, notes = Interfaces(classes), []
    made = {node_id: {**node, "inputs": dict(node.get("inputs", {}))} for node_id, node in prompt.items()}
    for node_id, node in made.items():
        class_type = node.get("class_type", "")
        for name, value in node["inputs"].items():
            is_open = is_gap(value) or (value == -1 and isinstance(value, int))
            declared = interfaces[class_type].input(name) if class_type in interfaces and is_open else None
            if declared is not None and value == -1:
                if _is_seed(declared):
                    node["inputs"][name] = random.randrange(_SEEDS)
                    notes.append(f"{name} of {name_of(node_id, node)} is -1: it takes {node['inputs'][name]}.")
                continue
            if declared is None or not _has_default(declared, getattr(classes[class_type], "FILES", {})):
                continue
            node["inputs"][name] = default(declared)
            notes.append(f"{name} of {name_of(node_id, node)} is the gap {value}; it takes {node['inputs'][name]!r}.")
    return made, tuple(notes)


def unfilled(prompt: Prompt) -> list[str]:
    """A sentence about every unfilled gap, with the option that fills it."""
    places: dict[str, list[str]] = {}
    for node_id, name, gap in gaps(prompt):
        places.setdefault(gap, []).append(f"{name} of {name_of(node_id, prompt[node_id])}")
    return [
        f'{", ".join(where)}: {gap} is a place for a value. Set the value with --set "{gap}=VALUE".'
        for gap, where in places.items()
    ]


def _is_seed(declared: Input) -> bool:
    """Whether it is a seed that cannot be -1."""
    low, high = declared.options.get("min"), declared.options.get("max")
    is_seed = declared.type == "INT" and declared.name in ("seed", "noise_seed")
    return is_seed and low is not None and -1 < low <= 0 and (high is None or high >= _SEEDS)


def _named(gap: str) -> str:
    match = GAP.fullmatch(gap.strip())
    return (match[1] or match[2]) if match else gap


def _has_default(declared: Input, files: Mapping[str, str]) -> bool:
    if declared.name in files or "image_upload" in declared.options:
        return False
    return declared.type in ("INT", "FLOAT", "BOOLEAN", "COMBO") or (isinstance(declared.type, list))
