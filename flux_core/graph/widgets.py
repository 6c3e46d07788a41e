"""The widgets of a node on the canvas: which inputs have one, and which saved value belongs to which widget.

    KSampler, widgets_values: [50363905047731, "randomize", 20, 1, "euler", "normal", 1]
                               seed            (control)    steps cfg sampler scheduler denoise

Values are saved in the order of declaration, including those of linked widgets. The browser adds further values: after
a seed the way it changes with each run, after the required inputs of a node with file upload the word "image". The
inputs that an option of a dynamic combo adds follow the combo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from . import dynamic
from .canvas import Slot
from .interface import Input, Interface

# Types that have a widget, with the widget's initial value.
_WIDGET_TYPES: dict[str, Any] = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False, "COLOR": "#ffffff"}
_UNSAVED: dict[str, Any] = {"IMAGECOMPARE": ["", ""]}  # sent, but not saved
_CONTROL = (
    "fixed",
    "increment",
    "decrement",
    "randomize",
    "increment-wrap",
    True,
    False,  # the oldest files have a toggle
    None,  # some packs put a button there
)
_UPLOADS = ("image_upload", "video_upload", "audio_upload", "animated_image_upload")


def is_widget(declared: Input) -> bool:
    """Whether an input has a widget on its node (it may be linked nevertheless)."""
    if declared.options.get("forceInput"):
        return False
    kind = declared.type
    if not isinstance(kind, str):
        return isinstance(kind, list)
    return kind in ("COMBO", dynamic.COMBO) or kind in _WIDGET_TYPES or kind in _UNSAVED


def layout(interface: Interface) -> tuple[list[Slot], list[Slot]] | None:
    """The inputs and outputs of a node in the order of the editor: sockets first, then widgets.

    None for a class with dynamic inputs.
    """
    declared = interface.inputs()
    if any(one.type in (dynamic.COMBO, dynamic.GROWING, dynamic.MATCHING) for one in declared):
        return None
    sockets = [Slot(one.name, kind_of(one.type)) for one in declared if not is_widget(one)]
    widgets = [Slot(one.name, kind_of(one.type), widget=one.name) for one in declared if is_widget(one)]
    return sockets + widgets, [Slot("", kind_of(output)) for output in interface.outputs]


def kind_of(declared: Any) -> str:
    """The editor's name of a declared type; a list of options is a "COMBO"."""
    return declared if isinstance(declared, str) else "COMBO"


