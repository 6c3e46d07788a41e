"""Warnings in the log as events of a runtime, so that a page can show them: unused tensors of a LoRA, for example."""

from __future__ import annotations

import logging

from ..memory.report import Emit
from .runtime import Runtime

PACKAGE = __name__.rpartition(".flux_core.")[0]  # the common prefix of our loggers' names


class WarningEvents(logging.Handler):
    """Emits {"type": "warning", "text"} for each log record that is at least a warning."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(logging.WARNING)
        self._emit_event = emit

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`, in the thread that logs the warning."""
        self._emit_event({"type": "warning", "text": record.getMessage()})


def emit_warnings(runtime: Runtime) -> logging.Handler:
    """Emit all warnings of this package as events of the runtime. Returns the handler, to remove it again."""
    handler = WarningEvents(runtime.events.emit)
    logging.getLogger(PACKAGE).addHandler(handler)
    return handler
