"""Reads workflow files for the commands: the prompt, with its nodes' titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WorkflowError
from ..graph.canvas import Workflow, read_canvas
from ..graph.disagreement import completed, differences
from ..graph.flatten import flatten, to_prompt
from ..graph.interface import Classes
from ..io.embedded import Embedded, read_workflow

SHOWN = 3  # differences in one sentence


@dataclass(frozen=True)
class WorkflowFile:
    """A file that has been read: its metadata, its canvas as records if it has one, and its API prompt."""

    path: Path
    embedded: Embedded
    canvas: Workflow | None
    prompt: dict[str, Any]
    notes: tuple[str, ...] = ()  # remarks for the user, in sentences

    @property
    def packs(self) -> dict[str, str]:
        """Class id -> the node pack that it comes from, if the canvas names it."""
        return self.canvas.pack_names() if self.canvas else {}


def read(file: Path, classes: Classes, as_made: bool = False) -> WorkflowFile:
    """The workflow of a file. If an image's canvas and prompt differ, the canvas is used, as in the editor.

    as_made: use the prompt, from which the image was made. Raises MissingFileError, WorkflowError.
    """
    embedded = read_workflow(file)
    canvas = _canvas(embedded)
    notes = embedded.notes
    if embedded.prompt is None and canvas is not None:
        prompt = flatten(canvas, classes)
    else:
        prompt = to_prompt(embedded, classes)
        found = differences(prompt, canvas, classes) if canvas is not None and not as_made else []
        if canvas is not None and found:
            prompt = flatten(canvas, classes)
            notes += (_disagreement(file.name, found),)
        elif canvas is not None:
            prompt = completed(prompt, canvas, classes)
    return WorkflowFile(file, embedded, canvas, _titled(prompt, canvas), notes)


def _disagreement(name: str, found: Sequence[str]) -> str:
    shown = "; ".join(found[:SHOWN]) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    return (
        f"{name} was not made with what its canvas shows: {shown}. The canvas is taken, as the editor does; "
        "--as-made takes what the image was made with."
    )


def _canvas(embedded: Embedded) -> Workflow | None:
    """Raises WorkflowError for a canvas that cannot be read, unless there is a prompt, which runs in its place."""
    if embedded.workflow is None:
        return None
    try:
        return read_canvas(embedded.workflow)
    except WorkflowError:
        if embedded.prompt is None:
            raise
        return None


def _titled(prompt: Mapping[str, Any], canvas: Workflow | None) -> dict[str, Any]:
    """Add titles from the canvas: older images have none in the prompt."""
    titles = {node.id: node.title for node in canvas.nodes()} if canvas else {}
    return {
        node_id: node if "_meta" in node or not titles.get(node_id) else {**node, "_meta": {"title": titles[node_id]}}
        for node_id, node in prompt.items()
    }
