"""Results of nodes, kept for the next prompt.

    key of a node = hash(class, IS_CHANGED, constants by value, links as (key of the node above, slot))

so a change affects exactly the nodes that depend on it; ids, titles and positions have no effect. The cache keeps the
results of the nodes of the newest prompt and drops the others when the next prompt begins. Calls nothing but
IS_CHANGED.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .calls import Outputs, arguments, finished, gather, wants_lists
from .dynamic import nested
from .interface import Interface, Interfaces
from .live import LivePrompt
from .prompt import Link, Node

log = logging.getLogger(__name__)

_never = itertools.count()  # for values that are equal to nothing, not even to themselves


@dataclass(frozen=True)
class CachedOutput:
    """The outputs of a node and the data that it shows in the browser (empty for most nodes)."""

    outputs: Outputs
    ui: Mapping[str, Any] = field(default_factory=dict)


class CacheKeys:
    """The keys of a prompt's nodes, each computed once."""

    def __init__(self, live: LivePrompt, interfaces: Interfaces) -> None:
        self._live = live
        self._interfaces = interfaces
        self._keys: dict[str, str] = {}

    def __getitem__(self, node_id: str) -> str:
        path: dict[str, Iterator[str]] = {} if node_id in self._keys else {node_id: self._sources(node_id)}
        while path:
            current = next(reversed(path))
            source = next(path[current], None)
            if source is None:
                path.popitem()
                self._keys[current] = self._key(self._live.nodes[current])
            elif source not in self._keys and source not in path:
                path[source] = self._sources(source)
        return self._keys[node_id]

    def _sources(self, node_id: str) -> Iterator[str]:
        return (link.node_id for _, link in self._live.nodes[node_id].links() if self._live.has_node(link.node_id))

    def _key(self, node: Node) -> str:
        interface = self._interfaces[node.class_type]
        parts = [node.class_type, _text(_changed(node, interface))]
        if interface.takes_unique_id or getattr(interface.node_class, "NOT_IDEMPOTENT", False):
            parts.append(node.id)
        for name, value in sorted(node.inputs.items()):
            if isinstance(value, Link):  # no key yet: the node is missing, or the link closes a cycle
                above = self._keys.get(value.node_id) or _unique()
                parts.append(f"{name!r} <- {above} {value.slot}")
            else:
                parts.append(f"{name!r} = {_text(value)}")
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """Results by key, and node objects by (id, class), which keep their state while they are in the prompt."""

    def __init__(self) -> None:
        self._made: dict[str, CachedOutput] = {}
        self._objects: dict[tuple[str, str], Any] = {}
        self._grown: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}  # root -> keys and objects of its expansion

    def begin(self, live: LivePrompt, keys: CacheKeys) -> None:
        """Drop everything that is not part of this prompt."""
        present = {(node.id, node.class_type) for node in live.nodes.values()}
        self._grown = {root: grown for root, grown in self._grown.items() if root in present}
        kept = {keys[node_id] for node_id in live.nodes}.union(*self._grown.values())
        objects = present.union(*(grown.values() for grown in self._grown.values()))
        self._made = {key: made for key, made in self._made.items() if key in kept}
        self._objects = {who: node for who, node in self._objects.items() if who in objects}

    def regrow(self, root: Node) -> None:
        """Called when `root` expands again: nodes of its earlier expansion that do not reappear are dropped with the
        next prompt.
        """
        self._grown[root.id, root.class_type] = {}

    def grown(self, root: Node, node: Node, key: str) -> None:
        """Keep the results of `node` as long as `root` is in the prompt."""
        self._grown[root.id, root.class_type][key] = (node.id, node.class_type)

    def get(self, key: str) -> CachedOutput | None:
        return self._made.get(key)

    def put(self, key: str, made: CachedOutput) -> None:
        self._made[key] = made

    def forget_shown(self) -> None:
        """Drop the results of nodes that show something, such as saved images, so that these nodes run again."""
        self._made = {key: made for key, made in self._made.items() if not made.ui}

    def forget_all(self) -> None:
        """Drop all results, because the behaviour of the nodes has changed."""
        self._made.clear()

    def object(self, node: Node, node_class: type[Any]) -> Any:
        """The instance of this node, created at first use."""
        who = (node.id, node.class_type)
        if who not in self._objects:
            self._objects[who] = node_class()
        return self._objects[who]


def _changed(node: Node, interface: Interface) -> Any:
    """The result of IS_CHANGED for the constants of a node; NaN, which is equal to nothing, if it fails."""
    function = getattr(interface.node_class, "IS_CHANGED", None)
    if function is None:
        return None
    try:
        values = gather(node, interface, {"UNIQUE_ID": node.id, "PROMPT": {}}).values
        calls = arguments(values, wants_lists(interface.node_class))
        return [finished(function(**nested(interface, call))) for call in calls]
    except Exception as error:
        log.warning("IS_CHANGED of node %s (%s) failed, so it runs again: %s", node.id, node.class_type, error)
        return math.nan


def _text(value: Any) -> str:
    """A text that is the same for two values exactly if they are equal and of the same type.

    Objects and NaN are equal to nothing.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{_text(key)}: {_text(item)}" for key, item in value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    if value is None or type(value) in (bool, int, str, bytes) or (type(value) is float and not math.isnan(value)):
        return repr(value)
    return _unique()


def _unique() -> str:
    return f"<{next(_never)}>"
