"""Workflow files as the commands use them: the prompt, with its nodes named as the person named them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import WorkflowError
from ..graph.canvas import read_canvas
from ..graph.flatten import to_prompt
from ..graph.interface import Classes
from ..io.embedded import Embedded, read_workflow


def read(file: Path, classes: Classes) -> tuple[Embedded, dict[str, Any]]:
    """What the file carries, and its API prompt. Raises MissingFileError, WorkflowError."""
    embedded = read_workflow(file)
    prompt = to_prompt(embedded, classes)
    return embedded, _titled(prompt, embedded.workflow)


def _titled(prompt: Mapping[str, Any], canvas: Any) -> dict[str, Any]:
    """Older pictures have their titles on the canvas only."""
    try:
        titles = {box.id: box.title for box in read_canvas(canvas).boxes()} if canvas else {}
    except WorkflowError:  # the prompt is what runs; a damaged canvas beside it is not needed
        titles = {}
    return {
        node_id: node if "_meta" in node or not titles.get(node_id) else {**node, "_meta": {"title": titles[node_id]}}
        for node_id, node in prompt.items()
    }
