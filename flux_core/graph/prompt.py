"""An API prompt as frozen nodes: the format of `POST /prompt` and of the `prompt` chunk of an image.

    {"3": {"class_type": "KSampler", "inputs": {"steps": 20, "model": ["4", 0]}, "_meta": {"title": "Sampler"}}}

An input is a constant or a link [node id, output slot]. Constants that are lists are written as {"__value__": [...]},
since a bare list means a link. Uses no node class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

JsonPrompt = Mapping[str, Mapping[str, Any]]  # the JSON form, cleaned (see embedded.clean_prompt)


@dataclass(frozen=True)
class Link:
    """An input that is fed by output `slot` of another node."""

    node_id: str
    slot: int


@dataclass(frozen=True)
class Node:
    """One node of a prompt. `inputs` maps names to a Link or to a constant."""

    id: str
    class_type: str
    inputs: Mapping[str, Any]
    title: str = ""

    def links(self) -> Iterator[tuple[str, Link]]:
        """The linked inputs, by name."""
        for name, value in self.inputs.items():
            if isinstance(value, Link):
                yield name, value


def parse_prompt(prompt: JsonPrompt) -> dict[str, Node]:
    """The nodes of a prompt in JSON form, in its order. Lists that are not links stay constants."""
    return {node_id: parse_node(node_id, node) for node_id, node in prompt.items()}


def parse_node(node_id: str, node: Mapping[str, Any]) -> Node:
    """One node from its JSON form."""
    inputs = {name: parse_input(value) for name, value in node["inputs"].items()}
    return Node(node_id, node["class_type"], inputs, title_of(node))


def parse_input(value: Any) -> Any:
    """A Link for [node id, slot], the content of a {"__value__": ...} wrapper, or the constant itself."""
    if is_link(value):
        return Link(value[0], int(value[1]))
    return value["__value__"] if is_wrapped(value) else value


def is_link(value: Any) -> bool:
    """Whether a JSON value has the form of a link: [text, number]."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], (int, float)) and not isinstance(value[1], bool)


def is_wrapped(value: Any) -> bool:
    """Whether a JSON value is a constant in a wrapper."""
    return isinstance(value, dict) and "__value__" in value


def title_of(node: Mapping[str, Any]) -> str:
    """The title a person gave a node, or its class."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return str(title or node.get("class_type", ""))


def name_of(node_id: str, node: Mapping[str, Any]) -> str:
    """The name of a node in sentences: node 3 "Sampler" (KSampler)."""
    class_type, title = str(node.get("class_type", "")), title_of(node)
    return f"node {node_id} ({class_type})" if title == class_type else f'node {node_id} "{title}" ({class_type})'
