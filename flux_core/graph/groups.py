"""Group nodes, the browser's older way of subgraphs, read as subgraphs.

    extra.groupNodes[name] = {
        "nodes": [...], "links": [[from, slot, to, slot, ...] by index], "external": [[index, slot, type]],
        "config": {index: {"input": {name: {"visible"}}, "output": {slot: {"visible"}}}}}

An instance has as inputs what is not linked inside, node by node (sockets first, at the very end widgets turned into
inputs), as outputs what is not linked inside or marked external, and as widgets_values those of its nodes in a row,
hidden ones too, at the end again those of widgets turned into inputs that nothing inside feeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from ..errors import WorkflowError
from .canvas import CanvasGraph, CanvasLink, CanvasNode, Slot, read_box
from .interface import Interfaces
from .widgets import is_widget, take, take_one, take_primitive


def group_sheet(definition: Any, interfaces: Interfaces, instance: CanvasNode) -> CanvasGraph:
    """What is inside an instance of a group, boxes named by their index. WorkflowError if the definition is none."""
    if not isinstance(definition, Mapping) or not isinstance(definition.get("nodes"), list):
        raise WorkflowError(f"The definition of group node {instance.type!r} has no list of nodes.")
    return _Group(definition, interfaces).sheet(instance)


class _Group:
    def __init__(self, definition: Mapping[str, Any], interfaces: Interfaces) -> None:
        nodes = definition["nodes"]
        self.interfaces = interfaces
        named = ({**node, "id": i} if isinstance(node, Mapping) else node for i, node in enumerate(nodes))
        self.boxes = [read_box(node) for node in named]
        self.slots = [list(box.inputs) for box in self.boxes]
        self.config = _mapping(definition.get("config"))
        external = [[_index(one[0]), *one[1:]] for one in _lists(definition.get("external")) if one]
        self.external = {(one[0], one[1]) for one in external if _numbers(one, 2) and one[2:] not in ([], [None])}
        links = [one for one in _lists(definition.get("links")) if _numbers(one, 4)]
        self.links = [one for one in links if one[0] < len(nodes) and one[2] < len(nodes)]
        self.linked_outputs = {(one[0], one[1]) for one in self.links}
        self.wires: list[CanvasLink] = []

    def sheet(self, instance: CanvasNode) -> CanvasGraph:
        for source, slot, target, target_slot, *_ in self.links:
            if target_slot < len(self.slots[target]):
                self._wire(str(source), slot, target, target_slot)
        inside = {wire.id for wire in self.wires}
        inputs = self._draw_inputs(len(instance.inputs))
        outputs = self._draw_outputs()
        values = list(instance.values) if isinstance(instance.values, list) else []
        boxes = [self._with_values(i, box, values) for i, box in enumerate(self.boxes)]
        boxes = [self._with_late_values(i, box, values, inside) for i, box in enumerate(boxes)]
        wires = {wire.id: wire for wire in self.wires}
        nameless = (Slot(""),)
        return CanvasGraph({box.id: box for box in boxes}, wires, nameless * inputs, nameless * outputs)

    def _wire(self, source: str, slot: int, target: int, target_slot: int) -> None:
        wire = CanvasLink(str(len(self.wires)), source, slot, str(target), target_slot)
        self.wires.append(wire)
        self.slots[target][target_slot] = replace(self.slots[target][target_slot], link=wire.id)

    def _draw_inputs(self, drawn: int) -> int:
        """Feed what nothing inside feeds from the inputs of the group; their number.

        Old files name only those widgets as inputs that were turned into some, new files all of them; what is `drawn`
        on the instance tells the two apart.
        """
        inside = {wire.id for wire in self.wires}
        for i, slots in enumerate(self.slots):
            self.slots[i] = [slot if slot.link in inside else replace(slot, link=None) for slot in slots]
            self.slots[i] += [Slot(name) for name in self._sockets(i) if name not in {slot.name for slot in slots}]
        sockets = self._open([(i, name) for i in range(len(self.boxes)) for name in self._sockets(i)])
        widgets = self._open([(i, slot.name) for i in range(len(self.boxes)) for slot in self._widget_slots(i)])
        converted = widgets if drawn >= len(sockets) + len(widgets) else []
        for count, (i, name) in enumerate(sockets + converted):
            self._wire("-10", count, i, self._position(i, name))
        return len(sockets + converted)

    def _open(self, inputs: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """The inputs without a link inside that are not hidden."""
        return [
            (i, name)
            for i, name in inputs
            if self.slots[i][self._position(i, name)].link is None and self._visible(i, "input", name, True)
        ]

    def _position(self, i: int, name: str) -> int:
        return next(at for at, slot in enumerate(self.slots[i]) if slot.name == name)

    def _draw_outputs(self) -> int:
        count = 0
        for i in range(len(self.boxes)):
            for slot in range(self._outputs(i)):
                shown = (i, slot) not in self.linked_outputs or (i, slot) in self.external
                if self._visible(i, "output", str(slot), shown):
                    self.wires.append(CanvasLink(str(len(self.wires)), str(i), slot, "-20", count))
                    count += 1
        return count

    def _sockets(self, i: int) -> list[str]:
        """The inputs of a node that are no widgets."""
        box = self.boxes[i]
        if box.type in self.interfaces:
            return [declared.name for declared in self.interfaces[box.type].inputs() if not is_widget(declared)]
        if box.type == "PrimitiveNode" or self._is_inner_reroute(i):
            return []
        return [slot.name for slot in box.inputs if slot.widget is None]

    def _widget_slots(self, i: int) -> list[Slot]:
        """The inputs of a node that are widgets as well."""
        if self.boxes[i].type not in self.interfaces:
            return []
        return [slot for slot in self.slots[i] if slot.widget is not None and slot.widget == slot.name]

    def _outputs(self, i: int) -> int:
        box = self.boxes[i]
        if box.type in self.interfaces:
            return len(self.interfaces[box.type].outputs)
        if box.type == "PrimitiveNode" and (i, 0) not in self.linked_outputs or self._is_inner_reroute(i):
            return 0
        return len(box.outputs)

    def _is_inner_reroute(self, i: int) -> bool:
        if self.boxes[i].type != "Reroute":
            return False
        fed = any(link[2] == i for link in self.links)
        return fed and (i, 0) in self.linked_outputs and (i, 0) not in self.external

    def _with_values(self, i: int, box: CanvasNode, values: list[Any]) -> CanvasNode:
        """The box with its share of the instance's values, which is taken from their front.

        Widgets that the definition lists as inputs have theirs at the end.
        """
        if box.type == "PrimitiveNode" and (i, 0) in self.linked_outputs:
            return replace(box, inputs=(), values=take_primitive(values) or box.values)
        if box.type not in self.interfaces:
            return replace(box, inputs=tuple(self.slots[i]))
        late = frozenset(slot.name for slot in self._widget_slots(i))
        return replace(box, inputs=tuple(self.slots[i]), named_values=take(self.interfaces[box.type], values, late))

    def _with_late_values(self, i: int, box: CanvasNode, values: list[Any], inside: Set[str]) -> CanvasNode:
        late = [slot.name for slot in self._widget_slots(i) if slot.link not in inside]
        declared = [self.interfaces[box.type].input(name) for name in late]
        taken = {one.name: take_one(one, values) for one in declared if one is not None}
        return replace(box, named_values={**box.named_values, **taken}) if taken else box

    def _visible(self, i: int, side: str, name: str, otherwise: bool) -> bool:
        chosen = _mapping(_mapping(_mapping(self.config.get(str(i))).get(side)).get(name)).get("visible")
        return chosen if isinstance(chosen, bool) else otherwise


def _index(node: Any) -> Any:
    """A node of the group is named by its index, or stands there whole."""
    return node.get("index") if isinstance(node, Mapping) else node


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _lists(value: Any) -> list[list[Any]]:
    return [one for one in value if isinstance(one, list)] if isinstance(value, list) else []


def _numbers(one: list[Any], count: int) -> bool:
    """Whether the first entries are indices; links from outside the group have none as their source."""
    return len(one) >= count and all(isinstance(n, int) and n >= 0 for n in one[:count])
