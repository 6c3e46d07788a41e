"""Dynamic inputs, which depend on what is chosen or linked: ComfyUI's newer kinds, expanded to plain inputs.

    COMFY_DYNAMICCOMBO_V3   resize_type = "scale by multiplier"  ->  resize_type, resize_type.multiplier
    COMFY_AUTOGROW_V3       values, of the names a, b, c, ...    ->  values.a, values.b, ... as many as the prompt has
    COMFY_MATCHTYPE_V3      any of IMAGE and MASK                ->  the same input with the type "IMAGE,MASK"

A prompt uses these dotted names; a node is called with one dict for each dynamic input it declared:
{"resize_type": {"resize_type": "scale by multiplier", "multiplier": 2.0}}. Uses no particular node class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .interface import Input, Interface, read_input

COMBO, GROWING, MATCHING = "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3", "COMFY_MATCHTYPE_V3"


def present(interface: Interface, given: Mapping[str, Any]) -> Iterator[Input]:
    """The inputs of a node, given the values in its prompt, in order; without hidden inputs."""
    for declared in interface.inputs():
        yield from _present(declared, given)


def _present(declared: Input, given: Mapping[str, Any]) -> Iterator[Input]:
    if declared.type == COMBO:
        yield _plain(declared)
        for inner in chosen(declared, given.get(declared.name)):
            yield from _present(inner, given)
    elif declared.type == GROWING:
        grown, least = members(declared), int(declared.options["template"].get("min", 0))
        for number, inner in enumerate(grown):
            required = number < least and inner.category == "required"
            if required or inner.name in given:
                yield _plain(inner, "required" if required else "optional")
    else:
        yield _plain(declared)


def find(interface: Interface, name: str) -> Input | None:
    """The declaration of one input by its dotted name, whichever options are chosen; None if there is none."""
    declared = interface.input(name)
    if declared is not None or "." not in name:
        return None if declared is None else _plain(declared)
    owner = interface.input(name.partition(".")[0])
    return None if owner is None else _within(owner, name)


def _within(owner: Input, name: str) -> Input | None:
    if owner.type == GROWING:
        return next((_plain(inner, "optional") for inner in members(owner) if inner.name == name), None)
    for option in owner.options.get("options", ()) if owner.type == COMBO else ():
        for inner in chosen(owner, option["key"]):
            found = _plain(inner) if inner.name == name else _within(inner, name)
            if found is not None:
                return found
    return None


def chosen(declared: Input, key: Any) -> tuple[Input, ...]:
    """The inputs that an option of a dynamic combo adds; none for an unknown option."""
    option = next((one for one in declared.options.get("options", ()) if one["key"] == key), None)
    sections = {} if option is None else option["inputs"]
    return tuple(
        read_input(f"{declared.name}.{name}", category, spec)
        for category in ("required", "optional")
        for name, spec in sections.get(category, {}).items()
    )


def members(declared: Input) -> tuple[Input, ...]:
    """All inputs that a growing list can have."""
    template = declared.options["template"]
    names = template.get("names") or [f"{template.get('prefix', '')}{i}" for i in range(template.get("max", 0))]
    category, spec = next((key, spec) for key, section in template["input"].items() for spec in section.values())
    return tuple(read_input(f"{declared.name}.{name}", category, spec) for name in names)


def keys(declared: Input) -> list[Any]:
    """The options of a dynamic combo."""
    return [option["key"] for option in declared.options.get("options", ())]


def _plain(declared: Input, category: str | None = None) -> Input:
    """The input with a plain type."""
    kind = declared.type
    if kind == COMBO:
        kind = keys(declared)
    elif kind == MATCHING:
        kind = declared.options["template"]["allowed_types"]
    return Input(declared.name, kind, category or declared.category, declared.options)


def nested(interface: Interface, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with dotted names grouped into the dicts that the node expects."""
    owners = {declared.name: declared.type for declared in interface.inputs() if declared.type in (COMBO, GROWING)}
    if not owners:
        return dict(call)
    folded: dict[str, Any] = {name: {} for name, kind in owners.items() if kind == GROWING}
    for name, value in sorted(call.items(), key=lambda item: item[0].count(".")):  # a combo's own value comes first
        parts = name.split(".") if name.partition(".")[0] in owners else [name]
        if len(parts) == 1 and owners.get(name) == COMBO:
            parts = [name, name]
        place = folded
        for part in parts[:-1]:
            if not isinstance(place.setdefault(part, {}), dict):
                place[part] = {part: place[part]}
            place = place[part]
        place[parts[-1]] = value
    return folded
