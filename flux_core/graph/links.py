"""Which link feeds which input of a box, as the editor settles it when it opens a file.

The table of links decides, not what the inputs say: a link stands at its target's input of the number it names, counted
in the layout of the node's class (sockets first, then widgets). Where an input of the file names the link, it stands at
the input of that name instead; so it survives a class that has got inputs since. Of two links to one input the first
stays, unless only the second is named by an input. A link that is not in the table is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .canvas import CanvasGraph, CanvasLink, CanvasNode, Slot

Layout = Callable[[CanvasNode], tuple[Sequence[Slot], Sequence[Slot]] | None]


def settled(sheet: CanvasGraph, layout: Layout) -> CanvasGraph:
    """The sheet with every box's inputs and outputs in its class's layout, each input with the link that feeds it.

    layout(box) is what the class declares, inputs and outputs, without links; None keeps those of the file.
    """
    kept, instead = _one_each(sheet)
    into: dict[str, list[CanvasLink]] = {}
    for wire in kept:
        into.setdefault(wire.target, []).append(wire)
    boxes = {}
    for box in sheet.boxes.values():
        named = tuple(replace(slot, link=instead.get(slot.link or "", slot.link)) for slot in box.inputs)
        boxes[box.id] = _laid_out(replace(box, inputs=named), into.get(box.id, []), layout(box))
    return replace(sheet, boxes=boxes, wires={wire.id: wire for wire in kept})


def _one_each(sheet: CanvasGraph) -> tuple[list[CanvasLink], dict[str, str]]:
    """The links without those to an input that has one already; and dropped link -> the one in its place."""
    named = {slot.link for box in sheet.boxes.values() for slot in box.inputs if slot.link is not None}
    places: dict[tuple[str, int], int] = {}
    kept: list[CanvasLink] = []
    instead: dict[str, str] = {}
    for wire in sheet.wires.values():
        place = places.setdefault((wire.target, wire.target_slot), len(kept))
        if place == len(kept):
            kept.append(wire)
            continue
        first = kept[place]
        same = (first.source, first.slot) == (wire.source, wire.slot)
        if not same and wire.id in named and first.id not in named:
            kept[place] = wire
            instead |= {dropped: wire.id for dropped, stays in instead.items() if stays == first.id}
            instead[first.id] = wire.id
        else:
            instead[wire.id] = first.id
    return kept, instead


def _laid_out(
    box: CanvasNode, wires: Sequence[CanvasLink], declared: tuple[Sequence[Slot], Sequence[Slot]] | None
) -> CanvasNode:
    inputs, outputs = (box.inputs, box.outputs) if declared is None else declared
    names = {slot.name for slot in inputs}
    slots = [replace(slot, link=None) for slot in (*inputs, *(one for one in box.inputs if one.name not in names))]
    if declared is None:
        slots = [replace(slot, link=None) for slot in box.inputs]
    by_name = []
    for wire in wires:
        naming = {slot.name for slot in box.inputs if slot.link == wire.id}
        places = [number for number, slot in enumerate(slots) if slot.name in naming]
        if places:
            by_name.append((wire.target_slot if wire.target_slot in places else places[0], wire))
        elif wire.target_slot < len(slots):
            slots[wire.target_slot] = replace(slots[wire.target_slot], link=wire.id)
    for number, wire in by_name:
        slots[number] = replace(slots[number], link=wire.id)
    return replace(box, inputs=tuple(slots), outputs=(*outputs, *box.outputs[len(outputs) :]))
