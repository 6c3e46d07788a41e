"""The node pack cg-use-everywhere: its nodes feed all unconnected inputs of a type without drawn links.

    Anything Everywhere (and 3, ?)   each of its inputs is broadcast to inputs of the same type
    Prompts Everywhere               two inputs, for inputs whose names mean a positive and a negative prompt

The receivers can be restricted by patterns for titles, inputs and groups, and to nodes of the same or of another group
or colour. If several broadcasts fit an input, the one with the highest priority feeds it; if two share the highest
priority, none does. A widget is fed only where the file allows it. The rules are those of version 7 of the pack, also
for older files.
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
    """One input of a broadcasting node: what it sends, and which inputs accept it."""

    source: str
    slot: int
    type: str
    priority: int
    accepts: Accepts


def with_broadcasts(graph: CanvasGraph, is_node: Callable[[CanvasNode], bool]) -> CanvasGraph:
    """The graph with a link for every broadcast. `is_node` tells whether a node of the canvas will be in the prompt."""
    found = [one for node in graph.nodes.values() for one in _of(graph, node)]
    if not found:
        return graph
    nodes, links = dict(graph.nodes), dict(graph.links)
    for node in graph.nodes.values():
        if node.mode != Mode.ACTIVE or not is_node(node):
            continue
        inputs = list(node.inputs)
        for number, slot in enumerate(inputs):
            best = _best(found, node, slot) if slot.link is None and _open(node, slot) else None
            if best is not None:
                link = CanvasLink(f"broadcast {len(links)}", best.source, best.slot, node.id, number)
                links[link.id] = link
                inputs[number] = replace(slot, link=link.id)
        nodes[node.id] = replace(node, inputs=tuple(inputs))
    return replace(graph, nodes=nodes, links=links)


def _of(graph: CanvasGraph, node: CanvasNode) -> Iterator[_Broadcast]:
    if node.type not in BROADCASTS or node.mode != Mode.ACTIVE:
        return
    rules = _rules(node)
    for number, slot in enumerate(node.inputs):
        link = graph.link_into(slot)
        kind = _kind(graph, link)
        if link is None or kind is None:
            continue
        name = _PROMPTS[number] if node.type == "Prompts Everywhere" and number < len(_PROMPTS) else None
        patterns = {**rules, "input_regex": name, "input_regex_invert": False} if name else rules
        yield _Broadcast(link.source, link.slot, kind, _priority(node, rules), _accepting(graph, node, patterns))


def _rules(node: CanvasNode) -> Mapping[str, Any]:
    """The restrictions in the form of version 7."""
    kept = node.properties.get("ue_properties")
    if isinstance(kept, Mapping) and kept.get("version"):
        return kept
    values = node.values if isinstance(node.values, list) else []
    texts = [value if isinstance(value, str) else None for value in (*values, None, None, None)][:3]
    return {
        "group_restricted": node.properties.get("group_restricted"),
        "color_restricted": node.properties.get("color_restricted"),
        **dict(zip(("title_regex", "input_regex", "group_regex"), texts, strict=True)),
    }


def _priority(node: CanvasNode, rules: Mapping[str, Any]) -> int:
    """More restricted broadcasts have a higher priority."""
    said = rules.get("priority")
    if isinstance(said, int) and said:
        return said
    patterned = any(rules.get(f"{name}_regex") for name in ("title", "input", "group"))
    base = 20 if node.type == "Prompts Everywhere" else 10
    return base + 20 * patterned + 3 * bool(rules.get("group_restricted")) + 6 * bool(rules.get("color_restricted"))


def _kind(graph: CanvasGraph, link: CanvasLink | None) -> str | None:
    """The type of a link's value; None if its source is missing, muted or bypassed."""
    for _ in range(len(graph.nodes) + 1):
        if link is None:
            return None
        if link.source == graph.source_id:
            kind = graph.inputs[link.slot].type if 0 <= link.slot < len(graph.inputs) else None
            return kind if isinstance(kind, str) else None
        node = graph.nodes.get(link.source)
        if node is None or node.mode != Mode.ACTIVE:
            return None
        if node.type in _REROUTES and node.inputs:
            link = graph.link_into(node.inputs[0])
            continue
        kind = node.outputs[link.slot].type if 0 <= link.slot < len(node.outputs) else None
        return kind if isinstance(kind, str) else None
    return None


def _accepting(graph: CanvasGraph, sender: CanvasNode, rules: Mapping[str, Any]) -> Accepts:
    """A function that tells whether the restrictions allow a node and an input."""
    title, name, group = (_pattern(rules, key) for key in ("title", "input", "group"))
    own_groups = {one.title for one in graph.frames if one.holds(sender)}

    def accepts(node: CanvasNode, slot: Slot) -> bool:
        around = {one.title for one in graph.frames if one.holds(node)}
        return (
            (title is None or title(node.title or node.type))
            and (name is None or name(slot.name))
            and (group is None or any(map(group, around)))
            and rules.get("group_restricted") != (2 if around & own_groups else 1)
            and rules.get("color_restricted") != (2 if node.colour == sender.colour else 1)
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


def _open(node: CanvasNode, slot: Slot) -> bool:
    """Whether an unconnected input may be fed by a broadcast."""
    rules = node.properties.get("ue_properties")
    rules = rules if isinstance(rules, Mapping) else node.properties
    if slot.widget is None:
        return not _named(rules.get("input_ue_unconnectable"), slot.name)
    return _named(rules.get("widget_ue_connectable"), slot.name)


def _named(table: Any, name: str) -> bool:
    return isinstance(table, Mapping) and bool(table.get(name))


def _best(found: list[_Broadcast], node: CanvasNode, slot: Slot) -> _Broadcast | None:
    fitting = [one for one in found if one.type == slot.type and one.source != node.id and one.accepts(node, slot)]
    first = max((one.priority for one in fitting), default=0)
    best = [one for one in fitting if one.priority == first]
    return best[0] if len(best) == 1 else None
