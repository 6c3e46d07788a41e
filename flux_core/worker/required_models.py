"""Which model files a prompt needs, and the explanation of those that are missing.

A node class declares them: FILES = {input name: category of model files}; NO_FILE: the values that mean no file; SETS =
{value: (category, names)}: the values that mean several files. Opens no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..graph.interface import Classes
from ..graph.problems import MISSING_MODEL, Problem, place_of
from ..graph.validate import Validation
from ..io.folders import Folders


@dataclass(frozen=True)
class Wanted:
    """One file that a node names. `path` is None if it was not found. named: whether the input's value is its name."""

    node_id: str
    input: str
    category: str
    name: str
    path: Path | None
    named: bool = True


def wanted_files(prompt: Mapping[str, Any], classes: Classes, folders: Folders) -> list[Wanted]:
    """The model files of a prompt, in its order. Names that come through links are unknown before the run."""
    found = []
    for node_id, node in prompt.items():
        node_class = classes.get(node.get("class_type", ""))
        nothing, sets = getattr(node_class, "NO_FILE", ()), getattr(node_class, "SETS", {})
        for input_name, category in getattr(node_class, "FILES", {}).items():
            name = node.get("inputs", {}).get(input_name)
            if not isinstance(name, str) or name in nothing:
                continue
            place, names = sets.get(name, (category, (name,)))
            found += [
                Wanted(node_id, input_name, place, one, folders.find(place, one), name not in sets) for one in names
            ]
    return found


def as_listed(prompt: Mapping[str, Any], files: Iterable[Wanted], folders: Folders) -> dict[str, Any]:
    """A copy in which existing models have the names listed here.

    Workflows from Windows write `sub\\file`; a model in several files may be named by its folder, its index or a file.
    """
    copied = {node_id: {**node, "inputs": dict(node.get("inputs", {}))} for node_id, node in prompt.items()}
    for wanted in files:
        if wanted.path is not None and wanted.named:
            copied[wanted.node_id]["inputs"][wanted.input] = folders.listed(wanted.category, wanted.name)
    return copied


def explained(found: Validation, files: Iterable[Wanted], folders: Folders) -> Validation:
    """The validation, with the full explanation of each missing model file in place of its own message."""
    missing = {(wanted.node_id, wanted.input): wanted for wanted in files if wanted.path is None}

    def about(problem: Problem) -> Problem:
        wanted = missing.get((problem.node_id or "", problem.input or ""))
        if wanted is None:
            return problem
        reason = folders.explain_missing(wanted.category, wanted.name)
        where = place_of(wanted.node_id, found.prompt[wanted.node_id], wanted.input)
        return Problem(MISSING_MODEL, reason, where, wanted.node_id, wanted.input)

    return replace(found, problems=tuple(about(problem) for problem in found.problems)) if missing else found
