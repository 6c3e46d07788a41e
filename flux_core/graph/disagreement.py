"""Compares an image's canvas with the prompt the image was made with; someone may have changed one of the two.

Values that the canvas does not determine are not compared: choices {a|b}, names of files to write, inputs of unknown
classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .canvas import Workflow
from .dynamic import find
from .editor_only import NEVER_SENT
from .flatten import flatten
from .interface import Classes, Interface, Interfaces
from .prompt import is_link, name_of

Prompt = Mapping[str, Mapping[str, Any]]

_NOT_COMPARED = ("filename_prefix",)


def differences(prompt: Prompt, canvas: Workflow, classes: Classes) -> list[str]:
    """A phrase for each difference between the canvas and the prompt; [] if they agree. Raises WorkflowError."""
    first = flatten(canvas, classes, choose=lambda options: options[0])
    last = flatten(canvas, classes, choose=lambda options: options[-1])
    return [*_nodes(prompt, first, classes), *_values(prompt, first, last, classes)]


def completed(prompt: Prompt, canvas: Workflow, classes: Classes) -> dict[str, Any]:
    """A copy of the prompt in which inputs that were added to a node class later have the canvas's values.

    Existing inputs are kept, and missing links are not added. Raises WorkflowError.
    """
    drawn, interfaces = flatten(canvas, classes, choose=lambda options: options[0]), Interfaces(classes)
    made: dict[str, Any] = {}
    for node_id, node in prompt.items():
        other, class_type = drawn.get(node_id), node.get("class_type", "")
        more: dict[str, Any] = {}
        if other is not None and other.get("class_type") == class_type and class_type in interfaces:
            more = {
                name: value
                for name, value in other["inputs"].items()
                if name not in node.get("inputs", {})
                and not is_link(value)
                and _is_required(interfaces[class_type], name)
            }
        made[node_id] = {**node, "inputs": {**node.get("inputs", {}), **more}} if more else dict(node)
    return made


def _is_required(interface: Interface, name: str) -> bool:
    declared = find(interface, name)
    return declared is not None and declared.category == "required"


def _nodes(prompt: Prompt, drawn: Prompt, classes: Classes) -> Iterator[str]:
    """Nodes that only one of the two has. Nodes of unknown classes count only in the prompt, since editors hide
    some.
    """
    for node_id, node in prompt.items():
        other = drawn.get(node_id)
        if node.get("class_type") in NEVER_SENT:
            continue
        if other is None:
            yield f"{name_of(node_id, node)} is not on the canvas"
        elif other.get("class_type") != node.get("class_type"):
            yield f"{name_of(node_id, node)} is {name_of(node_id, other)} on the canvas"
    for node_id, node in drawn.items():
        if node_id not in prompt and node.get("class_type") in classes:
            yield f"{name_of(node_id, node)} is only on the canvas"


def _values(prompt: Prompt, first: Prompt, last: Prompt, classes: Classes) -> Iterator[str]:
    interfaces = Interfaces(classes)
    for node_id, node in prompt.items():
        drawn, class_type = first.get(node_id), node.get("class_type", "")
        if drawn is None or drawn.get("class_type") != class_type or class_type not in interfaces:
            continue
        for name, value in node.get("inputs", {}).items():
            there = drawn["inputs"].get(name)
            sure = there is not None and there == last[node_id]["inputs"].get(name)
            unseen = is_link(there) and first.get(there[0], {}).get("class_type") not in classes
            if not sure or unseen or there == value or name in _NOT_COMPARED:
                continue
            if find(interfaces[class_type], name) is not None:
                yield f"{name} of {name_of(node_id, node)} was {_short(value)} and is {_short(there)}"


def _short(value: Any) -> str:
    text = f"linked to node {value[0]}" if is_link(value) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
