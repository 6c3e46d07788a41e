"""comfy_execution.utils: which call of which node is running."""

from __future__ import annotations

from typing import NamedTuple

from ....graph.execute import current_call
from ...engine import current

__all__ = ["ExecutionContext", "get_executing_context"]


class ExecutionContext(NamedTuple):
    prompt_id: str
    node_id: str
    list_index: int | None = None


def get_executing_context() -> ExecutionContext | None:
    """None while no node runs in this thread or task."""
    call = current_call.get()
    if call is None:
        return None
    return ExecutionContext(current().prompt_id or "", *call)
