"""A canvas becomes an API prompt: what the browser does when a person presses Run.

    muted nodes vanish with their links; bypassed nodes pass on the input of the same type; reroutes are followed and
    primitives give their value, muted or not; notes and switches are dropped, broadcasts drawn as links; subgraphs and
    group nodes are taken apart ("38:13" is node 13 in 38)

Node classes come from a table, for the order of widgets and their defaults; a class that is not in it keeps its links,
so that validation can say what is missing. Runs nothing.
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
from .groups import group_sheet
from .interface import Classes, Interface, Interfaces
from .links import settled
from .placeholders import Choose, choices_made, fields_filled
from .widgets import entered, is_widget, kind_of, layout, widget_values

_REROUTES = ("Reroute", "Reroute (rgthree)", "SetNode")  # first input to first output
_NO_NODES = frozenset({*NEVER_SENT, *_REROUTES, "PrimitiveNode", "GetNode"})
_SAVERS = ("SaveImage", "SaveAnimatedPNG", "SaveAnimatedWEBP", "SaveWEBM", "SaveVideo", "SaveLatent", "PreviewImage")


def to_prompt(embedded: Embedded, classes: Classes, choose: Choose = random.choice) -> dict[str, Any]:
    """The API prompt of what a file carries: its own if it has one (that is exact), else that of its canvas.

    Raises WorkflowError when there is only a text of parameters, or the canvas cannot be read.
    """
    if embedded.prompt is not None:
        return without_editor_nodes(embedded.prompt, classes)
    if embedded.workflow is not None:
        return canvas_to_prompt(embedded.workflow, classes, choose)
    raise WorkflowError(
        "The file carries generation parameters as text, but no ComfyUI workflow. "
        "Load it into the program that made it, or build a workflow with these settings."
    )


def canvas_to_prompt(workflow: Any, classes: Classes, choose: Choose = random.choice) -> dict[str, Any]:
    """The API prompt of a canvas workflow. `choose` picks among {a|b} in prompts. Raises WorkflowError."""
    return flatten(read_canvas(workflow), classes, choose)


def flatten(canvas: Workflow, classes: Classes, choose: Choose = random.choice) -> dict[str, Any]:
    """As `canvas_to_prompt`, of a canvas that has been read."""
    return _Flattening(canvas, classes, choose).prompt()


@dataclass(frozen=True)
class _Scope:
    """A sheet in use: the canvas, or one instance of a subgraph, with what that instance sets inside."""

    sheet: CanvasGraph
    path: tuple[str, ...] = ()
    outer: _Scope | None = None
    instance: CanvasNode | None = None
    inner: dict[str, _Scope] = field(default_factory=dict)  # instance id -> its scope
    input_values: Mapping[str, Any] = field(default_factory=dict)  # of unlinked inputs of the subgraph
    box_values: Mapping[tuple[str, str], Any] = field(default_factory=dict)  # (box, widget) -> value

    def id_of(self, box: CanvasNode) -> str:
        return ":".join((*self.path, box.id))


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
_Place = tuple[_Scope, CanvasLink]  # a wire we are following upwards


class _Flattening:
    def __init__(self, workflow: Workflow, classes: Classes, choose: Choose) -> None:
        self.workflow = workflow
        self.interfaces = Interfaces(classes)
        self.choose = choose
        subgraphs = {name: self._wired(sheet) for name, sheet in workflow.subgraphs.items()}
        self.workflow = replace(workflow, sheet=self._wired(workflow.sheet), subgraphs=subgraphs)
        self.root = _Scope(self.workflow.sheet)
        self.count = 0
        self.nodes: dict[str, tuple[_Scope, CanvasNode]] = {}
        for scope, box in self._unpacked(self.root):
            self.nodes[scope.id_of(box)] = (scope, box)
        self.values = {node_id: self._own_values(*place) for node_id, place in self.nodes.items()}

    def prompt(self) -> dict[str, Any]:
        return {node_id: self._node(node_id, *place) for node_id, place in self.nodes.items()}

    # Taking subgraphs apart ------------------------------------------------------------------------------------------

    def _unpacked(self, scope: _Scope) -> Iterator[tuple[_Scope, CanvasNode]]:
        """The boxes that become nodes, in order of drawing, those of a subgraph in its place."""
        for box in sorted(scope.sheet.boxes.values(), key=lambda box: box.order):
            self.count += 1
            if self.count > MAX_NODES:
                raise WorkflowError(f"The workflow has more than {MAX_NODES} nodes once its subgraphs are unpacked.")
            if box.mode != Mode.ACTIVE:
                continue
            sheet = self._definition(box)
            if sheet is not None:
                if len(scope.path) > 50:
                    raise WorkflowError(f"The subgraphs of the workflow contain each other (node {scope.id_of(box)}).")
                scope.inner[box.id] = self._inside(scope, box, sheet)
                yield from self._unpacked(scope.inner[box.id])
            elif self._is_node(box):
                yield scope, box

    def _wired(self, sheet: CanvasGraph) -> CanvasGraph:
        return with_broadcasts(settled(sheet, self._layout), self._is_node)

    def _definition(self, box: CanvasNode) -> CanvasGraph | None:
        if box.type in self.workflow.subgraphs:
            return self.workflow.subgraphs[box.type]
        prefix, _, name = box.type.replace("workflow/", "workflow>", 1).partition(">")
        if prefix == "workflow" and name in self.workflow.groups:
            return group_sheet(self.workflow.groups[name], self.interfaces, box)
        return None

    def _is_node(self, box: CanvasNode) -> bool:
        return box.type in self.interfaces and box.type not in NEVER_SENT or box.type not in _NO_NODES

    def _inside(self, scope: _Scope, box: CanvasNode, sheet: CanvasGraph) -> _Scope:
        """What an instance sets in its subgraph: by its own widgets, or by those of a subgraph around it."""
        names = _promoted(box, sheet)
        values = box.values if isinstance(box.values, list) else []
        found = {key: value for key, value in zip(names, values, strict=False) if value is not None}
        if isinstance(box.named_values, Mapping):
            found |= {key: box.named_values[key[1]] for key in names if box.named_values.get(key[1]) is not None}
        found |= {("-1", name): value for (owner, name), value in scope.box_values.items() if owner == box.id}
        inputs = {name: value for (owner, name), value in found.items() if owner == "-1"}
        return _Scope(sheet, (*scope.path, box.id), scope, box, {}, inputs, found)

    def _layout(self, box: CanvasNode) -> tuple[Sequence[Slot], Sequence[Slot]] | None:
        """The inputs and outputs that a box's class declares; None if it is unknown, or has inputs that come and go."""
        if box.type in self.workflow.subgraphs:
            sheet = self.workflow.subgraphs[box.type]
            return sheet.inputs, sheet.outputs
        interface = self._interface(box)
        return None if interface is None else layout(interface)

    # One node --------------------------------------------------------------------------------------------------------

    def _interface(self, box: CanvasNode) -> Interface | None:
        return self.interfaces[box.type] if box.type in self.interfaces else None

    def _own_values(self, scope: _Scope, box: CanvasNode) -> dict[str, Any]:
        interface = self._interface(box)
        if interface is None:
            return {}
        named = dict(box.named_values) if isinstance(box.named_values, Mapping) else {}
        named |= {name: value for (owner, name), value in scope.box_values.items() if owner == box.id}
        return widget_values(interface, box.values, named)

    def _node(self, node_id: str, scope: _Scope, box: CanvasNode) -> dict[str, Any]:
        interface = self._interface(box)
        inputs = {name: self._sent(box, interface, name, value) for name, value in self.values[node_id].items()}
        for slot in box.inputs:
            if slot.link is None or not slot.name or (interface is not None and find(interface, slot.name) is None):
                continue
            end = self._trace(scope, slot)
            if isinstance(end, _Source):
                inputs[slot.name] = [end.node_id, end.slot]
            elif isinstance(end, _Value):
                declared = find(interface, slot.name) if interface is not None and end.primitive is not None else None
                if declared is None:
                    inputs[slot.name] = self._sent(box, interface, slot.name, end.value)
                elif is_widget(declared) and end.primitive in ("*", kind_of(declared.type)):
                    inputs[slot.name] = self._sent(box, interface, slot.name, entered(declared, end.value))
        meta = {"title": box.title or box.type, **box.pack}
        return {"class_type": box.type, "inputs": inputs, "_meta": meta}

    def _sent(self, box: CanvasNode, interface: Interface | None, name: str, value: Any) -> Any:
        """A widget's value as it goes into the prompt."""
        declared = find(interface, name) if interface is not None else None
        if isinstance(value, str) and declared is not None and declared.options.get("dynamicPrompts"):
            return choices_made(value, self.choose)
        if isinstance(value, str) and name == "filename_prefix" and box.type.removeprefix("Sluice") in _SAVERS:
            return fields_filled(value, self._field, datetime.now())
        return {"__value__": value} if isinstance(value, list) else value

    def _field(self, name: str, widget: str) -> Any:
        """A widget's value on the node called `name`: by the name kept for this purpose, else by title."""
        known = [node_id for node_id, (_, b) in self.nodes.items() if b.properties.get("Node name for S&R") == name]
        titled = [node_id for node_id, (_, box) in self.nodes.items() if box.title == name]
        return next((self.values[node_id].get(widget) for node_id in known + titled), None)

    # Following links -------------------------------------------------------------------------------------------------

    def _trace(self, scope: _Scope, slot: Slot) -> _End | None:
        """What feeds an input in the end; None if nothing does."""
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
        wire = scope.sheet.wire_into(slot) if slot is not None else None
        return (scope, wire) if wire is not None else None

    def _up(self, scope: _Scope, wire: CanvasLink, wanted: Any) -> _Place | _End | None:
        """One step towards the source of a wire."""
        if wire.source == scope.sheet.source_id and scope.instance is not None:
            return self._out_of_subgraph(scope, wire.slot)
        box = scope.sheet.boxes.get(wire.source)
        if box is None:
            return None
        if box.mode == Mode.MUTED and self._is_node(box):
            return None
        if box.mode == Mode.BYPASSED:
            return self._into(scope, _passed_on(box, wire.slot, wanted))
        if box.id in scope.inner:
            inner = scope.inner[box.id]
            out = inner.sheet.wire_out(wire.slot)
            return (inner, out) if out is not None else None
        if self._is_node(box):
            return _Source(scope.id_of(box), wire.slot)
        if box.type in _REROUTES:
            return self._into(scope, box.inputs[0] if box.inputs else None)
        if box.type == "PrimitiveNode":
            values = box.values if isinstance(box.values, list) else []
            value = scope.box_values.get((box.id, "value"), values[0] if values else None)
            kind = kind_of(box.outputs[0].type) if box.outputs else "*"
            return None if value is None else _Value(value, primitive=kind)
        return self._set_node(scope, box) if box.type == "GetNode" else None

    def _out_of_subgraph(self, scope: _Scope, index: int) -> _Place | _Value | None:
        """From an input drawn inside a subgraph to what feeds it on the instance."""
        assert scope.outer is not None and scope.instance is not None
        if not 0 <= index < len(scope.sheet.inputs):
            return None
        name, slots = scope.sheet.inputs[index].name, scope.instance.inputs
        slot = slots[index] if index < len(slots) else None
        place = self._into(scope.outer, slot)
        if place is None and name in scope.input_values:
            return _Value(scope.input_values[name])
        return place

    def _set_node(self, scope: _Scope, getter: CanvasNode) -> _Place | None:
        """KJNodes' invisible links: a GetNode reads what the SetNode of the same name, here or further out, is fed."""
        name = _first(getter.values)
        around: _Scope | None = scope
        while name is not None and around is not None:
            for box in around.sheet.boxes.values():
                if box.type == "SetNode" and box.mode == Mode.ACTIVE and _first(box.values) == name and box.inputs:
                    return self._into(around, box.inputs[0])
            around = around.outer
        return None


