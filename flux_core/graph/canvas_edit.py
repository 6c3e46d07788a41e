"""Changes to a canvas that keep it the editor's: values of widgets, and LoRAs behind the node that loads the model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import WorkflowError
from .canvas import Workflow, read_canvas
from .flatten import flatten
from .interface import Classes, Interface, Interfaces
from .placeholders import as_written
from .widgets import widget_values

JsonPrompt = dict[str, dict[str, Any]]

LORA = "LoraLoaderModelOnly"
_MODEL_FILES = ("diffusion_models", "checkpoints")
_MODELS = ("MODEL", "FLUX_MODEL")


def canvas_saying(
    workflow: Any, before: JsonPrompt, after: JsonPrompt, classes: Classes, canvas: Workflow | None = None
) -> Any | None:
    """The canvas with the widgets changed that differ between two prompts; None if it cannot give the second prompt.

    When an image is dropped on the editor, its canvas is shown. So the canvas must give the prompt that was run.
    """
    if before == after:
        return workflow
    changed = copy.deepcopy(workflow)
    interfaces = Interfaces(classes)
    nodes = {str(node.get("id")): node for node in changed.get("nodes", ()) if isinstance(node, dict)}
    differing = [
        (node_id, name)
        for node_id, node in after.items()
        for name, value in node["inputs"].items()
        if before[node_id]["inputs"].get(name) != value
    ]
    for node_id, name in differing:
        if node_id not in nodes or after[node_id]["class_type"] not in interfaces:
            return None
        _set_widget(nodes[node_id], interfaces[after[node_id]["class_type"]], name, after[node_id]["inputs"][name])
    try:
        was, says = (_flattened(one, classes) for one in (canvas or read_canvas(workflow), read_canvas(changed)))
    except WorkflowError:
        return None
    for node_id, name in differing:
        was.get(node_id, {})[name] = after[node_id]["inputs"][name]
    return changed if was == says else None


def _set_widget(node: dict[str, Any], interface: Interface, name: str, value: Any) -> None:
    values = node.get("widgets_values")
    if isinstance(values, dict):
        values[name] = value
    elif isinstance(values, list):
        mark, old = object(), widget_values(interface, values).get(name)
        for position, at in enumerate(values):
            marked = [*values[:position], mark, *values[position + 1 :]]
            # The editor saves an extra value after a seed. A mark in its place would shift the values that follow.
            if at == old and widget_values(interface, marked).get(name) is mark:
                values[position] = value
                return


def _flattened(canvas: Workflow, classes: Classes) -> dict[str, Any]:
    prompt = flatten(canvas, classes, as_written)
    return {node_id: node["inputs"] for node_id, node in prompt.items()}


def loads_model(node_class: type[Any] | None) -> bool:
    """Whether nodes of a class load a transformer from a file."""
    return any(category in _MODEL_FILES for category in getattr(node_class, "FILES", {}).values())


def with_loras(workflow: Any, loras: Iterable[tuple[str, float]], classes: Classes) -> Any:
    """A copy of a canvas with a node for each LoRA (its file as listed, its strength) behind the node that loads the
    model. Raises WorkflowError if no node on the canvas itself does that, subgraphs left aside."""
    changed = copy.deepcopy(workflow)
    nodes = [node for node in changed["nodes"] if isinstance(node, dict)]
    for name, strength in loras:
        loader = next((node for node in nodes if loads_model(classes.get(str(node.get("type"))))), None)
        slot = None if loader is None else _model_slot(loader.get("outputs"))
        if loader is None or slot is None:
            raise WorkflowError("The workflow has no node that loads a model, so no LoRA can be added behind it.")
        _insert(changed, loader, slot, name, strength)
    return changed


def _model_slot(outputs: Any) -> int | None:
    found = (number for number, one in enumerate(outputs or ()) if one.get("type") in _MODELS)
    return next(found, None)


def _insert(canvas: dict[str, Any], loader: dict[str, Any], slot: int, name: str, strength: float) -> None:
    """Put a LoRA node between an output of a node and all that it leads to."""
    node_id, link_id = _free(canvas["nodes"], "id"), _free(canvas.get("links") or (), "id")
    output = loader["outputs"][slot]
    moved = list(output.get("links") or ())
    for link in canvas.get("links") or ():
        if _field(link, "id", 0) in moved:
            _set_source(link, node_id)
    kind, (left, top) = output.get("type", "MODEL"), _corner(loader.get("pos"))
    as_list = not any(isinstance(link, dict) for link in canvas.get("links") or ())
    joint: Any = [link_id, loader["id"], slot, node_id, 0, kind]
    if not as_list:
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        joint = dict(zip(keys, joint, strict=True))
    canvas.setdefault("links", []).append(joint)
    output["links"] = [link_id]
    ours = "Sluice" if str(loader.get("type")).startswith("Sluice") else ""
    canvas["nodes"].append(
        {
            "id": node_id, "type": ours + LORA, "pos": [left + 30, top - 130], "size": [290, 82], "flags": {},
            "order": len(canvas["nodes"]), "mode": 0,
            "inputs": [{"name": "model", "type": kind, "link": link_id}],
            "outputs": [{"name": "MODEL", "type": kind, "links": moved, "slot_index": 0}],
            "properties": {"Node name for S&R": ours + LORA}, "widgets_values": [name, strength],
        }
    )  # fmt: skip
    listed = ((canvas.get("extra") or {}).get("linearData") or {}).get("inputs")
    if isinstance(listed, list):  # what app mode shows
        listed += [[node_id, "lora_name"], [node_id, "strength_model"]]
    for counter, number in (("last_node_id", node_id), ("last_link_id", link_id)):
        if isinstance(canvas.get(counter), int):
            canvas[counter] = max(canvas[counter], number)


def _free(items: Sequence[Any], key: str) -> int:
    """A number above every id."""
    numbers = [_field(item, key, 0) for item in items if item is not None]
    return 1 + max((int(number) for number in numbers if str(number).isdecimal()), default=0)


def _field(item: Any, key: str, place: int) -> Any:
    return item.get(key) if isinstance(item, Mapping) else item[place]


def _set_source(link: Any, node_id: int) -> None:
    if isinstance(link, dict):
        link["origin_id"], link["origin_slot"] = node_id, 0
    else:
        link[1], link[2] = node_id, 0


def _corner(place: Any) -> tuple[float, float]:
    """Of a node: a list, or an object with the keys "0" and "1" in old files."""
    try:
        x, y = (place["0"], place["1"]) if isinstance(place, Mapping) else place
        return float(x), float(y)
    except (KeyError, TypeError, ValueError):
        return 0.0, 0.0
