"""Prepares a workflow file to run: reads it, applies the command line, checks it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PromptError
from ..graph.canvas_edit import canvas_saying
from ..graph.interface import Classes
from ..graph.partial import Part, only_unconnected, runnable_part
from ..graph.problems import MISSING_MODEL
from ..graph.templates import unfilled, with_defaults
from ..graph.validate import Validation, validate
from ..io.file_hashes import hashes_of
from ..io.folders import Folders
from ..worker.prompt_check import check_prompt
from ..worker.used_files import OTHER, compared
from . import overrides, workflows


@dataclass(frozen=True)
class Job:
    """A workflow that can run."""

    file: Path
    prompt: dict[str, Any]
    outputs: tuple[str, ...]
    canvas: Any | None
    notes: tuple[str, ...] = ()  # remarks for the user, in sentences


def prepared(
    file: Path,
    classes: Classes,
    titles: Mapping[str, str],
    folders: Folders,
    settings: Sequence[str] = (),
    seed: overrides.Seed | None = None,
    as_made: bool = False,
    partial: bool = False,
) -> Job:
    """The job that a file asks for. Raises MissingFileError, WorkflowError, PromptError.

    settings, seed: as `overrides.apply`. as_made: as `workflows.read`. partial: if something in it cannot run, the
    rest of it is the job. Outputs that lack only a link are left out in any case, as in ComfyUI, with a note.
    """
    read = workflows.read(file, classes, as_made)
    changed = overrides.apply(read.prompt, classes, settings, seed, titles)
    changed, notes = with_defaults(changed, classes)
    if left := unfilled(changed):
        raise PromptError([f"{file.name} is a template:", *(f"  {sentence}" for sentence in left)])
    part = runnable_part(changed, classes)
    checked = check_prompt(part.prompt if partial else changed, classes, folders, packs=read.packs)
    found = checked.found
    files = compared(read.embedded.files, folders, hashes_of(folders.user))
    notes = (*read.notes, *notes, *(one.text for one in files if one.state == OTHER))
    if partial and found.outputs:
        notes += tuple(f"{file.name}: {sentence}" for sentence in (*part.lost, *found.sentences))
    elif found.outputs and only_unconnected(found.problems, found.prompt, classes):
        notes += tuple(f"{file.name}: {sentence} Outputs that need it are left out." for sentence in found.sentences)
    elif found.problems:
        # With `partial` nothing is left; the problems of the whole workflow are the reasons.
        whole = check_prompt(changed, classes, folders, packs=read.packs).found if partial else found
        others = [f"  {one.text}" for one in files if one.state == OTHER or one.here]
        raise PromptError([f"{file.name} cannot be run:", *_refusal(whole, part, classes), *others])
    workflow = read.embedded.workflow
    canvas = workflow and canvas_saying(workflow, read.prompt, checked.prompt, classes, read.canvas)
    return Job(file, found.prompt, found.outputs, canvas, notes)


def _refusal(found: Validation, part: Part, classes: Classes) -> list[str]:
    """All problems, and advice."""
    lines = [f"  {sentence}" for sentence in found.sentences]
    if any(problem.kind == MISSING_MODEL for problem in found.problems):
        lines.append("  Name further folders of model files with --models DIR.")
    if found.outputs or (part.lost and validate(part.prompt, classes).outputs):
        lines.append("  The other outputs can be made: add --partial.")
    return lines
