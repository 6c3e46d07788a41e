"""The widgets of a node on the canvas: which inputs have one, and which saved value is whose.

    KSampler, widgets_values: [50363905047731, "randomize", 20, 1, "euler", "normal", 1]
                               seed            (control)    steps cfg sampler scheduler denoise

Values are saved in the order of declaration, also of widgets that a link drives. The browser adds values of its own:
after a seed what to do with it next, after the required inputs of a node with file upload the word "image".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .interface import Input, Interface

_WIDGET_TYPES = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}  # with the value of a fresh widget
_CONTROL = ("fixed", "increment", "decrement", "randomize", "increment-wrap", True, False)  # the oldest files: a toggle
_UPLOADS = ("image_upload", "video_upload", "audio_upload", "animated_image_upload")


def is_widget(declared: Input) -> bool:
    """Whether an input is set by a widget on its node (and may be linked all the same)."""
    if declared.options.get("forceInput"):
        return False
    return isinstance(declared.type, list) or declared.type == "COMBO" or declared.type in _WIDGET_TYPES


def default(declared: Input) -> Any:
    """The value of a fresh widget; None for a combo without options."""
    if "default" in declared.options:
        return declared.options["default"]
    options = declared.type if isinstance(declared.type, list) else declared.options.get("options", ())
    if isinstance(declared.type, list) or declared.type == "COMBO":
        return next(iter(options), None)
    return _WIDGET_TYPES[declared.type]


def widget_values(interface: Interface, saved: Any, named: Any = None) -> dict[str, Any]:
    """Input name -> value, from `widgets_values` (a list, an object, or nothing) and `widgets_values_named`.

    Values that are missing or null take their default; inputs with neither are left out.
    """
    widgets = [declared for declared in interface.inputs() if is_widget(declared)]
    values = {declared.name: default(declared) for declared in widgets}
    found = take(interface, list(saved), frozenset()) if isinstance(saved, list) else saved
    for source in (found, named):
        if isinstance(source, Mapping):
            values |= {name: source[name] for name in values if source.get(name) is not None}
    return {name: value for name, value in values.items() if value is not None}


def take(interface: Interface, saved: list[Any], absent: frozenset[str]) -> dict[str, Any]:
    """Remove a node's values from the front of a list and name them; the inputs `absent` have none there."""
    taken: dict[str, Any] = {}
    widgets = [declared for declared in interface.inputs() if is_widget(declared)]
    required = [declared for declared in widgets if declared.category == "required"]
    uploads = any(declared.options.get(key) for declared in required for key in _UPLOADS)
    for declared in widgets:
        if declared.name not in absent and saved:
            taken[declared.name] = saved.pop(0)
            _drop_control(declared, saved)
        if required and declared is required[-1] and uploads and saved[:1] == ["image"]:
            saved.pop(0)
    return taken


def take_primitive(saved: list[Any]) -> list[Any]:
    """Remove a primitive's value from the front of a list, and what is to happen to it next."""
    taken, saved[:1] = saved[:1], []
    if taken and _is_control(saved):
        saved.pop(0)
    return taken


def _drop_control(declared: Input, saved: list[Any]) -> None:
    """Drop what a seed does next, and for a combo also the filter that goes with it."""
    seed = declared.type == "INT" and declared.name in ("seed", "noise_seed")
    if not (declared.options.get("control_after_generate") or seed) or not _is_control(saved):
        return
    saved.pop(0)
    if declared.type != "INT" and saved[:1] == [""]:
        saved.pop(0)


def _is_control(saved: list[Any]) -> bool:
    return bool(saved) and isinstance(saved[0], (str, bool)) and saved[0] in _CONTROL
