"""A workflow as a form (graph/app_form.py), and the form filled in: the prompt to queue, with its canvas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..graph.app_form import fields, model_file, with_values
from ..graph.canvas_edit import canvas_saying, with_loras
from ..graph.flatten import canvas_to_prompt, to_prompt
from ..graph.interface import Classes
from ..graph.placeholders import as_written
from ..io.embedded import Embedded, read_workflow_bytes

MOST_LORAS = 8


def form(workflow: Any, classes: Classes) -> dict[str, Any]:
    """{"workflow": the canvas or prompt, "fields", "model", "loras": whether LoRAs can be added}.

    Raises WorkflowError."""
    read = _read(workflow)
    prompt = to_prompt(read, classes, as_written)
    has_own = any(one["kind"] == "lora" for one in fields(prompt, read.workflow, classes))
    return {
        "workflow": read.prompt if read.workflow is None else read.workflow,
        "fields": fields(prompt, read.workflow, classes),
        "model": model_file(prompt, classes),
        "loras": read.workflow is not None and not has_own and model_file(prompt, classes) is not None,
    }


def filled(workflow: Any, values: Sequence[Any], loras: Sequence[Any], classes: Classes) -> dict[str, Any]:
    """{"prompt", "workflow": the canvas that gives this prompt, or null}. Raises WorkflowError, InputError."""
    wanted = {(str(node), str(name)): _value(value) for node, name, value in values}
    added = [(str(name), float(strength)) for name, strength in loras]
    if len(added) > MOST_LORAS:
        raise InputError(f"At most {MOST_LORAS} LoRAs can be added here.")
    read = _read(workflow)
    if read.workflow is None:
        return {"prompt": with_values(to_prompt(read, classes), wanted), "workflow": None}
    canvas = with_loras(read.workflow, added, classes) if added else read.workflow
    before = canvas_to_prompt(canvas, classes, as_written)
    changed = canvas_saying(canvas, before, with_values(before, wanted), classes)
    if changed is None:  # a value inside a subgraph, for example
        return {"prompt": with_values(canvas_to_prompt(canvas, classes), wanted), "workflow": None}
    return {"prompt": canvas_to_prompt(changed, classes), "workflow": changed}


def _read(workflow: Any) -> Embedded:
    """The canvas counts where a document has both, as in the editor."""
    read = read_workflow_bytes(json.dumps(workflow).encode(), "the workflow")
    return read if read.workflow is None else Embedded(workflow=read.workflow)


def _value(value: Any) -> Any:
    if not isinstance(value, (str, int, float, bool)):
        raise InputError("A value of a form is a text, a number, true or false.")
    return value
