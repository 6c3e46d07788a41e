"""Random canvases as the editor's users leave them, for comparing what it queues with what we read.

    nodes of all our classes, linked by type, also through reroutes and primitives, muted and bypassed
    subgraphs, also one in another, with values of their own; old group nodes with hidden widgets
    the forms of old and of new files; and damage: links that stand at one end only, twice, or at a wrong slot

The same seed gives the same canvas. Left out is what differs on purpose, see test_conversion.py.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

ACTIVE, MUTED, BYPASSED = 0, 2, 4
# The editor asks the server for the list of the first while the canvas is drawn; the others have widgets of their own.
LEFT_OUT = {"LoadImageOutput", "CustomCombo", "PreviewAny", "ComfyMathExpression", "ImageCompare"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
PRIMITIVES = {"INT", "FLOAT", "STRING", "BOOLEAN"}
WORDS = ("a red circle", "", "FLUX", "two\nlines", "große Bäume", "5", "x:1.2")


@dataclass
class Class:
    """The properties of a node class that a canvas needs."""

    name: str
    sockets: list[tuple[str, str]]
    widgets: list[tuple[str, str, Json]]
    outputs: list[str]
    uploads: bool


def catalogue(info: Mapping[str, Json]) -> list[Class]:
    """The classes of an /object_info whose inputs are of plain kinds."""
    found = []
    for name, described in info.items():
        sections = [described["input"].get(section, {}) for section in ("required", "optional")]
        declared = [spec for section in sections for spec in section.items()]
        kinds = [kind_of(spec) for _, spec in declared]
        if name in LEFT_OUT or name.startswith("Sluice") or any(kind.startswith("COMFY_") for kind in kinds):
            continue
        options = [spec[1] if len(spec) > 1 else {} for _, spec in declared]
        plain = [(key, kind, one) for (key, _), kind, one in zip(declared, kinds, options, strict=True)]
        forced = [one for one in plain if one[1] not in WIDGETS or one[2].get("forceInput")]
        widgets = [
            (key, kind, {**one, "options": combo(spec)})
            for (key, spec), (_, kind, one) in zip(declared, plain, strict=True)
            if (key, kind, one) not in forced
        ]
        uploads = any(one.get("image_upload") for _, _, one in plain)
        found.append(Class(name, [(key, kind) for key, kind, _ in forced], widgets, list(described["output"]), uploads))
    return sorted(found, key=lambda one: one.name)


def kind_of(spec: Any) -> str:
    return "COMBO" if isinstance(spec[0], list) else str(spec[0])


def combo(spec: Any) -> list[Any]:
    return list(spec[0] if isinstance(spec[0], list) else (spec[1] if len(spec) > 1 else {}).get("options", ()))


@dataclass
class Sheet:
    """A drawing in the making: the canvas itself, the inside of a subgraph, or that of a group."""

    nodes: list[Json] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    sources: list[tuple[int, int, str]] = field(default_factory=list)  # outputs to link to: node, slot, type


class Artist:
    """Draws canvases. `classes` as from `catalogue`."""

    def __init__(self, classes: list[Class], seed: int) -> None:
        self.random = random.Random(seed)
        self.classes = classes
        self.new_files = self.random.random() < 0.6
        self.last_node = self.last_link = 0
        self.primitives = True
        self.subgraphs: list[Json] = []
        self.groups: Json = {}

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def canvas(self) -> Json:
        """A whole workflow file."""
        sheet = self.sheet(self.random.randint(3, 12))
        for _ in range(self.random.randint(0, 2)):
            self.instance(sheet, self.subgraph(depth=0))
        for _ in range(self.random.randint(0, 2)):
            self.group_instance(sheet)
        self.nodes(sheet, self.random.randint(1, 4))
        if self.chance(0.5):
            self.damage(sheet)
        extra: Json = {"groupNodes": self.groups} if self.groups else {}
        return {
            "id": str(uuid.UUID(int=self.random.getrandbits(128), version=4)), "revision": 0,
            "last_node_id": self.last_node, "last_link_id": self.last_link, "nodes": sheet.nodes, "links": sheet.links,
            "groups": [], "config": {}, "extra": extra, "version": 0.4,
            **({"definitions": {"subgraphs": self.subgraphs}} if self.subgraphs else {}),
        }  # fmt: skip

    # Nodes -----------------------------------------------------------------------------------------------------------

    def sheet(self, count: int) -> Sheet:
        sheet = Sheet()
        self.nodes(sheet, count)
        return sheet

    def nodes(self, sheet: Sheet, count: int) -> None:
        for _ in range(count):
            if self.chance(0.08):
                self.note(sheet)
            else:
                self.node(sheet, self.random.choice(self.classes))

    def box(self, sheet: Sheet, kind: str, inputs: list[Json], outputs: list[str], values: Any) -> Json:
        self.last_node += 1
        made = {
            "id": self.last_node, "type": kind, "pos": [0, 0], "size": [200, 100], "flags": {},
            "order": self.last_node, "mode": ACTIVE, "inputs": inputs,
            "outputs": [{"name": one, "type": one, "links": []} for one in outputs],
            "properties": {}, "widgets_values": values,
        }  # fmt: skip
        sheet.nodes.append(made)
        sheet.sources += [(made["id"], slot, one) for slot, one in enumerate(outputs)]
        return made

    def note(self, sheet: Sheet) -> None:
        self.box(sheet, self.random.choice(["Note", "MarkdownNote"]), [], [], ["read this"])

    def node(self, sheet: Sheet, one: Class) -> Json:
        before = list(sheet.sources)
        made = self.box(sheet, one.name, self.slots(one), one.outputs, self.values(one))
        made["mode"] = self.random.choices([ACTIVE, MUTED, BYPASSED], [0.86, 0.06, 0.08])[0]
        if self.chance(0.2):
            made["title"] = self.random.choice(["A title", "Zweiter Titel"])
        self.link_inputs(sheet, made, one, before)
        return made

    def slots(self, one: Class) -> list[Json]:
        """The inputs as the file lists them: new files name every widget, old ones those with a link."""
        sockets = [{"name": name, "type": kind, "link": None} for name, kind in one.sockets]
        widgets = [widget_slot(name, kind) for name, kind, _ in one.widgets]
        return sockets + (widgets if self.new_files else [])

    def values(self, one: Class) -> Any:
        values: list[Any] = []
        for name, kind, options in one.widgets:
            values.append(self.value(kind, options))
            if options.get("control_after_generate") or kind == "INT" and name in ("seed", "noise_seed"):
                values.append(self.random.choice(["fixed", "randomize", "increment"]))
        if one.uploads:
            values.append("image")
        if values and self.chance(0.06):
            del values[self.random.randrange(len(values)) :]
        return values

    def value(self, kind: str, options: Json) -> Any:
        if kind == "COMBO":
            return self.random.choice(options["options"]) if options["options"] else "nothing.safetensors"
        if kind == "BOOLEAN":
            return self.chance(0.5)
        if kind == "STRING":
            return self.random.choice(WORDS)
        low, high = options.get("min"), options.get("max")
        low = 0 if low is None else max(low, -1000)
        high = 1000 if high is None else min(high, 4096)
        return self.random.randint(low, high) if kind == "INT" else low + self.random.randint(0, 8) / 8 * (high - low)

    # Links -----------------------------------------------------------------------------------------------------------

    def link_inputs(self, sheet: Sheet, made: Json, one: Class, before: list[tuple[int, int, str]]) -> None:
        for name, kind in one.sockets:
            fitting = [source for source in before if fits(source[2], kind)]
            if fitting and self.chance(0.85):
                self.link(sheet, self.random.choice(fitting), made, name, kind)
        for name, kind, _ in one.widgets:
            fitting = [source for source in before if source[2] == kind and (self.primitives or self.new_files)]
            if self.chance(0.2) and fitting:
                self.link(sheet, self.random.choice(fitting), made, name, kind)
            elif self.primitives and made["mode"] != BYPASSED and kind in PRIMITIVES and self.chance(0.08):
                self.link(sheet, self.primitive(sheet, one, name), made, name, kind)

    def primitive(self, sheet: Sheet, one: Class, name: str) -> tuple[int, int, str]:
        kind, options = next((kind, options) for key, kind, options in one.widgets if key == name)
        values = [self.value(kind, options), *(["fixed"] if kind == "INT" else [])]
        made = self.box(sheet, "PrimitiveNode", [], [kind], values)
        made["outputs"][0]["widget"] = {"name": name}
        sheet.sources.pop()  # it would adapt itself to whatever is linked to it next
        return made["id"], 0, kind

    def link(self, sheet: Sheet, source: tuple[int, int, str], made: Json, name: str, kind: str) -> None:
        while self.chance(0.15) and not widget_value(sheet, source):
            source = self.reroute(sheet, source)
        names = [slot["name"] for slot in made["inputs"]]
        if name not in names:
            made["inputs"].append(widget_slot(name, kind))
            names.append(name)
        self.connect(sheet, source, made, names.index(name))

    def connect(self, sheet: Sheet, source: tuple[int, int, str], made: Json, slot: int) -> None:
        self.last_link += 1
        made["inputs"][slot]["link"] = self.last_link
        sheet.links.append([self.last_link, source[0], source[1], made["id"], slot, source[2]])
        origin = next((node for node in sheet.nodes if node["id"] == source[0]), None)
        if origin is not None:
            origin["outputs"][source[1]]["links"].append(self.last_link)

    def reroute(self, sheet: Sheet, source: tuple[int, int, str]) -> tuple[int, int, str]:
        made = self.box(sheet, "Reroute", [{"name": "", "type": "*", "link": None}], [source[2]], [])
        made["outputs"][0]["name"] = ""
        self.connect(sheet, source, made, 0)
        return made["id"], 0, source[2]

    def damage(self, sheet: Sheet) -> None:
        """What crashes, hand edits and other programs leave behind."""
        boxes = {node["id"]: node for node in sheet.nodes}
        for link in list(sheet.links):
            if not self.chance(0.15) or boxes[link[3]]["type"] in ("Reroute", "PrimitiveNode"):
                continue
            slot = boxes[link[3]]["inputs"][link[4]]
            kind = self.random.choice(["lost", "lost", "ghost", "double", "wrong slot", "gone"])
            if kind == "lost":
                slot["link"] = None
            elif kind == "ghost":
                slot["link"] = 9999
                sheet.links.remove(link)
            elif kind == "double":
                other = self.random.choice(sheet.sources)
                self.last_link += 1
                place = self.random.choice([0, len(sheet.links)])
                sheet.links.insert(place, [self.last_link, other[0], other[1], link[3], link[4], other[2]])
            elif kind == "wrong slot":
                link[4] = link[4] + 30
            else:
                sheet.links.remove(link)

    # Subgraphs -------------------------------------------------------------------------------------------------------

    def subgraph(self, depth: int) -> Json:
        """A definition whose inputs feed sockets and widgets inside, and whose outputs come from inside."""
        inner = self.sheet(self.random.randint(1, 4))
        if depth < 1 and self.chance(0.3):
            self.instance(inner, self.subgraph(depth + 1), inside=True)
        inputs: list[Json] = []
        for node in inner.nodes:
            one = next((one for one in self.classes if one.name == node["type"]), None)
            if one is None:
                continue
            for name, kind in [*one.sockets, *((key, kind) for key, kind, _ in one.widgets)]:
                names = [slot["name"] for slot in node["inputs"]]
                taken = name in names and node["inputs"][names.index(name)]["link"] is not None
                if taken or not self.chance(0.3) or kind == "*":
                    continue
                if name not in names:
                    node["inputs"].append(widget_slot(name, kind))
                    names.append(name)
                label = f"{name}_{len(inputs)}"
                widget = any(key == name for key, _, _ in one.widgets)
                self.connect(inner, (-10, len(inputs), kind), node, names.index(name))
                inputs.append(self.end(label, kind) | {"widget": widget})
        outputs: list[Json] = []
        for node_id, slot, kind in inner.sources:
            if self.chance(0.4):
                self.last_link += 1
                inner.links.append([self.last_link, node_id, slot, -20, len(outputs), kind])
                box = next(node for node in inner.nodes if node["id"] == node_id)
                box["outputs"][slot]["links"].append(self.last_link)
                outputs.append(self.end(f"{kind}_{len(outputs)}", kind))
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        definition = {
            "id": self.uuid(), "version": 1, "revision": 0, "name": "A part", "config": {}, "groups": [], "widgets": [],
            "state": {"lastNodeId": self.last_node, "lastLinkId": self.last_link, "lastGroupId": 0, "lastRerouteId": 0},
            "inputNode": {"id": -10, "bounding": [0, 0, 10, 10]}, "outputNode": {"id": -20, "bounding": [0, 0, 10, 10]},
            "inputs": inputs, "outputs": outputs, "nodes": inner.nodes,
            "links": [dict(zip(keys, link, strict=True)) for link in inner.links],
        }  # fmt: skip
        self.subgraphs.append(definition)
        return definition

    def end(self, name: str, kind: str) -> Json:
        """An input or output of a subgraph, at the link made last."""
        return {"id": self.uuid(), "name": name, "type": kind, "linkIds": [self.last_link]}

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def instance(self, sheet: Sheet, definition: Json, inside: bool = False) -> None:
        for _ in range(self.random.randint(1, 2)):
            before = list(sheet.sources)
            slots: list[Json] = []
            values: list[Any] = []
            for one in definition["inputs"]:
                slot: Json = {"name": one["name"], "type": one["type"], "link": None}
                if one["widget"]:
                    slot["widget"] = {"name": one["name"]}
                    values.append(self.promoted(definition, one))
                slots.append(slot)
            made = self.box(sheet, definition["id"], slots, [one["type"] for one in definition["outputs"]], values)
            if not inside:
                made["mode"] = self.random.choices([ACTIVE, MUTED, BYPASSED], [0.9, 0.05, 0.05])[0]
            if self.chance(0.5):
                promoted = [one["name"] for one in definition["inputs"] if one["widget"]]
                made["properties"]["proxyWidgets"] = [["-1", name] for name in promoted]
            for output, one in zip(made["outputs"], definition["outputs"], strict=True):
                output["name"] = one["name"]
            for place, one in enumerate(definition["inputs"]):
                fitting = [source for source in before if fits(source[2], one["type"])]
                if fitting and self.chance(0.2 if one["widget"] else 0.8):
                    self.connect(sheet, self.random.choice(fitting), made, place)

    def promoted(self, definition: Json, one: Json) -> Any:
        """A value for a widget shown on the instance."""
        link = next(link for link in definition["links"] if link["id"] in one["linkIds"])
        node = next(node for node in definition["nodes"] if node["id"] == link["target_id"])
        name = node["inputs"][link["target_slot"]]["name"]
        kind = next(kind for kind in self.classes if kind.name == node["type"])
        return next(self.value(type_, options) for key, type_, options in kind.widgets if key == name)

    # Groups ----------------------------------------------------------------------------------------------------------

    def group_instance(self, sheet: Sheet) -> None:
        name = f"part {len(self.groups)}"
        inner = Sheet()
        chosen = [one for one in self.random.choices(self.classes, k=self.random.randint(1, 4)) if not one.uploads]
        self.primitives = False
        for one in chosen:
            self.node(inner, one)
        self.primitives = True
        index = {node["id"]: i for i, node in enumerate(inner.nodes)}
        self.groups[name] = {
            "nodes": [grouped(node, index[node["id"]]) for node in inner.nodes],
            "links": [[index[link[1]], link[2], index[link[3]], link[4], link[1], link[5]] for link in inner.links],
            "external": self.external(inner, index),
            "config": self.configuration(inner),
        }
        self.place_group(sheet, name, inner, index)

    def external(self, inner: Sheet, index: Mapping[int, int]) -> list[Any]:
        linked = sorted({(index[link[1]], link[2], link[5]) for link in inner.links})
        return [list(one) for one in linked if self.chance(0.3)]

    def configuration(self, inner: Sheet) -> Json:
        """What a person hid: widgets, inputs and outputs."""
        config: Json = {}
        for i, node in enumerate(inner.nodes):
            one = next((one for one in self.classes if one.name == node["type"]), None)
            if one is None:
                continue
            hidden = [key for key, _, _ in one.widgets if self.chance(0.2)]
            outputs = [slot for slot in range(len(one.outputs)) if self.chance(0.15)]
            config[str(i)] = {
                **({"input": {key: {"visible": False} for key in hidden}} if hidden else {}),
                **({"output": {str(slot): {"visible": self.chance(0.5)} for slot in outputs}} if outputs else {}),
            }
        return config

    def place_group(self, sheet: Sheet, name: str, inner: Sheet, index: Mapping[int, int]) -> None:
        """An instance, drawn as the editor of its time drew it. Widgets stay unlinked, see test_conversion.py."""
        before = list(sheet.sources)
        definition = self.groups[name]
        inside = {(link[0], link[1]) for link in definition["links"]}
        fed = {(link[2], link[3]) for link in definition["links"]}
        external = {(one[0], one[1]) for one in definition["external"]}
        slots: list[Json] = []
        plain: list[Any] = []
        late: list[Any] = []
        outputs: list[str] = []
        for i, node in enumerate(inner.nodes):
            one = next((one for one in self.classes if one.name == node["type"]), None)
            if one is None:
                continue
            for at, slot in enumerate(node["inputs"]):
                if slot.get("widget") is None and (i, at) not in fed:
                    slots.append({"name": slot["name"], "type": slot["type"], "link": None})
            named = {slot["name"]: at for at, slot in enumerate(node["inputs"]) if slot.get("widget")}
            for key, kind, options in one.widgets:
                if key in named and (i, named[key]) in fed:
                    continue
                values = late if key in named else plain
                values.append(self.value(kind, options))
                if options.get("control_after_generate") or kind == "INT" and key in ("seed", "noise_seed"):
                    values.append("fixed")
            for at, kind in enumerate(one.outputs):
                chosen = definition["config"].get(str(i), {}).get("output", {}).get(str(at), {}).get("visible")
                shown = (i, at) not in inside or (i, at) in external
                if shown if chosen is None else chosen:
                    outputs.append(kind)
        names: dict[str, int] = {}
        for slot in slots:  # the editor makes equal names different
            names[slot["name"]] = names.get(slot["name"], 0) + 1
        made = self.box(sheet, self.random.choice(["workflow>", "workflow/"]) + name, slots, outputs, plain + late)
        if any(count > 1 for count in names.values()):
            return
        for at, slot in enumerate(slots):
            fitting = [source for source in before if fits(source[2], slot["type"])]
            if fitting and self.chance(0.8):
                self.connect(sheet, self.random.choice(fitting), made, at)


def widget_value(sheet: Sheet, source: tuple[int, int, str]) -> bool:
    """Whether it is a primitive's, which the editor no longer sends on through a reroute."""
    return any(node["id"] == source[0] and node["type"] == "PrimitiveNode" for node in sheet.nodes)


def widget_slot(name: str, kind: str) -> Json:
    return {"name": name, "type": kind, "widget": {"name": name}, "link": None}


def grouped(node: Json, index: int) -> Json:
    """A node as the definition of a group keeps it."""
    inputs = [{**slot, "link": None} for slot in node["inputs"]]
    return {**{key: value for key, value in node.items() if key != "id"}, "inputs": inputs, "index": index}


def fits(source: str, target: str) -> bool:
    return source == target or target == "*" or source in target.split(",")
