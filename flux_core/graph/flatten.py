"""Converts a canvas to an API prompt, as the browser does when a person presses Run.

    muted nodes are removed with their links; bypassed nodes pass on the input of the same type; reroutes are followed
    and primitives replaced by their value, muted or not; notes and switches are removed, broadcasts become links;
    subgraphs and group nodes are replaced by their content ("38:13" is node 13 inside node 38)

The order of widgets and their defaults come from a table of node classes. A node whose class is not in the table keeps
its links, so that validation can name the missing class. Nothing is run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ..errors import WorkflowError
from ..io.embedded import MAX_NODES, Embedded
from .broadcasts import with_broadcasts
from .canvas import CanvasGraph, CanvasLink, CanvasNode, Mode, Slot, Workflow, read_canvas
from .dynamic import find
from .editor_only import NEVER_SENT, without_editor_nodes
from .groups import group_graph
from .interface import Classes, Interface, Interfaces
from .links import settled
from .placeholders import Choose, choices_made, fields_filled
from .widgets import entered, is_widget, kind_of, layout, widget_values

_REROUTES = ("Reroute", "Reroute (rgthree)", "SetNode")  # their first input leads to their first output
_GETTERS = ("GetNode", "OutputGet")  # KJNodes', and Flux-Continuum's, which offers some of the names only
_NO_NODES = frozenset({*NEVER_SENT, *_REROUTES, *_GETTERS, "PrimitiveNode"})
_SAVERS = ("SaveImage", "SaveAnimatedPNG", "SaveAnimatedWEBP", "SaveWEBM", "SaveVideo", "SaveLatent", "PreviewImage")


def to_prompt(embedded: Embedded, classes: Classes, choose: Choose = random.choice) -> dict[str, Any]:
    """The API prompt of a file: the embedded prompt if there is one (it is exact), else the one of its canvas.

    Raises WorkflowError if the file has only a text of parameters, or if the canvas cannot be read.
    """
    if embedded.prompt is not None:
        return without_editor_nodes(embedded.prompt, classes)
    if embedded.workflow is not None:
        return canvas_to_prompt(embedded.workflow, classes, choose)
    raise WorkflowError(
        "The file contains generation parameters as text, but no ComfyUI workflow. "
        "Load it into the program that made it, or build a workflow with these settings."
    )


def canvas_to_prompt(workflow: Any, classes: Classes, choose: Choose = random.choice) -> dict[str, Any]:
    """The API prompt of a canvas. `choose` selects one option of each {a|b} in prompts. Raises WorkflowError."""
    return flatten(read_canvas(workflow), classes, choose)


def flatten(canvas: Workflow, classes: Classes, choose: Choose = random.choice) -> dict[str, Any]:
    """`canvas_to_prompt` for a canvas that has been read."""
    return _Flattening(canvas, classes, choose).prompt()


@dataclass(frozen=True)
class _Scope:
    """The canvas or one instance of a subgraph, with the values that the instance sets inside."""

    graph: CanvasGraph
    path: tuple[str, ...] = ()
    outer: _Scope | None = None
    instance: CanvasNode | None = None
    inner: dict[str, _Scope] = field(default_factory=dict)  # instance id -> its scope
    input_values: Mapping[str, Any] = field(default_factory=dict)  # values of unlinked inputs of the subgraph
    values_inside: Mapping[tuple[str, str], Any] = field(default_factory=dict)  # (node, widget) -> value

    def id_of(self, node: CanvasNode) -> str:
        return ":".join((*self.path, node.id))


@dataclass(frozen=True)
class _Value:
    """A link that ends in a value instead of a node."""

    value: Any
    primitive: str | None = None  # the type of a PrimitiveNode, which enters its value into widgets of that type


@dataclass(frozen=True)
class _Source:
    """A link that ends in an output of a node that will be in the prompt."""

    node_id: str
    slot: int


_End = _Source | _Value
_Place = tuple[_Scope, CanvasLink]  # a link, followed towards its source


class _Flattening:
    def __init__(self, workflow: Workflow, classes: Classes, choose: Choose) -> None:
        self.workflow = workflow
        self.interfaces = Interfaces(classes)
        self.choose = choose
        subgraphs = {name: self._linked(graph) for name, graph in workflow.subgraphs.items()}
        self.workflow = replace(workflow, graph=self._linked(workflow.graph), subgraphs=subgraphs)
        self.root = _Scope(self.workflow.graph)
        self.count = 0
        self.nodes: dict[str, tuple[_Scope, CanvasNode]] = {}
        for scope, node in self._unpacked(self.root):
            self.nodes[scope.id_of(node)] = (scope, node)
        self.values = {node_id: self._own_values(*place) for node_id, place in self.nodes.items()}

    def prompt(self) -> dict[str, Any]:
        return {node_id: self._node(node_id, *place) for node_id, place in self.nodes.items()}

    # Unpacking subgraphs ---------------------------------------------------------------------------------------------

    def _unpacked(self, scope: _Scope) -> Iterator[tuple[_Scope, CanvasNode]]:
        """The nodes that will be in the prompt, in drawing order; a subgraph's nodes take its place."""
        for node in sorted(scope.graph.nodes.values(), key=lambda node: node.order):
            self.count += 1
            if self.count > MAX_NODES:
                raise WorkflowError(f"The workflow has more than {MAX_NODES} nodes once its subgraphs are unpacked.")
            if node.mode != Mode.ACTIVE:
                continue
            graph = self._definition(node)
            if graph is not None:
                if len(scope.path) > 50:
                    raise WorkflowError(f"The subgraphs of the workflow contain each other (node {scope.id_of(node)}).")
                scope.inner[node.id] = self._inside(scope, node, graph)
                yield from self._unpacked(scope.inner[node.id])
            elif self._is_node(node) and not self._stands_alone(scope.graph, node):
                yield scope, node

    def _linked(self, graph: CanvasGraph) -> CanvasGraph:
        return with_broadcasts(settled(graph, self._layout), self._is_node)

    def _definition(self, node: CanvasNode) -> CanvasGraph | None:
        if node.type in self.workflow.subgraphs:
            return self.workflow.subgraphs[node.type]
        prefix, _, name = node.type.replace("workflow/", "workflow>", 1).partition(">")
        if prefix == "workflow" and name in self.workflow.groups:
            return group_graph(self.workflow.groups[name], self.interfaces, node)
        return None

    def _is_node(self, node: CanvasNode) -> bool:
        return node.type in self.interfaces and node.type not in NEVER_SENT or node.type not in _NO_NODES

    def _stands_alone(self, graph: CanvasGraph, node: CanvasNode) -> bool:
        """Whether a node of an unknown class has no socket and no link: no image depends on it. Packs draw texts and
        pictures on the canvas with such nodes.
        """
        ends = (end for link in graph.links.values() for end in (link.source, link.target))
        return node.type not in self.interfaces and not (node.inputs or node.outputs) and node.id not in ends

    def _inside(self, scope: _Scope, node: CanvasNode, graph: CanvasGraph) -> _Scope:
        """The subgraph of an instance, with the values set by its widgets or by those of an outer subgraph."""
        names = _promoted(node, graph)
        values = node.values if isinstance(node.values, list) else []
        found = {key: value for key, value in zip(names, values, strict=False) if value is not None}
        if isinstance(node.named_values, Mapping):
            found |= {key: node.named_values[key[1]] for key in names if node.named_values.get(key[1]) is not None}
        found |= {("-1", name): value for (owner, name), value in scope.values_inside.items() if owner == node.id}
        inputs = {name: value for (owner, name), value in found.items() if owner == "-1"}
        return _Scope(graph, (*scope.path, node.id), scope, node, {}, inputs, found)

    def _layout(self, node: CanvasNode) -> tuple[Sequence[Slot], Sequence[Slot]] | None:
        """The declared inputs and outputs of a node's class; None if it is unknown or has dynamic inputs."""
        if node.type in self.workflow.subgraphs:
            graph = self.workflow.subgraphs[node.type]
            return graph.inputs, graph.outputs
        interface = self._interface(node)
        return None if interface is None else layout(interface)

    # One node --------------------------------------------------------------------------------------------------------

    def _interface(self, node: CanvasNode) -> Interface | None:
        return self.interfaces[node.type] if node.type in self.interfaces else None

    def _own_values(self, scope: _Scope, node: CanvasNode) -> dict[str, Any]:
        interface = self._interface(node)
        if interface is None:
            return {}
        named = dict(node.named_values) if isinstance(node.named_values, Mapping) else {}
        named |= {name: value for (owner, name), value in scope.values_inside.items() if owner == node.id}
        return widget_values(interface, node.values, named)

    def _node(self, node_id: str, scope: _Scope, node: CanvasNode) -> dict[str, Any]:
        interface = self._interface(node)
        inputs = {name: self._sent(node, interface, name, value) for name, value in self.values[node_id].items()}
        for slot in node.inputs:
            if slot.link is None or not slot.name or (interface is not None and find(interface, slot.name) is None):
                continue
            end = self._trace(scope, slot)
            if isinstance(end, _Source):
                inputs[slot.name] = [end.node_id, end.slot]
            elif isinstance(end, _Value):
                declared = find(interface, slot.name) if interface is not None and end.primitive is not None else None
                if declared is None:
                    inputs[slot.name] = self._sent(node, interface, slot.name, end.value)
                elif is_widget(declared) and end.primitive in ("*", kind_of(declared.type)):
                    inputs[slot.name] = self._sent(node, interface, slot.name, entered(declared, end.value))
        meta = {"title": node.title or node.type, **node.pack}
        return {"class_type": node.type, "inputs": inputs, "_meta": meta}

    def _sent(self, node: CanvasNode, interface: Interface | None, name: str, value: Any) -> Any:
        """A widget's value in the form that the prompt has."""
        declared = find(interface, name) if interface is not None else None
        if isinstance(value, str) and declared is not None and declared.options.get("dynamicPrompts"):
            return choices_made(value, self.choose)
        if isinstance(value, str) and name == "filename_prefix" and node.type.removeprefix("Sluice") in _SAVERS:
            return fields_filled(value, self._field, datetime.now())
        return {"__value__": value} if isinstance(value, list) else value

    def _field(self, name: str, widget: str) -> Any:
        """A widget's value on the node `name`: its search and replace name, else its title."""
        known = [node_id for node_id, (_, b) in self.nodes.items() if b.properties.get("Node name for S&R") == name]
        titled = [node_id for node_id, (_, node) in self.nodes.items() if node.title == name]
        return next((self.values[node_id].get(widget) for node_id in known + titled), None)

    # Following links -------------------------------------------------------------------------------------------------

    def _trace(self, scope: _Scope, slot: Slot) -> _End | None:
        """The source of an input, with all links followed; None if there is none."""
        place: _Place | _End | None = self._into(scope, slot)
        seen = set()
        while isinstance(place, tuple):
            mark = (place[0].path, place[1].id)
            if mark in seen:
                raise WorkflowError(f"Reroutes or bypassed nodes of the workflow form a circle (input {slot.name}).")
            seen.add(mark)
            place = self._up(*place, slot.type)
        return place

    def _into(self, scope: _Scope, slot: Slot | None) -> _Place | None:
        link = scope.graph.link_into(slot) if slot is not None else None
        return (scope, link) if link is not None else None

    def _up(self, scope: _Scope, link: CanvasLink, wanted: Any) -> _Place | _End | None:
        """One step towards the source of a link."""
        if link.source == scope.graph.source_id and scope.instance is not None:
            return self._out_of_subgraph(scope, link.slot)
        node = scope.graph.nodes.get(link.source)
        if node is None:
            return None
        if node.mode == Mode.MUTED and self._is_node(node):
            return None
        if node.mode == Mode.BYPASSED:
            return self._into(scope, _passed_on(node, link.slot, wanted))
        if node.id in scope.inner:
            inner = scope.inner[node.id]
            out = inner.graph.link_to_output(link.slot)
            return (inner, out) if out is not None else None
        if self._is_node(node):
            return _Source(scope.id_of(node), link.slot)
        if node.type in _REROUTES:
            return self._into(scope, node.inputs[0] if node.inputs else None)
        if node.type == "PrimitiveNode":
            values = node.values if isinstance(node.values, list) else []
            value = scope.values_inside.get((node.id, "value"), values[0] if values else None)
            kind = kind_of(node.outputs[0].type) if node.outputs else "*"
            return None if value is None else _Value(value, primitive=kind)
        return self._set_node(scope, node) if node.type in _GETTERS else None

    def _out_of_subgraph(self, scope: _Scope, index: int) -> _Place | _Value | None:
        """One step from an input inside a subgraph to the link into the instance's input."""
        assert scope.outer is not None and scope.instance is not None
        if not 0 <= index < len(scope.graph.inputs):
            return None
        name, slots = scope.graph.inputs[index].name, scope.instance.inputs
        slot = slots[index] if index < len(slots) else None
        place = self._into(scope.outer, slot)
        if place is None and name in scope.input_values:
            return _Value(scope.input_values[name])
        return place

    def _set_node(self, scope: _Scope, getter: CanvasNode) -> _Place | None:
        """KJNodes' invisible links: a GetNode has the input of the SetNode of the same name, here or in an outer
        graph.
        """
        name = _first(getter.values)
        around: _Scope | None = scope
        while name is not None and around is not None:
            for node in around.graph.nodes.values():
                if node.type == "SetNode" and node.mode == Mode.ACTIVE and _first(node.values) == name and node.inputs:
                    return self._into(around, node.inputs[0])
            around = around.outer
        return None