def entered(declared: Input, value: Any) -> Any:
    """A number after entry into a widget: rounded to a multiple of its step, or to the digits of the step."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or declared.type not in ("INT", "FLOAT"):
        return value
    options = declared.options
    if declared.type == "INT":
        step = options.get("step") or 1
        offset = 0 if step == 1 else (options.get("min") or 0) % step
        return _rounded((value - offset) / step) * step + offset
    step = options.get("step") or 0.5
    digits = max(0, -math.floor(math.log10(step)))
    unit = options.get("round") or (10**-digits if digits else None)
    if not unit:
        return value
    low, high = options.get("min", 0), options.get("max", 2048)
    return min(max(round(_rounded(value / unit) * unit, digits), low), high)


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)


def default(declared: Input) -> Any:
    """The initial value of a widget; None for a combo without options."""
    if "default" in declared.options:
        return declared.options["default"]
    if declared.type == dynamic.COMBO:
        return next(iter(dynamic.keys(declared)), None)
    options = declared.type if isinstance(declared.type, list) else declared.options.get("options", ())
    if isinstance(declared.type, list) or declared.type == "COMBO":
        return next(iter(options), None)
    return {**_WIDGET_TYPES, **_UNSAVED}[declared.type]


def widget_values(interface: Interface, saved: Any, named: Any = None) -> dict[str, Any]:
    """Input name -> value, from `widgets_values` (a list, an object, or nothing) and `widgets_values_named`.

    A missing value or null is replaced by the default; an input with neither is left out.
    """
    found = take(interface, _without_sockets(interface, saved), frozenset()) if isinstance(saved, list) else saved
    sources = [source for source in (named, found) if isinstance(source, Mapping)]

    def value_of(declared: Input) -> Any:
        values = (source.get(declared.name) for source in sources)
        return next((value for value in values if value is not None), default(declared))

    values = _walk(interface, value_of)
    for source in sources[::-1] if getattr(interface.node_class, "EDITOR_WIDGETS", ()) else ():
        values |= {name: value for name, value in source.items() if value is not None}
    return {name: value for name, value in values.items() if value is not None}


def _without_sockets(interface: Interface, saved: list[Any]) -> list[Any]:
    """A copy without the values of inputs that must be linked (forceInput).

    Older editors gave them a widget, and saved its value. As in today's editor, the number of values tells.
    """
    kept: list[bool] = []
    for declared in interface.inputs():
        forced = bool(declared.options.get("forceInput"))
        if forced or is_widget(declared):
            kept.append(not forced)
        if is_widget(declared) and _has_control(declared):
            kept.append(True)
    if len(kept) != len(saved) or all(kept):
        return list(saved)
    return [value for value, keep in zip(saved, kept, strict=True) if keep]


def take(interface: Interface, saved: list[Any], absent: frozenset[str]) -> dict[str, Any]:
    """Remove a node's values from the front of a list and return them by name; the inputs `absent` have no value
    there.
    """
    required = [declared for declared in interface.inputs() if is_widget(declared) and declared.category == "required"]
    uploads = any(declared.options.get(key) for declared in required for key in _UPLOADS)
    taken: dict[str, Any] = {}

    def next_value(declared: Input) -> Any:
        unsaved = isinstance(declared.type, str) and declared.type in _UNSAVED
        if declared.name not in absent and not unsaved and saved:
            taken[declared.name] = saved.pop(0)
            _drop_control(declared, saved)
        if required and declared.name == required[-1].name and uploads and saved[:1] == ["image"]:
            saved.pop(0)
        return taken.get(declared.name)

    _walk(interface, next_value)
    return taken | _of_the_editor(interface, saved)


def _of_the_editor(interface: Interface, saved: list[Any]) -> dict[str, Any]:
    """The values of widgets that only the editor has; the class names them in EDITOR_WIDGETS: ("index", "option{}").

    The last name is a pattern for all further widgets, counted from 1. All remaining values are removed.
    """
    names = getattr(interface.node_class, "EDITOR_WIDGETS", ())
    if not names:
        return {}
    values, saved[:] = list(saved), []
    single = len(names) - 1
    numbered = {names[-1].format(n + 1): value for n, value in enumerate(values[single:])}
    return dict(zip(names[:single], values[:single], strict=False)) | numbered


def _walk(interface: Interface, value_of: Callable[[Input], Any]) -> dict[str, Any]:
    """The value of every widget; `value_of` is called in the order in which values are saved."""
    values: dict[str, Any] = {}
    waiting = list(interface.inputs())
    while waiting:
        declared = waiting.pop(0)
        if is_widget(declared):
            values[declared.name] = value_of(declared)
            if declared.type == dynamic.COMBO:
                waiting[:0] = dynamic.chosen(declared, values[declared.name])
    return values


def take_one(declared: Input, saved: list[Any]) -> Any:
    """Remove one input's value from the front of a list; returns the default if the list is empty."""
    if not saved:
        return default(declared)
    value = saved.pop(0)
    _drop_control(declared, saved)
    return value


def take_primitive(saved: list[Any]) -> list[Any]:
    """Remove a primitive's value from the front of a list, and the way it changes with each run."""
    taken, saved[:1] = saved[:1], []
    if taken and _is_control(saved):
        saved.pop(0)
    return taken


def _drop_control(declared: Input, saved: list[Any]) -> None:
    """Drop the way a seed changes with each run, and for a combo also its filter."""
    if not _has_control(declared) or not _is_control(saved):
        return
    saved.pop(0)
    if declared.type != "INT" and saved[:1] == [""]:
        saved.pop(0)


def _has_control(declared: Input) -> bool:
    """Whether the editor adds the way in which a value changes with each run."""
    seed = declared.type == "INT" and declared.name in ("seed", "noise_seed")
    return bool(declared.options.get("control_after_generate") or seed)


def _is_control(saved: list[Any]) -> bool:
    return bool(saved) and (saved[0] is None or (isinstance(saved[0], (str, bool)) and saved[0] in _CONTROL))
