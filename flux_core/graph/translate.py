"""Replaces a workflow's core nodes by ours, or ours by core nodes: ids and types of links change; links, values and
positions stay.

Inside ComfyUI our models have link types of their own, so a node is replaced only together with all nodes it is
connected to by MODEL, CLIP and VAE links. A group of connected nodes that contains a node without a counterpart is left
unchanged and reported. Both the canvas's format, with subgraphs and reroutes, and API prompts are supported.
web/comfyui/swap.mjs is the same in the browser; both use the table web/comfyui/swap_nodes.json:

    {core id: {"inputs": {name: kind}, "outputs": [kind or null], "only"?: {"input", "position", "value"}}}

Uses no node class and no torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WorkflowError

PREFIX = "Sluice"
_MODELS = ("MODEL", "CLIP", "VAE", "CONTROL_NET", "CLIP_VISION", "STYLE_MODEL", "MODEL_PATCH")
KINDS = {kind: f"FLUX_{kind}" for kind in _MODELS}
EITHER = {*KINDS, *KINDS.values()}
TABLE = Path(__file__).parents[2] / "web" / "comfyui" / "swap_nodes.json"

Json = dict[str, Any]
Table = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Swapped:
    """The new workflow, how many nodes changed, and a sentence for each group that stayed."""

    workflow: Json
    changed: int
    left: tuple[str, ...]


def read_table() -> Table:
    table: Table = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def swap(workflow: Mapping[str, Any], table: Table, back: bool = False) -> Swapped:
    """Replaces core nodes by ours, or ours by core nodes with `back`. The argument is not changed.

    Raises WorkflowError if it is neither a canvas nor an API prompt.
    """
    made = copy.deepcopy(dict(workflow))
    if isinstance(made.get("nodes"), list):
        return _swap(made, _Canvas(made, table, back))
    if made and all(isinstance(node, dict) and "class_type" in node for node in made.values()):
        return _swap(made, _Prompt(made, table, back))
    raise WorkflowError("This is not a workflow: it is neither a canvas with nodes nor an API prompt.")


def _swap(made: Json, graph: _Canvas | _Prompt) -> Swapped:
    changed, left = 0, []
    for group in graph.groups.all():
        nodes = [vertex for vertex in group if vertex in graph.types]
        twins = [vertex for vertex in nodes if graph.names.twin(graph.types[vertex])]
        reasons = [reason for vertex in nodes if (reason := graph.reason(vertex))]
        if twins and reasons:
            names = ", ".join(f"{vertex[-1]} {graph.types[vertex]}" for vertex in twins)
            left.append(f"Not changed: {names}. {'; '.join(reasons)}.")
        elif twins:
            changed += len(twins)
            graph.change(group)
    return Swapped(made, changed, tuple(left))


@dataclass(frozen=True)
class _Names:
    """Translates node ids and link types."""

    table: Table
    back: bool

    def twin(self, name: str) -> str | None:
        """The counterpart of a node id."""
        plain = name.removeprefix(PREFIX)
        if plain not in self.table or (name != plain) != self.back:
            return None
        return plain if self.back else PREFIX + plain

    def kind(self, kind: Any) -> Any:
        """The link type that replaces this one."""
        pairs = {new: old for old, new in KINDS.items()} if self.back else KINDS
        return pairs.get(kind, kind) if isinstance(kind, str) else kind

    def row(self, name: str) -> Mapping[str, Any]:
        return self.table.get(name.removeprefix(PREFIX), {})

    def missing(self, vertex: tuple[Any, ...], name: str, value: Any) -> str | None:
        """Why a node cannot be replaced, given the value of the input that its row requires; None if it can."""
        if self.twin(name) is None:
            return f"{vertex[-1]} {name} has no twin"
        only = self.row(name).get("only")
        if only and value != only["value"]:
            return f"{vertex[-1]} {name} has the {only['input']} {value}, not {only['value']}"
        return None


class _Groups:
    """Groups of connected vertices (union-find), in the order in which they were added."""

    def __init__(self) -> None:
        self.parents: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def top(self, vertex: tuple[Any, ...]) -> tuple[Any, ...]:
        self.parents.setdefault(vertex, vertex)
        while self.parents[vertex] != vertex:
            vertex = self.parents[vertex]
        return vertex

    def join(self, one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
        self.parents[self.top(other)] = self.top(one)

    def all(self) -> Iterable[list[tuple[Any, ...]]]:
        groups: dict[Hashable, list[tuple[Any, ...]]] = {}
        for vertex in self.parents:
            groups.setdefault(self.top(vertex), []).append(vertex)
        return groups.values()


class _Prompt:
    """An API prompt: {id: {"class_type", "inputs": {name: value or [id, slot]}}}. A vertex is ("node", id)."""

    def __init__(self, prompt: Json, table: Table, back: bool) -> None:
        self.prompt, self.names, self.groups = prompt, _Names(table, back), _Groups()
        self.types = {("node", key): str(node["class_type"]) for key, node in prompt.items()}
        for vertex in self.types:
            self.groups.top(vertex)
        for target, name, source, slot in self._links():
            if self._carries(target, name, source, slot):
                self.groups.join(("node", source), ("node", target))

    def _links(self) -> Iterator[tuple[str, str, str, int]]:
        for target, node in self.prompt.items():
            for name, value in (node.get("inputs") or {}).items():
                if isinstance(value, list) and len(value) == 2 and str(value[0]) in self.prompt:
                    yield target, name, str(value[0]), value[1]

    def _carries(self, target: str, name: str, source: str, slot: int) -> bool:
        outputs = self.names.row(self.types["node", source]).get("outputs", [])
        inputs = self.names.row(self.types["node", target]).get("inputs", {})
        return name in inputs or (slot < len(outputs) and outputs[slot] is not None)

    def reason(self, vertex: tuple[Any, ...]) -> str | None:
        name, inputs = self.types[vertex], self.prompt[vertex[1]].get("inputs") or {}
        only = self.names.row(name).get("only") or {}
        return self.names.missing(vertex, name, inputs.get(only.get("input")))

    def change(self, group: list[tuple[Any, ...]]) -> None:
        for vertex in group:
            self.prompt[vertex[1]]["class_type"] = self.names.twin(self.types[vertex])


class _Canvas:
    """The editor's format. A vertex is ("node", graph, id) or a slot of a subgraph, ("input", subgraph, slot)."""

    def __init__(self, workflow: Json, table: Table, back: bool) -> None:
        self.names, self.groups = _Names(table, back), _Groups()
        inner = (workflow.get("definitions") or {}).get("subgraphs") or []
        self.graphs: dict[str, Json] = {"": workflow, **{str(graph.get("id")): graph for graph in inner}}
        self.nodes: dict[tuple[Any, ...], Json] = {
            ("node", key, node.get("id")): node
            for key, graph in self.graphs.items() for node in graph.get("nodes") or [] if _is_node(node)
        }  # fmt: skip
        self.links: dict[tuple[Any, ...], list[Any]] = {}  # vertex -> links that leave it, whose type changes
        for vertex in self.nodes:
            self.groups.top(vertex)
        self.types = {
            vertex: str(node.get("type")) for vertex, node in self.nodes.items()
            if node.get("type") != "Reroute" and str(node.get("type")) not in self.graphs
        }  # fmt: skip
        for key, graph in self.graphs.items():
            for link in graph.get("links") or []:
                self._read(key, link)

    def _read(self, key: str, link: Any) -> None:
        if isinstance(link, list) and len(link) >= 6:
            _, origin, output, target, slot, kind = link[:6]
        elif isinstance(link, dict):
            origin, output, target, slot, kind = (
                link.get(name) for name in ("origin_id", "origin_slot", "target_id", "target_slot", "type")
            )
        else:
            return
        ends = self._kind(key, origin, "outputs", output), self._kind(key, target, "inputs", slot)
        if any(isinstance(one, str) and one in EITHER for one in (kind, *ends)):
            source = self._end(key, origin, output, "output")
            self.groups.join(source, self._end(key, target, slot, "input"))
            self.links.setdefault(source, []).append(link)

    def _kind(self, key: str, node: Any, side: str, slot: Any) -> Any:
        slots = self.nodes.get(("node", key, node), {}).get(side) or []
        kind = slots[slot].get("type") if isinstance(slot, int) and 0 <= slot < len(slots) else None
        return kind if isinstance(kind, str) else None

    def _end(self, key: str, node: Any, slot: Any, side: str) -> tuple[Any, ...]:
        """The end of a link: a node, or a subgraph's boundary, seen from inside or from outside."""
        graph = self.graphs[key]
        for boundary, there in (("inputNode", "input"), ("outputNode", "output")):
            if key and node == (graph.get(boundary) or {}).get("id"):
                return there, key, slot
        inner = str(self.nodes.get(("node", key, node), {}).get("type"))
        return (side, inner, slot) if inner and inner in self.graphs else ("node", key, node)

    def reason(self, vertex: tuple[Any, ...]) -> str | None:
        name, values = self.types[vertex], self.nodes[vertex].get("widgets_values")
        only = self.names.row(name).get("only") or {}
        position = only.get("position", 0)
        there = isinstance(values, list) and position < len(values)
        return self.names.missing(vertex, name, values[position] if there and values else None)

    def change(self, group: list[tuple[Any, ...]]) -> None:
        for vertex in group:
            for link in self.links.get(vertex, []):
                place: Any = 5 if isinstance(link, list) else "type"
                link[place] = self.names.kind(link[place])
            if vertex in self.types:
                self._change_node(self.nodes[vertex])
            elif vertex in self.nodes:
                self._change_slots(self.nodes[vertex])  # a reroute; instances of subgraphs are connected by their slots
            else:
                self._change_boundary(*vertex)

    def _change_node(self, node: Json) -> None:
        old = node["type"]
        node["type"] = self.names.twin(old)
        properties = node.get("properties") or {}
        if properties.get("Node name for S&R") == old:
            properties["Node name for S&R"] = node["type"]
        packs = ("sluice", "comfy-core") if self.names.back else ("comfy-core", "sluice")
        if properties.get("cnr_id") == packs[0]:
            properties["cnr_id"] = packs[1]
        self._change_slots(node)

    def _change_slots(self, node: Json) -> None:
        for slot in [*(node.get("inputs") or []), *(node.get("outputs") or [])]:
            kind = slot.get("type")
            if kind in EITHER:
                for key in ("type", "name", "localized_name"):
                    if slot.get(key) == kind:
                        slot[key] = self.names.kind(kind)

    def _change_boundary(self, side: str, key: str, slot: Any) -> None:
        """A slot of a subgraph, in its definition and on every instance."""
        instances = [node for node in self.nodes.values() if str(node.get("type")) == key]
        for owner in (self.graphs[key], *instances):
            slots = owner.get(f"{side}s") or []
            if isinstance(slot, int) and 0 <= slot < len(slots):
                slots[slot]["type"] = self.names.kind(slots[slot].get("type"))


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), (int, str))
