"""Show values in the editor."""

from __future__ import annotations

import json
from typing import Any

from .sockets import STRING, Inputs


class PreviewAny:
    """Show a value as text."""

    MODELS = False  # it accepts them, and shows only their name
    TITLE = "Preview Any"
    DESCRIPTION = "Shows any value as text."
    CATEGORY = "utils"
    FUNCTION = "show"
    OUTPUT_NODE = True
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"source": ("*", {"tooltip": "The value."})}}

    def show(self, source: Any = None) -> dict[str, Any]:
        text = _text(source)
        return {"ui": {"text": (text,)}, "result": (text,)}


def _text(value: Any) -> str:
    if value is None or isinstance(value, (str, int, float)):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)
