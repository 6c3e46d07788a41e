"""Nodes that exist only in the editor: it draws them and does not send them.

These are notes and marks, switches that mute or bypass other nodes, and broadcasting nodes, whose links broadcasts.py
adds. Some programs write them into API prompts nevertheless. They are recognised by name.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

NOTES = frozenset(
    {
        *("Note", "MarkdownNote", "Note Plus (mtb)", "Label (rgthree)", "Bookmark (rgthree)", "easy bookmark"),
        *("Hint Node", "Workflow Note", "Notes (rgthree)"),
    }
)
SWITCHES = frozenset(
    {
        *("Fast Groups Muter (rgthree)", "Fast Groups Bypasser (rgthree)", "Fast Muter (rgthree)"),
        *("Fast Bypasser (rgthree)", "Fast Actions Button (rgthree)", "Node Collector (rgthree)"),
        *("Mute / Bypass Repeater (rgthree)", "Mute / Bypass Relay (rgthree)", "Random Unmuter (rgthree)"),
        *("Node Combiner (rgthree)", "Fast Groups Bypasser", "Fast Groups Muter"),
    }
)
BROADCASTS = frozenset({"Anything Everywhere", "Anything Everywhere?", "Anything Everywhere3", "Prompts Everywhere"})
NEVER_SENT = NOTES | SWITCHES | BROADCASTS


def without_editor_nodes(prompt: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """An API prompt without editor nodes and without links to them; nodes of a class in `known` are kept."""
    left_out = {
        node_id
        for node_id, node in prompt.items()
        if isinstance(node, Mapping) and node.get("class_type") in NEVER_SENT and node["class_type"] not in known
    }
    if not left_out:
        return dict(prompt)
    return {node_id: _unlinked(node, left_out) for node_id, node in prompt.items() if node_id not in left_out}


def _unlinked(node: Any, left_out: set[str]) -> Any:
    if not isinstance(node, Mapping) or not isinstance(node.get("inputs"), Mapping):
        return node
    inputs = {name: value for name, value in node["inputs"].items() if not _leads_to(value, left_out)}
    return {**node, "inputs": inputs}


def _leads_to(value: Any, left_out: set[str]) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in left_out