def _passed_on(box: CanvasNode, slot: int, wanted: Any) -> Slot | None:
    """The input that a bypassed box puts out at `slot`: the same number if the types fit, else the first that fits."""
    inputs = box.inputs
    if wanted in ("*", ""):
        return inputs[slot] if slot < len(inputs) else next(iter(inputs), None)
    output = box.outputs[slot].type if slot < len(box.outputs) else wanted
    fitting = [one for one in inputs if _connects(one.type, output) and _connects(one.type, wanted)]
    if slot < len(inputs) and inputs[slot] in fitting:
        return inputs[slot]
    return next((one for one in inputs if one.type == wanted), None) or next(iter(fitting), None)


def _connects(one: Any, other: Any) -> bool:
    """Whether the canvas would draw a link between these types: equal, any, or unions with a type in common."""
    if one in ("*", "") or other in ("*", "") or one == other:
        return True
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    return not set(one.lower().split(",")).isdisjoint(other.lower().split(","))


def _promoted(box: CanvasNode, sheet: CanvasGraph) -> list[tuple[str, str]]:
    """Whose values an instance's widgets_values are, in order: ("-1", input of the subgraph) or (inner box, widget)."""
    proxies = box.properties.get("proxyWidgets")
    if isinstance(proxies, list) and proxies:
        return [(str(one[0]), str(one[1])) if isinstance(one, list) and len(one) > 1 else ("", "") for one in proxies]
    fed = {wire.id: wire.slot for wire in sheet.wires.values() if wire.source == sheet.source_id}
    widget_inputs = {
        fed[slot.link]
        for inner in sheet.boxes.values()
        for slot in inner.inputs
        if slot.widget is not None and slot.link in fed
    }
    return [("-1", slot.name) for index, slot in enumerate(sheet.inputs) if index in widget_inputs and slot.name]


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list) and values else None
