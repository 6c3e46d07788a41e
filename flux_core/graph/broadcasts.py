"""Links of cg-use-everywhere: its nodes feed all unconnected inputs of a type, without drawn links.

    Anything Everywhere (and 3, ?)   each of its inputs is broadcast by its type
    Prompts Everywhere               two inputs, for inputs named as positive and as negative prompts

Who receives may be restricted: by patterns for titles, inputs and groups, to the group or colour of the node, or to
others. Of several that fit an input the one of the highest priority feeds it; if there are two of these, none does.
Widgets are fed only where the file says so. The rules are those of the pack's version 7; older files are read by them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .canvas import CanvasGraph, CanvasLink, CanvasNode, Mode, Slot
from .editor_only import BROADCASTS

_PROMPTS = (r"(_|\b)pos(itive|_|\b)|^prompt", r"(_|\b)neg(ative|_|\b)")
_REROUTES = ("Reroute", "Reroute (rgthree)")

Accepts = Callable[[CanvasNode, Slot], bool]


@dataclass(frozen=True)
class _Broadcast:
    """One input of a broadcasting node: what it sends, and to whom."""

    source: str
    slot: int
    type: str
    priority: int
    accepts: Accepts


def with_broadcasts(sheet: CanvasGraph, is_node: Callable[[CanvasNode], bool]) -> CanvasGraph:
    """The sheet with a link for everything that is broadcast on it. `is_node`: whether a box will be in the prompt."""
    found = [one for box in sheet.boxes.values() for one in _of(sheet, box)]
    if not found:
        return sheet
    boxes, wires = dict(sheet.boxes), dict(sheet.wires)
    for box in sheet.boxes.values():
        if box.mode != Mode.ACTIVE or not is_node(box):
            continue
        inputs = list(box.inputs)
        for number, slot in enumerate(inputs):
            best = _best(found, box, slot) if slot.link is None and _open(box, slot) else None
            if best is not None:
                wire = CanvasLink(f"broadcast {len(wires)}", best.source, best.slot, box.id, number)
                wires[wire.id] = wire
                inputs[number] = replace(slot, link=wire.id)
        boxes[box.id] = replace(box, inputs=tuple(inputs))
    return replace(sheet, boxes=boxes, wires=wires)


def _of(sheet: CanvasGraph, box: CanvasNode) -> Iterator[_Broadcast]:
    if box.type not in BROADCASTS or box.mode != Mode.ACTIVE:
        return
    rules = _rules(box)
    for number, slot in enumerate(box.inputs):
        wire = sheet.wire_into(slot)
        kind = _kind(sheet, wire)
        if wire is None or kind is None:
            continue
        name = _PROMPTS[number] if box.type == "Prompts Everywhere" and number < len(_PROMPTS) else None
        patterns = {**rules, "input_regex": name, "input_regex_invert": False} if name else rules
        yield _Broadcast(wire.source, wire.slot, kind, _priority(box, rules), _accepting(sheet, box, patterns))


def _rules(box: CanvasNode) -> Mapping[str, Any]:
    """The restrictions, as version 7 keeps them."""
    kept = box.properties.get("ue_properties")
    if isinstance(kept, Mapping) and kept.get("version"):
        return kept
    values = box.values if isinstance(box.values, list) else []
    texts = [value if isinstance(value, str) else None for value in (*values, None, None, None)][:3]
    return {
        "group_restricted": box.properties.get("group_restricted"),
        "color_restricted": box.properties.get("color_restricted"),
        **dict(zip(("title_regex", "input_regex", "group_regex"), texts, strict=True)),
    }


def _priority(box: CanvasNode, rules: Mapping[str, Any]) -> int:
    """Higher for what is more particular."""
    said = rules.get("priority")
    if isinstance(said, int) and said:
        return said
    patterned = any(rules.get(f"{name}_regex") for name in ("title", "input", "group"))
    base = 20 if box.type == "Prompts Everywhere" else 10
    return base + 20 * patterned + 3 * bool(rules.get("group_restricted")) + 6 * bool(rules.get("color_restricted"))


def _kind(sheet: CanvasGraph, wire: CanvasLink | None) -> str | None:
    """The type of what a link brings; None if its source is not there or is switched off."""
    for _ in range(len(sheet.boxes) + 1):
        if wire is None:
            return None
        if wire.source == sheet.source_id:
            kind = sheet.inputs[wire.slot].type if 0 <= wire.slot < len(sheet.inputs) else None
            return kind if isinstance(kind, str) else None
        box = sheet.boxes.get(wire.source)
        if box is None or box.mode != Mode.ACTIVE:
            return None
        if box.type in _REROUTES and box.inputs:
            wire = sheet.wire_into(box.inputs[0])
            continue
        kind = box.outputs[wire.slot].type if 0 <= wire.slot < len(box.outputs) else None
        return kind if isinstance(kind, str) else None
    return None


def _accepting(sheet: CanvasGraph, sender: CanvasNode, rules: Mapping[str, Any]) -> Accepts:
    """Whether the restrictions allow a node and an input."""
    title, name, group = (_pattern(rules, key) for key in ("title", "input", "group"))
    own_groups = {one.title for one in sheet.frames if one.holds(sender)}

    def accepts(box: CanvasNode, slot: Slot) -> bool:
        around = {one.title for one in sheet.frames if one.holds(box)}
        return (
            (title is None or title(box.title or box.type))
            and (name is None or name(slot.name))
            and (group is None or any(map(group, around)))
            and rules.get("group_restricted") != (2 if around & own_groups else 1)
            and rules.get("color_restricted") != (2 if box.colour == sender.colour else 1)
        )

    return accepts


def _pattern(rules: Mapping[str, Any], key: str) -> Callable[[str], bool] | None:
    text = rules.get(f"{key}_regex")
    if not isinstance(text, str) or text in ("", ".*"):
        return None
    try:
        pattern = re.compile(text)
    except re.error:
        return None
    wanted = not rules.get(f"{key}_regex_invert")
    return lambda value: (pattern.search(value) is not None) == wanted


def _open(box: CanvasNode, slot: Slot) -> bool:
    """Whether an input that nothing feeds may be fed by a broadcast."""
    rules = box.properties.get("ue_properties")
    rules = rules if isinstance(rules, Mapping) else box.properties
    if slot.widget is None:
        return not _named(rules.get("input_ue_unconnectable"), slot.name)
    return _named(rules.get("widget_ue_connectable"), slot.name)


def _named(table: Any, name: str) -> bool:
    return isinstance(table, Mapping) and bool(table.get(name))


def _best(found: list[_Broadcast], box: CanvasNode, slot: Slot) -> _Broadcast | None:
    fitting = [one for one in found if one.type == slot.type and one.source != box.id and one.accepts(box, slot)]
    first = max((one.priority for one in fitting), default=0)
    best = [one for one in fitting if one.priority == first]
    return best[0] if len(best) == 1 else None
