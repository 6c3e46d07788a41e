"""Which model files a prompt asks for, and what to say about those that are missing.

A node class says it with FILES = {input name: category of model files}, and with NO_FILE which values mean none. Opens
no file.
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
    """One file named by one node. `path` is None when it is nowhere."""

    node_id: str
    input: str
    category: str
    name: str
    path: Path | None


def wanted_files(prompt: Mapping[str, Any], classes: Classes, folders: Folders) -> list[Wanted]:
    """The model files of a prompt, in its order. Names that come through links are not known before the run."""
    found = []
    for node_id, node in prompt.items():
        node_class = classes.get(node.get("class_type", ""))
        nothing = getattr(node_class, "NO_FILE", ())
        for input_name, category in getattr(node_class, "FILES", {}).items():
            name = node.get("inputs", {}).get(input_name)
            if isinstance(name, str) and name not in nothing:
                found.append(Wanted(node_id, input_name, category, name, folders.find(category, name)))
    return found


def as_listed(prompt: Mapping[str, Any], files: Iterable[Wanted], folders: Folders) -> dict[str, Any]:
    """A copy in which models that exist are named as they are listed here: workflows from Windows write `sub\\file`,
    and a model in several files may be named by its folder, its index or any of them."""
    copied = {node_id: {**node, "inputs": dict(node.get("inputs", {}))} for node_id, node in prompt.items()}
    for wanted in files:
        if wanted.path is not None:
            copied[wanted.node_id]["inputs"][wanted.input] = folders.listed(wanted.category, wanted.name)
    return copied


def explained(found: Validation, files: Iterable[Wanted], folders: Folders) -> Validation:
    """The validation with the whole explanation of every model file that is missing, in place of what it says."""
    missing = {(wanted.node_id, wanted.input): wanted for wanted in files if wanted.path is None}

    def about(problem: Problem) -> Problem:
        wanted = missing.get((problem.node_id or "", problem.input or ""))
        if wanted is None:
            return problem
        reason = folders.explain_missing(wanted.category, wanted.name)
        where = place_of(wanted.node_id, found.prompt[wanted.node_id], wanted.input)
        return Problem(MISSING_MODEL, reason, where, wanted.node_id, wanted.input)

    return replace(found, problems=tuple(about(problem) for problem in found.problems)) if missing else found
