"""Checks whether a prompt can run: ComfyUI's checks and error records, but all problems are found at once.

    for the ancestors of every output node, inputs first: types of links fit; constants convert to the declared type,
    are within bounds and among the options
    result: outputs that may run | node_errors and error, as in the response of POST /prompt | the same as sentences

Nothing is executed except the nodes' own VALIDATE_INPUTS. Uses no particular node class.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .calls import ExecutionBlocker, arguments, finished, gather, wants_lists
from .dynamic import MATCHING, find, nested, present
from .interface import Classes, Input, Interface, Interfaces
from .problems import Problem, problems_of
from .prompt import JsonPrompt, is_link, is_wrapped, parse_node

Error = dict[str, Any]  # {"type", "message", "details", "extra_info"}, as ComfyUI sends them

_LONG_LIST = 20  # options beyond this are counted, not listed


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("it is not finite")
    return number


def _refuse(value: Any) -> Any:
    raise TypeError("only another node gives one")


_CONVERT: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": _finite, "STRING": str, "BOOLEAN": bool}
# ComfyUI lets these pass, and its nodes fail at them later. Other types may have widgets that packs bring along.
_WIRES = dict.fromkeys("MODEL CLIP VAE CONDITIONING LATENT IMAGE MASK SIGMAS NOISE SAMPLER GUIDER".split(), _refuse)


@dataclass(frozen=True)
class Validation:
    """The outputs that may run, and the problems of the others."""

    prompt: dict[str, Any]  # a copy with its constants converted (72 -> 72.0 for a FLOAT), which is run and saved
    outputs: tuple[str, ...]  # output nodes that may run, in the order of the prompt
    node_errors: dict[str, Any] = field(default_factory=dict)  # id -> {"errors", "dependent_outputs", "class_type"}
    error: Error | None = None  # why no output can run
    problems: tuple[Problem, ...] = ()  # all problems

    @property
    def sentences(self) -> tuple[str, ...]:
        """The problems for a person, each in one or two sentences."""
        return tuple(problem.sentence for problem in self.problems)


def validate(
    prompt: JsonPrompt,
    classes: Classes,
    targets: Collection[str] | None = None,
    packs: Mapping[str, str] | None = None,
) -> Validation:
    """Check a cleaned prompt (see embedded.clean_prompt) against a class table.

    `targets` limits the check to these output nodes (partial execution). `packs` maps class ids to the pack they came
    from, for the sentence about an unknown class. Raises no error: problems are part of the result.
    """
    check = _Check(prompt, classes)
    unknown = check.unknown()
    outputs = [node_id for node_id in check.output_nodes() if targets is None or node_id in targets]
    for node_id in outputs:
        check.visit(node_id)
    node_errors = check.node_errors(outputs)
    good = tuple(node_id for node_id in outputs if node_id not in check.bad)
    error = None
    if unknown:
        error, good = next(iter(unknown.values())), ()
    elif not outputs:
        error = _error("prompt_no_outputs", "Prompt has no outputs", "")
    elif not good:
        own = [f"{e['message']}: {e['details']}" for node_id in outputs for e in check.errors.get(node_id, ())]
        error = _error("prompt_outputs_failed_validation", "Prompt outputs failed validation", "\n".join(own))
    problems = problems_of(check.prompt, check.interfaces, node_errors, unknown, bool(outputs), packs or {})
    return Validation(check.prompt, good, {} if unknown else node_errors, error, problems)


class _Check:
    def __init__(self, prompt: JsonPrompt, classes: Classes) -> None:
        self.prompt: dict[str, Any] = {
            node_id: {**node, "inputs": dict(node.get("inputs", {}))} for node_id, node in prompt.items()
        }
        self.interfaces = Interfaces(classes)
        self.errors: dict[str, list[Error]] = {}  # errors of visited nodes; empty lists for valid ones
        self.bad: set[str] = set()  # nodes with errors, or with bad ancestors
        self.roots: set[str] = set()  # output nodes that were not reached from an earlier one

    def unknown(self) -> dict[str, Error]:
        """Nodes without a class, or with one that is not in the table."""
        found = {}
        for node_id, node in self.prompt.items():
            if "class_type" not in node:
                message = "Cannot execute because a node is missing the class_type property."
            elif node["class_type"] not in self.interfaces:
                message = f"Cannot execute because node {node['class_type']} does not exist."
            else:
                continue
            found[node_id] = _error("invalid_prompt", message, f"Node ID '#{node_id}'")
        return found

    def output_nodes(self) -> Iterator[str]:
        for node_id, node in self.prompt.items():
            node_class = self.interfaces.classes.get(node.get("class_type", ""))
            if node_class is not None and getattr(node_class, "OUTPUT_NODE", False) is True:
                yield node_id

    def visit(self, root: str) -> None:
        """Check the ancestors of an output node and then the node. Chains may be thousands long, so it is not
        recursive.
        """
        if root in self.errors:
            return
        self.roots.add(root)
        path: dict[str, Iterator[str]] = {root: self._sources(root)}  # the path to the current node
        while path:
            node_id = next(reversed(path))
            source = next(path[node_id], None)
            if source is None:
                path.popitem()
                self._finish(node_id)
            elif source in path:
                self._blame_cycle([*path][[*path].index(source) :])
            elif source not in self.errors:
                path[source] = self._sources(source)

    def _sources(self, node_id: str) -> Iterator[str]:
        for value in self.prompt[node_id]["inputs"].values():
            if is_link(value) and value[0] in self.prompt:
                yield value[0]

    def _interface(self, node_id: str) -> Interface | Exception | None:
        """None for an unknown class; the exception for one whose declaration fails."""
        class_type = self.prompt[node_id].get("class_type", "")
        try:
            return self.interfaces[class_type] if class_type in self.interfaces else None
        except Exception as error:
            return error

    def _finish(self, node_id: str) -> None:
        interface = self._interface(node_id)
        errors = self.errors.setdefault(node_id, [])  # a cycle may have been recorded before
        if isinstance(interface, Interface):
            errors += self._node(node_id, interface)
        elif interface is not None:
            errors.append(self._exception(node_id, interface))
        if errors or any(source in self.bad for source in self._sources(node_id)):
            self.bad.add(node_id)

    def _blame_cycle(self, nodes: list[str]) -> None:
        names = [f"{node_id} ({self.prompt[node_id].get('class_type', '?')})" for node_id in reversed(nodes)]
        if len(names) > _LONG_LIST:
            names[10:-9] = [f"... {len(names) - 19} more ..."]
        path = " -> ".join([*names, names[0]])
        for node_id in nodes:
            error = _error("dependency_cycle", "Dependency cycle detected", path)
            self.errors.setdefault(node_id, []).append(error)
            self.bad.add(node_id)

    def node_errors(self, outputs: Collection[str]) -> dict[str, Any]:
        """The nodes that have errors themselves, each with the outputs that need it."""
        needed_by: dict[str, list[str]] = {}
        for output in outputs:
            seen, waiting = {output}, [output]
            while waiting:
                node_id = waiting.pop()
                needed_by.setdefault(node_id, []).append(output)
                fresh = set(self._sources(node_id)) - seen
                seen |= fresh
                waiting += fresh
        return {
            node_id: {
                "errors": errors,
                "dependent_outputs": needed_by.get(node_id, []),
                "class_type": self.prompt[node_id].get("class_type", ""),
            }
            for node_id, errors in self.errors.items()
            if errors
        }

    # One node ------------------------------------------------------------------------------------------------------

    def _node(self, node_id: str, interface: Interface) -> list[Error]:
        """All errors of one node; converts its constants in our copy of the prompt."""
        inputs = self.prompt[node_id]["inputs"]
        errors: list[Error | None] = []
        received: dict[str, Any] = {}
        try:
            own_check = _OwnCheck(interface)
            declared_inputs = tuple(present(interface, inputs))
        except Exception as error:
            return [self._exception(node_id, error)]
        for declared in declared_inputs:
            try:
                errors.append(self._input(declared, inputs, received, own_check))
            except Exception as error:
                errors.append(self._exception(node_id, error, declared.name))
        for name, value in inputs.items():
            if is_link(value) and value[0] not in self.prompt and find(interface, name) is None:
                errors.append(self._exception(node_id, KeyError(value[0]), name))
        if not any(error and error["type"] == "required_input_missing" for error in errors):
            try:
                errors += own_check.run(parse_node(node_id, self.prompt[node_id]), received)
            except Exception as error:
                errors.append(self._exception(node_id, error))
        return [error for error in errors if error is not None]

    def _input(
        self, declared: Input, inputs: dict[str, Any], received: dict[str, Any], own_check: _OwnCheck
    ) -> Error | None:
        name = declared.name
        if name not in inputs:
            return _missing(declared) if declared.category == "required" else None
        if isinstance(inputs[name], list):
            return self._link(declared, inputs[name], received, own_check)
        inputs[name], error = _converted(declared, inputs[name])
        return error or (None if own_check.covers(name) else _out_of_range(declared, inputs[name]))

    def _link(self, declared: Input, link: Any, received: dict[str, Any], own_check: _OwnCheck) -> Error | None:
        if not is_link(link):
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return _error("bad_linked_input", message, declared.name, declared, received_value=link)
        source = self._interface(link[0]) if self.prompt[link[0]] else None
        if not isinstance(source, Interface):
            return None  # reported at that node
        if link[1] < 0:
            raise IndexError("tuple index out of range")
        kind = received[declared.name] = source.outputs[link[1]]
        if own_check.takes_types or types_fit(kind, declared.type):
            return None
        details = f"{declared.name}, received_type({kind}) mismatch input_type({declared.type})"
        message = "Return type mismatch between linked nodes"
        return _error("return_type_mismatch", message, details, declared, received_type=kind, linked_node=link)

    def _exception(self, node_id: str, error: Exception, name: str | None = None) -> Error:
        """The error record of an exception in a check. Output nodes and other nodes have different types in ComfyUI."""
        kind = type(error).__qualname__
        if type(error).__module__ != "builtins":
            kind = f"{type(error).__module__}.{kind}"
        facts: dict[str, Any] = {"exception_type": kind, "traceback": traceback.format_tb(error.__traceback__)}
        if name is not None:
            facts |= {"input_name": name, "received_value": self.prompt[node_id]["inputs"].get(name)}
        if node_id in self.roots:
            return _error("exception_during_validation", "Exception when validating node", str(error), **facts)
        facts["exception_message"] = str(error)
        return _error("exception_during_inner_validation", "Exception when validating inner node", str(error), **facts)


class _OwnCheck:
    """A class's VALIDATE_INPUTS. It replaces our checks of the inputs that it takes as parameters."""

    def __init__(self, interface: Interface) -> None:
        self.interface = interface
        self.function = getattr(interface.node_class, "VALIDATE_INPUTS", None)
        spec = inspect.getfullargspec(self.function) if self.function else None
        self.names = spec.args if spec else []
        self.takes_any = bool(spec and spec.varkw)
        self.takes_types = "input_types" in self.names

    def covers(self, name: str) -> bool:
        return self.takes_any or name in self.names

    def run(self, node: Any, received: dict[str, Any]) -> list[Error]:
        if self.function is None or not (self.names or self.takes_any):
            return []
        gathered = gather(node, self.interface, {"UNIQUE_ID": node.id, "PROMPT": {}}).values
        values = {name: items for name, items in gathered.items() if self.covers(name)}
        if self.takes_types:
            values["input_types"] = [received]
        answers = [self._ask(call) for call in arguments(values, wants_lists(self.interface.node_class))]
        return [
            _error(
                "custom_validation_failed",
                "Custom validation failed for node",
                name if answer is False else f"{name} - {answer}",
                input_name=name,
            )
            for name in values
            for answer in answers
            if answer is not True and not isinstance(answer, ExecutionBlocker)
        ]

    def _ask(self, call: dict[str, Any]) -> Any:
        assert self.function is not None
        return finished(self.function(**nested(self.interface, call)))


