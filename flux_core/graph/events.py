"""The events of a run: ComfyUI's websocket events, with its field names.

    progress_state {"prompt_id", "nodes": {id: {"value", "max", "state", ids...}}}     all nodes so far, each time
    execution_start, _cached, _success, _error, _interrupted                           kept for the history

This file does not influence the run.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import BudgetTooSmall, Interrupted
from .live import LivePrompt

Emit = Callable[[str, dict[str, Any]], None]
Message = tuple[str, dict[str, Any]]

_SHOWN_CHARACTERS = 2000


class Events:
    """The events of one run."""

    def __init__(self, emit: Emit, live: LivePrompt, prompt_id: str) -> None:
        self.emit = emit
        self.live = live
        self.prompt_id = prompt_id
        self.messages: list[Message] = []
        self._states: dict[str, dict[str, Any]] = {}

    def message(self, event: str, data: Mapping[str, Any]) -> None:
        """Emit an event that is also kept for the history."""
        data = {"prompt_id": self.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self.messages.append((event, data))
        self.emit(event, data)

    def started(self, node_id: str) -> None:
        self._state(node_id, 0.0, 1.0, "running")

    def executing(self, node_id: str) -> None:
        self.emit("executing", self._where(node_id))

    def progressed(self, node_id: str, value: float, maximum: float, preview: Any) -> None:
        self._state(node_id, value, maximum, "running")
        self.emit("progress", {"value": value, "max": maximum, "prompt_id": self.prompt_id, "node": node_id})
        if preview is not None:
            self.previewed(node_id, preview)

    def previewed(self, node_id: str, image: Any) -> None:
        self.emit("preview", {**self.live.identity(node_id), "prompt_id": self.prompt_id, "image": image})

    def executed(self, node_id: str, ui: Mapping[str, Any] | None) -> None:
        self.emit("executed", {**self._where(node_id), "output": ui, "prompt_id": self.prompt_id})

    def finished(self, node_id: str) -> None:
        maximum = self._states.get(node_id, {}).get("max", 1)
        self._state(node_id, maximum, maximum, "finished")

    def blocked(self, node_id: str, executed: list[str], reason: str) -> None:
        """A node is skipped because of an ExecutionBlocker. The prompt continues, so the history has no entry for
        it.
        """
        details = self._what(node_id, executed) | {
            "exception_message": f"Execution Blocked: {reason}",
            "exception_type": "ExecutionBlocked",
            "traceback": [],
            "current_inputs": [],
            "current_outputs": [],
        }
        self.emit("execution_error", {"prompt_id": self.prompt_id, **details})

    def stopped(
        self, node_id: str, executed: list[str], error: Exception, inputs: Mapping[str, list[Any]], advice: str
    ) -> None:
        """Report that the run ended by request or by an error of a node."""
        details = self._what(node_id, executed)
        if isinstance(error, Interrupted):
            self.message("execution_interrupted", details)
            return
        details |= {
            "exception_message": f"{error}\n{advice}",
            "exception_type": _type_name(type(error)),
            "traceback": traceback.format_tb(error.__traceback__),
            "current_inputs": {name: [_shown(item) for item in items] for name, items in inputs.items()},
            "current_outputs": list(self.live.original),
        }
        if advice or isinstance(error, BudgetTooSmall):
            details["about"] = "memory"  # our own field, for the panel of that name
        self.message("execution_error", details)

    def _what(self, node_id: str, executed: list[str]) -> dict[str, Any]:
        node = self.live.nodes.get(node_id)
        return {"node_id": node_id, "node_type": node.class_type if node else "", "executed": executed}

    def _where(self, node_id: str) -> dict[str, Any]:
        display = self.live.get_display_node_id(node_id)
        return {"node": node_id, "display_node": display, "prompt_id": self.prompt_id}

    def _state(self, node_id: str, value: float, maximum: float, state: str) -> None:
        ids = self.live.identity(node_id)
        self._states[node_id] = {"value": value, "max": maximum, "state": state, "prompt_id": self.prompt_id, **ids}
        self.emit("progress_state", {"prompt_id": self.prompt_id, "nodes": dict(self._states)})


def _type_name(kind: type[Any]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _shown(value: Any) -> Any:
    """An input in a form that can be sent: plain values unchanged, anything else as a text of limited length."""
    if value is None or isinstance(value, (int, bool)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
