"""Values shown on nodes, in the log, or with a sound, with the ids of other packs."""

from __future__ import annotations

import json
from typing import Any

from ..sockets import STRING, Inputs
from .declared import OfAnotherPack, anything, line, linked_text, one_of


class ShowText(OfAnotherPack):
    """Custom-Scripts' node that shows a text."""

    PACK = "comfyui-custom-scripts"
    TITLE = "Show Text"
    DESCRIPTION = "Shows a text, and passes it on."
    FUNCTION = "show"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    RETURN_TYPES = (STRING,)
    OUTPUT_TOOLTIPS = ("The text.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"text": linked_text("The text.")}}

    def show(self, text: list[str]) -> dict[str, Any]:
        return {"ui": {"text": text}, "result": (text,)}


class PreviewText(OfAnotherPack):
    """AlekPet's node that shows a text."""

    PACK = "comfyui_custom_nodes_alekpet"
    TITLE = "Preview Text"
    DESCRIPTION = "Shows a text, and passes it on."
    FUNCTION = "show"
    OUTPUT_NODE = True
    RETURN_TYPES = (STRING,)
    OUTPUT_TOOLTIPS = ("The text.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"text": linked_text("The text.")}}

    def show(self, text: str) -> dict[str, Any]:
        return {"ui": {"string": [text], "text": (text,)}, "result": (text,)}


class DisplayAny(OfAnotherPack):
    """rgthree's node that shows a value."""

    PACK = "rgthree-comfy"
    TITLE = "Display Any (rgthree)"
    DESCRIPTION = "Shows any value as text."
    FUNCTION = "show"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"source": anything("The value.")}}

    def show(self, source: Any = None) -> dict[str, Any]:
        return {"ui": {"text": (as_text(source),)}}


class ShowAnything(OfAnotherPack):
    """Easy-Use's node that shows a value."""

    PACK = "comfyui-easy-use"
    TITLE = "Show Any"
    DESCRIPTION = "Shows any value as text, and passes it on."
    FUNCTION = "show"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    RETURN_TYPES = ("*",)
    RETURN_NAMES = ("output",)
    OUTPUT_TOOLTIPS = ("The value.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {}, "optional": {"anything": anything("The value.")}}

    def show(self, anything: list[Any] | None = None) -> dict[str, Any]:
        values = anything or []
        given = values[0] if len(values) == 1 else values
        return {"ui": {"text": [as_text(value) for value in values]}, "result": (given,)}


class ConsoleDebug(OfAnotherPack):
    """Essentials' node that logs a value."""

    PACK = "comfyui_essentials"
    TITLE = "Debug to Console"
    DESCRIPTION = "Writes any value to the log."
    FUNCTION = "show"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        before = {"prefix": line("The prefix.", "Value:")}
        return {"required": {"value": anything("The value.")}, "optional": before}

    def show(self, value: Any, prefix: str = "Value:") -> dict[str, Any]:
        self.tell(f"{prefix} {as_text(value)}")
        return {}


class PlaySound(OfAnotherPack):
    """Custom-Scripts' node that plays a sound, which works only on its own page."""

    PACK = "comfyui-custom-scripts"
    TITLE = "PlaySound"
    DESCRIPTION = "Passes its value on. Only the pack's own page plays the sound."
    FUNCTION = "pass_on"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    RETURN_TYPES = ("*",)
    OUTPUT_TOOLTIPS = ("The value.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "any": anything("The value."),
                "mode": one_of(("always", "on empty queue"), "No effect here."),
                "volume": (
                    "FLOAT",
                    {"default": 0.5, "min": 0, "max": 1, "step": 0.1, "tooltip": "No effect here."},
                ),
                "file": line("No effect here.", "notify.mp3"),
            }
        }

    def pass_on(self, any: list[Any], mode: Any, volume: Any, file: Any) -> dict[str, Any]:
        return {"ui": {"a": []}, "result": (any,)}


def as_text(value: Any) -> str:
    """Any value as text for people."""
    if value is None or isinstance(value, (str, int, float)):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)