# Single checks -------------------------------------------------------------------------------------------------------


def types_fit(received: Any, wanted: Any) -> bool:
    """Whether an output type may feed an input type: equal, "*", or comma separated unions with a common type.

    An output whose type follows an input fits everywhere, because the editor checks it. The comparison is `!=` on
    purpose: packs make "any" types by overriding this operator.
    """
    if not received != wanted or received in ("*", MATCHING) or wanted == "*":
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    return not {t.strip() for t in received.split(",")}.isdisjoint(t.strip() for t in wanted.split(","))


def _converted(declared: Input, value: Any) -> tuple[Any, Error | None]:
    """The constant converted to its declared type, and the error if that fails. Wrapped lists stay wrapped."""
    content = value["__value__"] if is_wrapped(value) else value
    convert = _CONVERT.get(declared.type) if isinstance(declared.type, str) else None
    if convert is None and isinstance(declared.type, str) and isinstance(content, (str, int, float)):
        convert = _WIRES.get(declared.type)
    if convert is None:
        return (value if isinstance(content, list) else content), None
    try:
        return convert(content), None
    except (TypeError, ValueError, OverflowError) as error:
        message = f"Failed to convert an input value to a {declared.type} value"
        details = f"{declared.name}, {content}, {error}"
        found = _error("invalid_input_type", message, details, declared, received_value=content)
        found["extra_info"]["exception_message"] = str(error)
        return value, found


