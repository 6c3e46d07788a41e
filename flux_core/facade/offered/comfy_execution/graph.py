"""comfy_execution.graph: names that packs import from ComfyUI's order of execution."""

from __future__ import annotations

from typing import Any

from ....graph.calls import ExecutionBlocker
from ....graph.interface import Interface
from ....graph.live import LivePrompt as DynamicPrompt
from ....graph.order import DependencyCycle as DependencyCycleError

__all__ = ["DependencyCycleError", "DynamicPrompt", "ExecutionBlocker", "get_input_info"]


def get_input_info(class_def: type[Any], input_name: str, valid_inputs: Any = None) -> tuple[Any, Any, Any]:
    """(type, "required" | "optional" | "hidden", options) of an input; (None, None, None) if there is none."""
    found = Interface(class_def).input(input_name)
    return (None, None, None) if found is None else (found.type, found.category, dict(found.options))
