"""execution: the parts of ComfyUI's executor that packs use. Our engine does the runs themselves."""

from __future__ import annotations

from typing import Any

from ...graph.calls import ExecutionBlocker
from ...graph.validate import validate
from ..engine import current

__all__ = ["ExecutionBlocker", "full_type_name", "validate_prompt"]


async def validate_prompt(prompt_id: Any, prompt: Any = None, partial_execution_list: Any = None) -> tuple[Any, ...]:
    """(valid, error, outputs, errors by node), as in the response of POST /prompt. Older callers pass only the
    prompt.
    """
    found = validate(prompt_id if prompt is None else prompt, current().classes, partial_execution_list)
    return found.error is None, found.error, list(found.outputs), found.node_errors


def full_type_name(klass: type[Any]) -> str:
    """The name of a class with its module, except for those of Python itself."""
    return klass.__qualname__ if klass.__module__ == "builtins" else f"{klass.__module__}.{klass.__qualname__}"