def _out_of_range(declared: Input, value: Any) -> Error | None:
    value = value["__value__"] if is_wrapped(value) else value
    low, high = declared.options.get("min"), declared.options.get("max")
    if low is not None and value < low:
        message = f"Value {value} smaller than min of {low}"
        return _error("value_smaller_than_min", message, declared.name, declared, received_value=value)
    if high is not None and value > high:
        message = f"Value {value} bigger than max of {high}"
        return _error("value_bigger_than_max", message, declared.name, declared, received_value=value)
    options = declared.type
    if not isinstance(options, list) or value in options:
        return None
    listed = f"(list of length {len(options)})" if len(options) > _LONG_LIST else str(options)
    details = f"{declared.name}: '{value}' not in {listed}"
    error = _error("value_not_in_list", "Value not in list", details, declared, received_value=value)
    if len(options) > _LONG_LIST:
        error["extra_info"]["input_config"] = None
    return error


def _missing(declared: Input) -> Error:
    message = "Required input is missing"
    return _error("required_input_missing", message, declared.name, input_name=declared.name)


def _error(kind: str, message: str, details: str, declared: Input | None = None, **facts: Any) -> Error:
    extra = {"input_name": declared.name, "input_config": [declared.type, declared.options]} if declared else {}
    return {"type": kind, "message": message, "details": details, "extra_info": extra | facts}
