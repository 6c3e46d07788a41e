"""Which link feeds which input of a node, decided as the editor does when it opens a file.

The table of links decides, not the inputs: a link leads to the input whose number it gives, counted in the layout of
the node's class (sockets first, then widgets). If an input in the file names the link, the link leads to the input of
that name instead; so it remains correct when the class has gained inputs. Of two links to one input the first is kept,
unless only the second is named by an input. Links that are not in the table are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .canvas import CanvasGraph, CanvasLink, CanvasNode, Slot

Layout = Callable[[CanvasNode], tuple[Sequence[Slot], Sequence[Slot]] | None]


def settled(graph: CanvasGraph, layout: Layout) -> CanvasGraph:
    """The graph with every node's inputs and outputs in the layout of its class, each input with its link.

    layout(node) returns the inputs and outputs that the class declares, without links; None keeps those of the file.
    """
    kept, instead = _one_each(graph)
    into: dict[str, list[CanvasLink]] = {}
    for link in kept:
        into.setdefault(link.target, []).append(link)
    nodes = {}
    for node in graph.nodes.values():
        named = tuple(replace(slot, link=instead.get(slot.link or "", slot.link)) for slot in node.inputs)
        nodes[node.id] = _laid_out(replace(node, inputs=named), into.get(node.id, []), layout(node))
    return replace(graph, nodes=nodes, links={link.id: link for link in kept})


def _one_each(graph: CanvasGraph) -> tuple[list[CanvasLink], dict[str, str]]:
    """One link per input, and a mapping from each dropped link to the link that replaces it."""
    named = {slot.link for node in graph.nodes.values() for slot in node.inputs if slot.link is not None}
    places: dict[tuple[str, int], int] = {}
    kept: list[CanvasLink] = []
    instead: dict[str, str] = {}
    for link in graph.links.values():
        place = places.setdefault((link.target, link.target_slot), len(kept))
        if place == len(kept):
            kept.append(link)
            continue
        first = kept[place]
        same = (first.source, first.slot) == (link.source, link.slot)
        if not same and link.id in named and first.id not in named:
            kept[place] = link
            instead |= {dropped: link.id for dropped, stays in instead.items() if stays == first.id}
            instead[first.id] = link.id
        else:
            instead[link.id] = first.id
    return kept, instead


def _laid_out(
    node: CanvasNode, links: Sequence[CanvasLink], declared: tuple[Sequence[Slot], Sequence[Slot]] | None
) -> CanvasNode:
    inputs, outputs = (node.inputs, node.outputs) if declared is None else declared
    names = {slot.name for slot in inputs}
    slots = [replace(slot, link=None) for slot in (*inputs, *(one for one in node.inputs if one.name not in names))]
    if declared is None:
        slots = [replace(slot, link=None) for slot in node.inputs]
    by_name = []
    for link in links:
        naming = {slot.name for slot in node.inputs if slot.link == link.id}
        places = [number for number, slot in enumerate(slots) if slot.name in naming]
        if places:
            by_name.append((link.target_slot if link.target_slot in places else places[0], link))
        elif link.target_slot < len(slots):
            slots[link.target_slot] = replace(slots[link.target_slot], link=link.id)
    for number, link in by_name:
        slots[number] = replace(slots[number], link=link.id)
    return replace(node, inputs=tuple(slots), outputs=(*outputs, *node.outputs[len(outputs) :]))
