"""A prompt while it runs: the nodes of the request and the nodes of expansions.

A node may return a graph that runs in its place. Each node of that graph has a parent (the node that returned it) and a
node to highlight on the canvas. The method names are those of ComfyUI's DYNPROMPT, which nodes can have as a hidden
input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .prompt import JsonPrompt, Node, parse_node, parse_prompt


class LivePrompt:
    """`nodes` are the frozen nodes of both kinds, by id."""

    def __init__(self, original: JsonPrompt) -> None:
        self.original = original
        self.nodes: dict[str, Node] = parse_prompt(original)
        self._grown: dict[str, Mapping[str, Any]] = {}
        self._parent: dict[str, str] = {}
        self._display: dict[str, str] = {}

    def grow(self, node_id: str, node: Mapping[str, Any], parent: str) -> None:
        """Add a node that `parent` expanded into. ValueError if its id is taken."""
        if self.has_node(node_id):
            raise ValueError(f"Node {parent} expands into a node {node_id}, but that id is already in use.")
        self._grown[node_id] = node
        self._parent[node_id] = parent
        self._display[node_id] = str(node.get("override_display_id", parent))
        self.nodes[node_id] = parse_node(node_id, node)

    def has_node(self, node_id: str) -> bool:
        return node_id in self.nodes

    def get_node(self, node_id: str) -> Mapping[str, Any]:
        """The JSON form of a node; KeyError if there is none."""
        return self._grown[node_id] if node_id in self._grown else self.original[node_id]

    def all_node_ids(self) -> set[str]:
        return set(self.nodes)

    def get_original_prompt(self) -> JsonPrompt:
        return self.original

    def get_parent_node_id(self, node_id: str) -> str | None:
        return self._parent.get(node_id)

    def get_real_node_id(self, node_id: str) -> str:
        """The node of the request from which this one was expanded, directly or through others."""
        while node_id in self._parent:
            node_id = self._parent[node_id]
        return node_id

    def get_display_node_id(self, node_id: str) -> str:
        """The node to highlight on the canvas."""
        while node_id in self._display:
            node_id = self._display[node_id]
        return node_id

    def identity(self, node_id: str) -> dict[str, Any]:
        """The four ids that progress messages carry."""
        return {
            "node_id": node_id,
            "display_node_id": self.get_display_node_id(node_id),
            "parent_node_id": self.get_parent_node_id(node_id),
            "real_node_id": self.get_real_node_id(node_id),
        }
