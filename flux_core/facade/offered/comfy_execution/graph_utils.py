"""comfy_execution.graph_utils: graphs that a node returns to be run in its place, and the value that skips nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....graph.calls import ExecutionBlocker
from ....graph.execute import current_call
from ....graph.prompt import is_link
from ...engine import current

__all__ = ["ExecutionBlocker", "GraphBuilder", "Node", "add_graph_prefix", "is_link"]


class GraphBuilder:
    """Collects nodes; their ids begin with a prefix that is unique for the running call, so that no two graphs share
    ids.
    """

    def __init__(self, prefix: str | None = None) -> None:
        self.prefix = self.alloc_prefix() if prefix is None else prefix
        self.nodes: dict[str, Node] = {}
        self.id_gen = 1

    @classmethod
    def alloc_prefix(
        cls, root: str | None = None, call_index: int | None = None, graph_index: int | None = None
    ) -> str:
        """`node.call.graph.`: the node, the number of its call, the number of the graph made in that call."""
        running = current_call.get()
        node_id, call = running or ("", 0)
        node_id = node_id if root is None else root
        call = call if call_index is None else call_index
        return f"{node_id}.{call}.{_graphs_made(running) if graph_index is None else graph_index}."

    def node(self, class_type: str, id: str | None = None, **kwargs: Any) -> Node:
        """A new node; inputs by their names. For an existing id, the node with that id."""
        if id is None:
            id, self.id_gen = str(self.id_gen), self.id_gen + 1
        full = self.prefix + str(id)
        if full not in self.nodes:
            self.nodes[full] = Node(full, class_type, kwargs)
        return self.nodes[full]

    def lookup_node(self, id: str) -> Node | None:
        return self.nodes.get(self.prefix + str(id))

    def finalize(self) -> dict[str, Any]:
        """The graph in the form in which a node returns it under "expand"."""
        return {node.id: node.serialize() for node in self.nodes.values()}

    def replace_node_output(self, node_id: str, index: int, new_value: Any) -> None:
        """Replace every link to an output by this value; None removes the input."""
        old = [self.prefix + str(node_id), index]
        for node in self.nodes.values():
            for name in [name for name, value in node.inputs.items() if is_link(value) and list(value) == old]:
                if new_value is None:
                    del node.inputs[name]
                else:
                    node.inputs[name] = new_value

    def remove_node(self, id: str) -> None:
        del self.nodes[self.prefix + str(id)]


def _graphs_made(running: tuple[str, int] | None) -> int:
    """The number of graphs that the running call has made before. Kept for one prompt."""
    kept = current().keep("graphs", dict)
    if kept.get("prompt") is not current().prompt:
        kept.clear()
        kept["prompt"] = current().prompt
    made = kept.setdefault(
        id(running), [running, 0]
    )  # the reference to the call prevents another call from getting its id
    made[1] += 1
    return int(made[1]) - 1


class Node:
    """One node of a graph that is being built."""

    def __init__(self, id: str, class_type: str, inputs: Mapping[str, Any]) -> None:
        self.id, self.class_type, self.inputs = id, class_type, dict(inputs)
        self.override_display_id: str | None = None

    def out(self, index: int) -> list[Any]:
        """A link to one of its outputs."""
        return [self.id, index]

    def set_input(self, key: str, value: Any) -> None:
        """Set an input; None removes it."""
        if value is None:
            self.inputs.pop(key, None)
        else:
            self.inputs[key] = value

    def get_input(self, key: str) -> Any:
        return self.inputs.get(key)

    def set_override_display_id(self, override_display_id: str) -> None:
        self.override_display_id = override_display_id

    def serialize(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"class_type": self.class_type, "inputs": self.inputs}
        if self.override_display_id is not None:
            plain["override_display_id"] = self.override_display_id
        return plain


def add_graph_prefix(
    graph: Mapping[str, Any], outputs: Sequence[Any], prefix: str
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The same graph and results with `prefix` before every id."""

    def renamed(value: Any) -> Any:
        return [prefix + value[0], value[1]] if is_link(value) else value

    nodes = {
        prefix + node_id: {**node, "inputs": {name: renamed(value) for name, value in node["inputs"].items()}}
        for node_id, node in graph.items()
    }
    return nodes, tuple(renamed(value) for value in outputs)
