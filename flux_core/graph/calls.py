"""Calling a node: gathers its inputs, maps its function over lists, and normalises what it returns.

Internally every input and output is a list of values. A plain node is called once per value (shorter lists repeat
their last value), a node with INPUT_IS_LIST once with the lists themselves. This file does not decide about order or
caching.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .dynamic import find
from .interface import Interface
from .prompt import Link, Node

Outputs = Sequence[list[Any]]  # of one node: the list of values of each output slot
Arguments = dict[str, Any]


class ExecutionBlocker:
    """A node returns this instead of a value: every node that depends on the value is skipped.

    `message` is shown as an error; None skips silently.
    """

    def __init__(self, message: str | None = None) -> None:
        self.message = message


@dataclass(frozen=True)
class Gathered:
    """The inputs of a node before the call: name -> list of values. `missing` are links that have no value yet."""

    values: dict[str, list[Any]]
    missing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Row:
    """The result of one call: a value per output slot, which may be a link into a graph that runs first."""

    result: Sequence[Any]
    graph: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Returned:
    """The results of all calls of a node."""

    rows: tuple[Row, ...]
    ui: dict[str, list[Any]]


def gather(
    node: Node, interface: Interface, hidden: Mapping[str, Any], outputs: Callable[[str], Outputs | None] | None = None
) -> Gathered:
    """Collect the inputs of a node.

    `hidden` maps "PROMPT", "UNIQUE_ID" ... to values. Without `outputs` links have no values, as in IS_CHANGED and
    VALIDATE_INPUTS. Links to undeclared inputs are always passed on, undeclared constants only to a class that accepts
    any name.
    """
    values: dict[str, list[Any]] = {}
    missing = set()
    for name, value in node.inputs.items():
        declared = find(interface, name)
        if isinstance(value, Link) and not (declared and declared.raw_link):
            delivered = outputs(value.node_id) if outputs else None
            if delivered is None or not 0 <= value.slot < len(delivered):
                values[name] = [None]
                missing.add(name)
            else:
                values[name] = delivered[value.slot]
        elif isinstance(value, Link):
            values[name] = [[value.node_id, value.slot]]
        elif declared or interface.takes_anything:
            values[name] = [value]
    for name, wanted in interface.sections["hidden"].items():
        if wanted in HIDDEN:
            values[name] = [hidden.get(wanted)]
    return Gathered(values, frozenset(missing))


# AUTH_TOKEN_COMFY_ORG and API_KEY_COMFY_ORG are always None: no keys are stored.
HIDDEN = ("PROMPT", "DYNPROMPT", "EXTRA_PNGINFO", "UNIQUE_ID", "AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG")


def arguments(values: Mapping[str, list[Any]], whole_lists: bool) -> list[Arguments]:
    """The inputs of each call by their names in the prompt, in order. Raises InputError if an input is an empty
    list.
    """
    if whole_lists:
        return [dict(values)]
    for name, items in values.items():
        if not items:
            raise InputError(f"The input {name} received an empty list, so there is no value to run the node with.")
    count = max((len(items) for items in values.values()), default=1)
    return [{name: items[min(i, len(items) - 1)] for name, items in values.items()} for i in range(count)]


def blocker_in(call: Arguments, whole_lists: bool) -> ExecutionBlocker | None:
    """The first ExecutionBlocker among the inputs of a call."""
    for value in call.values():
        for item in value if whole_lists else (value,):
            if isinstance(item, ExecutionBlocker):
                return item
    return None


def finished(value: Any) -> Any:
    """The value, or the result of a coroutine. Must not be called within a running event loop."""
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def wants_lists(node_class: Any) -> bool:
    """Whether the node is called once, with whole lists."""
    return bool(getattr(node_class, "INPUT_IS_LIST", False))


def read_returns(returns: Sequence[Any], interface: Interface) -> Returned:
    """Read the three forms of a node's return value: tuples, {"ui", "result", "expand"} and blockers."""
    rows, uis = [], []
    for value in returns:
        graph = None
        if isinstance(value, Mapping):
            if "ui" in value:
                uis.append(value["ui"])
            graph = value.get("expand")
            if graph is None and "result" not in value:
                continue
            value = value.get("result") or ()
        if isinstance(value, ExecutionBlocker):
            value = (value,) * len(interface.outputs)
        if not isinstance(value, (tuple, list)):
            name = f"{interface.node_class.__name__}.{interface.function}"
            raise TypeError(
                f"{name} returned a {type(value).__name__}; a node must return a tuple with one value per output."
            )
        rows.append(Row(value, graph))
    ui = {key: [item for one in uis for item in one[key]] for key in uis[0]} if uis else {}
    return Returned(tuple(rows), ui)


def merge(results: Sequence[Sequence[Any]], node_class: type[Any]) -> list[list[Any]]:
    """One list per output slot: the values of all calls, with the lists of OUTPUT_IS_LIST slots joined."""
    if not results:
        return []
    width = min(len(result) for result in results)
    is_list = list(getattr(node_class, "OUTPUT_IS_LIST", ())) + [False] * width
    merged = []
    for slot in range(width):
        values = [result[slot] for result in results]
        if is_list[slot]:
            values = [item for value in values for item in _items(value)]
        merged.append(values)
    return merged


def _items(value: Any) -> Sequence[Any]:
    return (value,) if isinstance(value, ExecutionBlocker) else value
