"""Warnings reach the listeners of a runtime as events."""

from __future__ import annotations

import logging
from typing import Any

from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.runtime.warning_events import PACKAGE, emit_warnings


def test_warnings_of_our_loggers_are_events_and_other_records_are_not() -> None:
    runtime, received = Runtime(Settings.parse("cpu", None, None, None, None)), list[dict[str, Any]]()
    runtime.events.listen(received.append)
    handler = emit_warnings(runtime)
    try:
        ours = logging.getLogger("sluice.flux_core.runtime.lora_files")
        ours.warning("%s: %d tensors were not used.", "a.safetensors", 3)
        ours.info("nothing special")
        logging.getLogger("somebody.else").warning("not ours")
    finally:
        logging.getLogger(PACKAGE).removeHandler(handler)
    assert received == [{"type": "warning", "text": "a.safetensors: 3 tensors were not used."}]
