"""Which model files a prompt asks for, and what to tell about those that are missing.

A node class says it with FILES = {input name: category of model files}. Opens no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..graph.interface import Classes
from ..graph.prompt import name_of
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
        for input_name, category in getattr(classes.get(node.get("class_type", "")), "FILES", {}).items():
            name = node.get("inputs", {}).get(input_name)
            if isinstance(name, str):
                found.append(Wanted(node_id, input_name, category, name, folders.find(category, name)))
    return found


def with_slashes(prompt: Mapping[str, Any], classes: Classes, folders: Folders) -> dict[str, Any]:
    """A copy in which models that exist are named as they are listed here: workflows from Windows write `sub\\file`,
    and a model in several files may be named by its folder, its index or any of them."""
    copied = {node_id: {**node, "inputs": dict(node.get("inputs", {}))} for node_id, node in prompt.items()}
    for wanted in wanted_files(prompt, classes, folders):
        if wanted.path is not None:
            copied[wanted.node_id]["inputs"][wanted.input] = folders.listed(wanted.category, wanted.name)
    return copied


def explained(
    problems: Iterable[str], prompt: Mapping[str, Any], classes: Classes, folders: Folders
) -> tuple[str, ...]:
    """Problems of a validation, with what is to be known about missing model files in place of "not available"."""
    reasons = {
        f"{name_of(wanted.node_id, prompt[wanted.node_id])}, input {wanted.input}: ".casefold(): wanted
        for wanted in wanted_files(prompt, classes, folders)
        if wanted.path is None
    }
    told = []
    for problem in problems:
        start = next((start for start in reasons if problem.casefold().startswith(start)), None)
        wanted = reasons[start] if start is not None else None
        if wanted is not None:
            problem = problem[: len(start or "")] + folders.explain_missing(wanted.category, wanted.name)
        told.append(problem)
    return tuple(told)
