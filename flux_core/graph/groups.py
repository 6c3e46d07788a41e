"""Group nodes, the predecessor of subgraphs in the editor, read as subgraphs.

    extra.groupNodes[name] = {
        "nodes": [...], "links": [[from, slot, to, slot, ...] by index], "external": [[index, slot, type]],
        "config": {index: {"input": {name: {"visible"}}, "output": {slot: {"visible"}}}}}

The inputs of an instance are the inputs that have no link inside the group, node by node: sockets first, and after all
of them the widgets that were turned into inputs. Its outputs are those without a link inside and those marked external.
Its widgets_values are those of its nodes in sequence, including hidden ones, followed by the values of widgets that
were turned into inputs and have no link inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from ..errors import WorkflowError
from .canvas import CanvasGraph, CanvasLink, CanvasNode, Slot, read_node
from .interface import Interfaces
from .widgets import is_widget, take, take_one, take_primitive


def group_graph(definition: Any, interfaces: Interfaces, instance: CanvasNode) -> CanvasGraph:
    """The content of a group's instance; its nodes are named by their index. Raises WorkflowError for a bad
    definition.
    """
    if not isinstance(definition, Mapping) or not isinstance(definition.get("nodes"), list):
        raise WorkflowError(f"The definition of group node {instance.type!r} has no list of nodes.")
    return _Group(definition, interfaces).graph(instance)


class _Group:
    def __init__(self, definition: Mapping[str, Any], interfaces: Interfaces) -> None:
        nodes = definition["nodes"]
        self.interfaces = interfaces
        named = ({**node, "id": i} if isinstance(node, Mapping) else node for i, node in enumerate(nodes))
        self.nodes = [read_node(node) for node in named]
        self.slots = [list(node.inputs) for node in self.nodes]
        self.config = _mapping(definition.get("config"))
        external = [[_index(one[0]), *one[1:]] for one in _lists(definition.get("external")) if one]
        self.external = {(one[0], one[1]) for one in external if _numbers(one, 2) and one[2:] not in ([], [None])}
        links = [one for one in _lists(definition.get("links")) if _numbers(one, 4)]
        self.inner_links = [one for one in links if one[0] < len(nodes) and one[2] < len(nodes)]
        self.linked_outputs = {(one[0], one[1]) for one in self.inner_links}
        self.links: list[CanvasLink] = []

    def graph(self, instance: CanvasNode) -> CanvasGraph:
        for source, slot, target, target_slot, *_ in self.inner_links:
            if target_slot < len(self.slots[target]):
                self._link(str(source), slot, target, target_slot)
        inside = {link.id for link in self.links}
        inputs = self._draw_inputs(len(instance.inputs))
        outputs = self._draw_outputs()
        values = list(instance.values) if isinstance(instance.values, list) else []
        nodes = [self._with_values(i, node, values) for i, node in enumerate(self.nodes)]
        nodes = [self._with_late_values(i, node, values, inside) for i, node in enumerate(nodes)]
        links = {link.id: link for link in self.links}
        nameless = (Slot(""),)
        return CanvasGraph({node.id: node for node in nodes}, links, nameless * inputs, nameless * outputs)

    def _link(self, source: str, slot: int, target: int, target_slot: int) -> None:
        link = CanvasLink(str(len(self.links)), source, slot, str(target), target_slot)
        self.links.append(link)
        self.slots[target][target_slot] = replace(self.slots[target][target_slot], link=link.id)

    def _draw_inputs(self, drawn: int) -> int:
        """Link the group's inputs to the inputs that have no link inside. Returns the number of the group's inputs.

        Old files list only the widgets that were turned into inputs, new files all widgets. The number of inputs
        `drawn` on the instance distinguishes the two.
        """
        inside = {link.id for link in self.links}
        for i, slots in enumerate(self.slots):
            self.slots[i] = [slot if slot.link in inside else replace(slot, link=None) for slot in slots]
            self.slots[i] += [Slot(name) for name in self._sockets(i) if name not in {slot.name for slot in slots}]
        sockets = self._open([(i, name) for i in range(len(self.nodes)) for name in self._sockets(i)])
        widgets = self._open([(i, slot.name) for i in range(len(self.nodes)) for slot in self._widget_slots(i)])
        converted = widgets if drawn >= len(sockets) + len(widgets) else []
        for count, (i, name) in enumerate(sockets + converted):
            self._link("-10", count, i, self._position(i, name))
        return len(sockets + converted)

    def _open(self, inputs: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """The inputs that have no link inside and are not hidden."""
        return [
            (i, name)
            for i, name in inputs
            if self.slots[i][self._position(i, name)].link is None and self._visible(i, "input", name, True)
        ]

    def _position(self, i: int, name: str) -> int:
        return next(at for at, slot in enumerate(self.slots[i]) if slot.name == name)

    def _draw_outputs(self) -> int:
        count = 0
        for i in range(len(self.nodes)):
            for slot in range(self._outputs(i)):
                shown = (i, slot) not in self.linked_outputs or (i, slot) in self.external
                if self._visible(i, "output", str(slot), shown):
                    self.links.append(CanvasLink(str(len(self.links)), str(i), slot, "-20", count))
                    count += 1
        return count

    def _sockets(self, i: int) -> list[str]:
        """The inputs of a node that are not widgets."""
        node = self.nodes[i]
        if node.type in self.interfaces:
            return [declared.name for declared in self.interfaces[node.type].inputs() if not is_widget(declared)]
        if node.type == "PrimitiveNode" or self._is_inner_reroute(i):
            return []
        return [slot.name for slot in node.inputs if slot.widget is None]

    def _widget_slots(self, i: int) -> list[Slot]:
        """The inputs of a node that are also widgets."""
        if self.nodes[i].type not in self.interfaces:
            return []
        return [slot for slot in self.slots[i] if slot.widget is not None and slot.widget == slot.name]

    def _outputs(self, i: int) -> int:
        node = self.nodes[i]
        if node.type in self.interfaces:
            return len(self.interfaces[node.type].outputs)
        if node.type == "PrimitiveNode" and (i, 0) not in self.linked_outputs or self._is_inner_reroute(i):
            return 0
        return len(node.outputs)

    def _is_inner_reroute(self, i: int) -> bool:
        if self.nodes[i].type != "Reroute":
            return False
        fed = any(link[2] == i for link in self.inner_links)
        return fed and (i, 0) in self.linked_outputs and (i, 0) not in self.external

    def _with_values(self, i: int, node: CanvasNode, values: list[Any]) -> CanvasNode:
        """The node with its values, which are removed from the front of the instance's values.

        The values of widgets that the definition lists as inputs come last.
        """
        if node.type == "PrimitiveNode" and (i, 0) in self.linked_outputs:
            return replace(node, inputs=(), values=take_primitive(values) or node.values)
        if node.type not in self.interfaces:
            return replace(node, inputs=tuple(self.slots[i]))
        late = frozenset(slot.name for slot in self._widget_slots(i))
        return replace(node, inputs=tuple(self.slots[i]), named_values=take(self.interfaces[node.type], values, late))

    def _with_late_values(self, i: int, node: CanvasNode, values: list[Any], inside: Set[str]) -> CanvasNode:
        late = [slot.name for slot in self._widget_slots(i) if slot.link not in inside]
        declared = [self.interfaces[node.type].input(name) for name in late]
        taken = {one.name: take_one(one, values) for one in declared if one is not None}
        return replace(node, named_values={**node.named_values, **taken}) if taken else node

    def _visible(self, i: int, side: str, name: str, otherwise: bool) -> bool:
        chosen = _mapping(_mapping(_mapping(self.config.get(str(i))).get(side)).get(name)).get("visible")
        return chosen if isinstance(chosen, bool) else otherwise


def _index(node: Any) -> Any:
    """The index of a node of the group, which the file gives as a number or as the whole node."""
    return node.get("index") if isinstance(node, Mapping) else node


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _lists(value: Any) -> list[list[Any]]:
    return [one for one in value if isinstance(one, list)] if isinstance(value, list) else []


def _numbers(one: list[Any], count: int) -> bool:
    """Whether the first `count` entries are indices; links from outside the group have no index as source."""
    return len(one) >= count and all(isinstance(n, int) and n >= 0 for n in one[:count])