def _passed_on(node: CanvasNode, slot: int, wanted: Any) -> Slot | None:
    """The input that a bypassed node passes to output `slot`: the same number if the types fit, else the first that
    fits.
    """
    inputs = node.inputs
    if wanted in ("*", ""):
        return inputs[slot] if slot < len(inputs) else next(iter(inputs), None)
    output = node.outputs[slot].type if slot < len(node.outputs) else wanted
    fitting = [one for one in inputs if _connects(one.type, output) and _connects(one.type, wanted)]
    if slot < len(inputs) and inputs[slot] in fitting:
        return inputs[slot]
    return next((one for one in inputs if one.type == wanted), None) or next(iter(fitting), None)


def _connects(one: Any, other: Any) -> bool:
    """Whether the editor allows a link between these types: equal, any, or unions with a common type."""
    if one in ("*", "") or other in ("*", "") or one == other:
        return True
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    return not set(one.lower().split(",")).isdisjoint(other.lower().split(","))


def _promoted(node: CanvasNode, graph: CanvasGraph) -> list[tuple[str, str]]:
    """The owners of an instance's widgets_values, in order: ("-1", input of the subgraph) or (inner node, widget)."""
    proxies = node.properties.get("proxyWidgets")
    if isinstance(proxies, list) and proxies:
        return [(str(one[0]), str(one[1])) if isinstance(one, list) and len(one) > 1 else ("", "") for one in proxies]
    fed = {link.id: link.slot for link in graph.links.values() if link.source == graph.source_id}
    widget_inputs = {
        fed[slot.link]
        for inner in graph.nodes.values()
        for slot in inner.inputs
        if slot.widget is not None and slot.link in fed
    }
    return [("-1", slot.name) for index, slot in enumerate(graph.inputs) if index in widget_inputs and slot.name]


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list) and values else None
