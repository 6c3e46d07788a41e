"""The part of a prompt that can run although other parts cannot.

Nodes of unknown classes are removed, and all nodes that need them. Outputs that lack only a link do not stop the
others. Whether to run only a part is decided elsewhere. Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .interface import Classes, Interfaces
from .problems import Problem
from .prompt import is_link, name_of
from .widgets import is_widget


@dataclass(frozen=True)
class Part:
    """The runnable part of a prompt, and a sentence about every output that was removed."""

    prompt: dict[str, Any]
    lost: tuple[str, ...]


def runnable_part(prompt: Mapping[str, Any], classes: Classes) -> Part:
    """The prompt without nodes whose class is not in the table, and without all nodes that depend on them."""
    because = {node_id: node_id for node_id, node in prompt.items() if node.get("class_type", "") not in classes}
    unknown = set(because)
    readers: dict[str, list[str]] = {}
    for node_id, node in prompt.items():
        for value in node.get("inputs", {}).values():
            if is_link(value):
                readers.setdefault(value[0], []).append(node_id)
    waiting = list(unknown)
    while waiting:
        source = waiting.pop()
        for reader in readers.get(source, ()):
            if reader not in because:
                because[reader] = because[source]
                waiting.append(reader)
    outputs = [
        node_id
        for node_id in because
        if getattr(classes.get(prompt[node_id].get("class_type", "")), "OUTPUT_NODE", False) is True
    ]
    lost = tuple(
        f"{_capitalised(name_of(node_id, prompt[node_id]))} does not run: it needs "
        f"{name_of(because[node_id], prompt[because[node_id]])}, whose class is not known here."
        for node_id in outputs
    )
    return Part({node_id: node for node_id, node in prompt.items() if node_id not in because}, lost)


def only_unconnected(problems: Iterable[Problem], prompt: Mapping[str, Any], classes: Classes) -> bool:
    """Whether every problem is a socket that the workflow's author has left without a link.

    Nobody can mend these from outside, and ComfyUI runs the other outputs of such a workflow.
    """
    interfaces = Interfaces(classes)
    return all(
        problem.kind == "required_input_missing"
        and problem.node_id is not None
        and is_socket(interfaces, prompt[problem.node_id].get("class_type", ""), problem.input or "")
        for problem in problems
    )


def is_socket(interfaces: Interfaces, class_type: str, name: str) -> bool:
    """Whether only a link can give this input its value."""
    declared = interfaces[class_type].input(name) if class_type in interfaces else None
    return declared is not None and not is_widget(declared)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
