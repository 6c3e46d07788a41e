"""The canvas: a workflow as the browser saves it, read into frozen records.

    {"nodes": [{"id", "type", "mode", "inputs": [{"name", "type", "link", "widget"?}], "outputs", "widgets_values"}],
     "links": [[id, from node, from slot, to node, to slot, type] or {"id", "origin_id", ...}],
     "definitions": {"subgraphs": [{"id", "nodes", "links", "inputs", "outputs", "inputNode", "outputNode"}]}}

Files were written by many versions of the editor: lists may be null, absent or contain nulls, and ids are numbers or
texts. WorkflowError is raised where a wrong shape would lose information. No node class is used here; flatten.py
interprets the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from ..errors import WorkflowError


class Mode(IntEnum):
    """How a node takes part. Other numbers found in files mean ACTIVE."""

    ACTIVE = 0
    MUTED = 2
    BYPASSED = 4


@dataclass(frozen=True)
class Slot:
    """An input or output of a node. `link` is the id of the link into an input, `widget` the name of its widget."""

    name: str
    type: Any = "*"
    link: str | None = None
    widget: str | None = None


@dataclass(frozen=True)
class CanvasNode:
    """A node as the editor draws it."""

    id: str
    type: str
    title: str = ""
    mode: Mode = Mode.ACTIVE
    inputs: tuple[Slot, ...] = ()
    outputs: tuple[Slot, ...] = ()
    values: Any = None  # widgets_values: a list, an object or nothing
    named_values: Any = None  # widgets_values_named
    properties: Mapping[str, Any] = field(default_factory=dict)
    order: float = 0
    middle: tuple[float, float] | None = None  # position of its centre on the canvas
    colour: str = ""

    @property
    def pack(self) -> dict[str, str]:
        """The node pack of the node, as the file names it: some of cnr_id, aux_id, ver."""
        found = {key: self.properties.get(key) for key in ("cnr_id", "aux_id", "ver")}
        return {key: value for key, value in found.items() if isinstance(value, str)}


@dataclass(frozen=True)
class CanvasLink:
    """A link from an output slot of a node to an input slot of another."""

    id: str
    source: str
    slot: int
    target: str
    target_slot: int


@dataclass(frozen=True)
class Frame:
    """A group: a titled rectangle (left, top, width, height) around nodes."""

    title: str
    bounds: tuple[float, float, float, float]

    def holds(self, node: CanvasNode) -> bool:
        if node.middle is None:
            return False
        left, top, width, height = self.bounds
        return left <= node.middle[0] <= left + width and top <= node.middle[1] <= top + height


@dataclass(frozen=True)
class CanvasGraph:
    """The nodes and links of the canvas itself, or of a subgraph.

    A subgraph's inputs and outputs are drawn as two nodes of their own, `source_id` and `sink_id`.
    """

    nodes: Mapping[str, CanvasNode]
    links: Mapping[str, CanvasLink]
    inputs: tuple[Slot, ...] = ()
    outputs: tuple[Slot, ...] = ()
    source_id: str = "-10"
    sink_id: str = "-20"
    frames: tuple[Frame, ...] = ()

    def link_into(self, slot: Slot) -> CanvasLink | None:
        return self.links.get(slot.link) if slot.link is not None else None

    def link_to_output(self, slot: int) -> CanvasLink | None:
        """The link into an output of the subgraph."""
        return next((w for w in self.links.values() if w.target == self.sink_id and w.target_slot == slot), None)


@dataclass(frozen=True)
class Workflow:
    """The canvas, and the definitions that its nodes may refer to by type."""

    graph: CanvasGraph
    subgraphs: Mapping[str, CanvasGraph]
    groups: Mapping[str, Any]  # old group nodes, in the form of the file

    def nodes(self) -> list[CanvasNode]:
        """Every node, including those inside subgraphs."""
        return [node for graph in (self.graph, *self.subgraphs.values()) for node in graph.nodes.values()]

    def pack_names(self) -> dict[str, str]:
        """Class id -> the node pack that the file names for it; used to name the pack of a missing node."""
        return {
            node.type: pack
            for node in self.nodes()
            for pack in [node.pack.get("cnr_id") or node.pack.get("aux_id")]
            if pack and pack != "comfy-core"
        }


def pack_names(document: Any) -> dict[str, str]:
    """`Workflow.pack_names` of a document; {} if it is not a canvas."""
    try:
        return read_canvas(document).pack_names()
    except WorkflowError:
        return {}


def read_canvas(document: Any) -> Workflow:
    """The content of a workflow file as records. Raises WorkflowError if it is not a workflow."""
    if not isinstance(document, Mapping) or not isinstance(document.get("nodes"), list):
        raise WorkflowError("The workflow has no list of nodes.")
    definitions = map(_mapping, _list(_mapping(document.get("definitions")).get("subgraphs")))
    subgraphs = {_id(one.get("id"), ""): read_graph(one) for one in definitions}
    groups = _mapping(_mapping(document.get("extra")).get("groupNodes"))
    return Workflow(read_graph(document), subgraphs, groups)


def read_graph(data: Mapping[str, Any]) -> CanvasGraph:
    """A canvas or a subgraph definition."""
    nodes = [read_node(node) for node in _list(data.get("nodes")) if node is not None]
    links = [link for link in map(_link, _list(data.get("links"))) if link is not None]
    return CanvasGraph(
        {node.id: node for node in nodes},
        {link.id: link for link in links},
        _slots(data.get("inputs")),
        _slots(data.get("outputs")),
        _id(_mapping(data.get("inputNode")).get("id"), "-10"),
        _id(_mapping(data.get("outputNode")).get("id"), "-20"),
        tuple(frame for frame in map(_frame, _list(data.get("groups"))) if frame is not None),
    )


def read_node(data: Any) -> CanvasNode:
    """One node. WorkflowError if it has no id or no type."""
    if not isinstance(data, Mapping):
        raise WorkflowError(f"The workflow contains a {type(data).__name__} where a node is expected.")
    node_id = _id(data.get("id"), "")
    if not node_id:
        raise WorkflowError(f"A {data.get('type')!r} node of the workflow has no id.")
    if not isinstance(data.get("type"), str):
        raise WorkflowError(f"Node {node_id} of the workflow has no type.")
    title, mode, order = data.get("title"), data.get("mode"), data.get("order")
    return CanvasNode(
        id=node_id,
        type=data["type"],
        title=title if isinstance(title, str) else "",
        mode=Mode(mode) if mode in (Mode.MUTED, Mode.BYPASSED) else Mode.ACTIVE,
        inputs=_slots(data.get("inputs")),
        outputs=_slots(data.get("outputs")),
        values=data.get("widgets_values"),
        named_values=data.get("widgets_values_named"),
        properties=_mapping(data.get("properties")),
        order=order if isinstance(order, (int, float)) else 0,
        middle=_middle(data.get("pos"), data.get("size")),
        colour=str(data.get("bgcolor") or data.get("color") or ""),
    )


def _frame(data: Any) -> Frame | None:
    data = _mapping(data)
    bounds = _numbers(data.get("bounding"), 4)
    return None if bounds is None else Frame(str(data.get("title", "")), (bounds[0], bounds[1], bounds[2], bounds[3]))


def _middle(place: Any, size: Any) -> tuple[float, float] | None:
    corner, extent = _numbers(place, 2), _numbers(size, 2)
    return None if corner is None or extent is None else (corner[0] + extent[0] / 2, corner[1] + extent[1] / 2)


def _numbers(data: Any, count: int) -> list[float] | None:
    """The first `count` numbers of a list, or of an object with the keys "0", "1", ...; None if there are fewer."""
    found = [data.get(str(key)) for key in range(count)] if isinstance(data, Mapping) else _list(data)[:count]
    numbers = [one for one in found if isinstance(one, (int, float))]
    return numbers if len(numbers) == count == len(found) else None


def _slots(data: Any) -> tuple[Slot, ...]:
    return tuple(_slot(slot) for slot in _list(data))


def _slot(data: Any) -> Slot:
    data = _mapping(data)
    widget = _mapping(data.get("widget")).get("name")
    name = data.get("name")
    return Slot(
        name=name if isinstance(name, str) else "",
        type=data.get("type", "*"),
        link=_id(data.get("link"), None),
        widget=widget if isinstance(widget, str) else None,
    )


def _link(data: Any) -> CanvasLink | None:
    if isinstance(data, Mapping):
        data = [data.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    if not isinstance(data, list) or len(data) < 5:
        return None
    names = [_id(data[i], None) for i in (0, 1, 3)]
    slots = [data[i] for i in (2, 4)]
    if None in names or not all(isinstance(slot, int) for slot in slots):
        return None
    return CanvasLink(str(names[0]), str(names[1]), slots[0], str(names[2]), slots[1])


def _id(value: Any, otherwise: Any) -> Any:
    """An id as a text: ids are numbers in most files and texts in some."""
    return str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else otherwise


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
