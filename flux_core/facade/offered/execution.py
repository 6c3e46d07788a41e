"""execution: the parts of ComfyUI's executor that packs use. Runs themselves are done by our engine."""

from __future__ import annotations

from typing import Any

from ...graph.calls import ExecutionBlocker
from ...graph.validate import validate
from ..engine import current

__all__ = ["ExecutionBlocker", "validate_prompt"]


async def validate_prompt(prompt_id: Any, prompt: Any = None, partial_execution_list: Any = None) -> tuple[Any, ...]:
    """(fit to run, error, outputs, errors by node), as POST /prompt answers. Older callers give the prompt alone."""
    found = validate(prompt_id if prompt is None else prompt, current().classes, partial_execution_list)
    return found.error is None, found.error, list(found.outputs), found.node_errors
