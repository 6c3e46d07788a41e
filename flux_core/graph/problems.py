"""Problems of a prompt: a kind for programs, and a sentence for people with the node, the input and the possible
values.

They are made from ComfyUI's error records; nothing is checked here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .dynamic import find
from .interface import Classes, Interfaces
from .pack_names import likely_pack, purpose_in_comfyui
from .prompt import is_link, name_of

_LOAD_PACKS = "Load packs with --node-packs FOLDER."
_ANOTHER_VERSION = (
    ", which is loaded here without it: it is of another version, or that part of it did not load (see sluice packs). "
    "Update the pack, or replace the node."
)
_PERHAPS_A_PACK = "If it belongs to a node pack, name the pack's folder with --node-packs FOLDER."
_MANY = 20  # choices beyond this are not listed
# Kinds of problems for which ComfyUI has no error type.
UNKNOWN_CLASS, NO_OUTPUT = "unknown_class", "no_output"
MISSING_MODEL, MISSING_TOKENIZER = "missing_model", "missing_tokenizer"


@dataclass(frozen=True)
class Problem:
    """One problem.

    kind       the type of ComfyUI's error record ("value_not_in_list", ...), or one of the four above
    reason     what is wrong and what to do
    where      the node and its input, named for a person; "" if the problem concerns the whole workflow
    node_id, input    the same for a program
    """

    kind: str
    reason: str
    where: str = ""
    node_id: str | None = None
    input: str | None = None

    @property
    def sentence(self) -> str:
        return f"{self.where}: {self.reason}" if self.where else self.reason


def place_of(node_id: str, node: Mapping[str, Any], input_name: str | None = None) -> str:
    """The beginning of a sentence about a node or one of its inputs."""
    name = name_of(node_id, node)
    return name[:1].upper() + name[1:] + (f", input {input_name}" if input_name else "")


@dataclass(frozen=True)
class _Case:
    """One error and everything its sentence needs."""

    node_id: str
    error: Mapping[str, Any]
    prompt: Mapping[str, Any]
    interfaces: Interfaces

    @property
    def facts(self) -> Mapping[str, Any]:
        facts: Mapping[str, Any] = self.error["extra_info"]
        return facts

    @property
    def given(self) -> Any:
        return self.facts.get("received_value")

    @property
    def declared(self) -> Any:
        """The type of the input in question, with all options of a combo."""
        found = find(self.interfaces[self.prompt[self.node_id]["class_type"]], self.facts["input_name"])
        return found.type if found else "*"

    def name(self, node_id: str) -> str:
        return name_of(node_id, self.prompt[node_id])


def problems_of(
    prompt: Mapping[str, Any],
    interfaces: Interfaces,
    node_errors: Mapping[str, Any],
    unknown: Mapping[str, Any],
    has_outputs: bool,
    packs: Mapping[str, str],
) -> tuple[Problem, ...]:
    """All problems; a cycle is reported once.

    `unknown` are the nodes without a usable class, `packs` maps class ids to the packs they came from.
    """
    found = [
        Problem(UNKNOWN_CLASS, _unknown_class(node_id, prompt[node_id], interfaces.classes, packs), node_id=node_id)
        for node_id in unknown
    ]
    for node_id, entry in node_errors.items():
        found += [_problem(_Case(node_id, one, prompt, interfaces)) for one in entry["errors"]]
    if not has_outputs and not unknown:
        have = "none of its nodes saves or shows anything" if prompt else "it has no nodes"
        found.append(Problem(NO_OUTPUT, f"The workflow has no output, because {have}. Add one, for example SaveImage."))
    return tuple(dict.fromkeys(found))


def _unknown_class(node_id: str, node: Mapping[str, Any], classes: Classes, packs: Mapping[str, str]) -> str:
    if "class_type" not in node:
        return f"Node {node_id} has no class_type."
    class_type = node["class_type"]
    meta = node.get("_meta", {})
    pack = meta.get("cnr_id") or meta.get("aux_id") or packs.get(class_type)
    text = f"{place_of(node_id, node)} cannot run: there is no node class {class_type!r} here."
    if pack and pack != "comfy-core":
        return f"{text} It comes from the node pack {pack}{_way_to_pack(pack, classes)}"
    if purpose := purpose_in_comfyui(class_type):
        return f"{text} {purpose}"
    if likely := likely_pack(class_type):
        return f"{text} It is probably from the node pack {likely}{_way_to_pack(likely, classes)}"
    one_id_each = {node_class: name for name, node_class in reversed([*classes.items()])}
    return f"{text}{_similar(class_type, one_id_each.values())} {_PERHAPS_A_PACK}"


def _way_to_pack(pack: str, classes: Classes) -> str:
    """The rest of a sentence about a pack that a node needs: it is to be loaded, or the loaded one lacks the node."""
    loaded = {_plain_name(getattr(node_class, "RELATIVE_PYTHON_MODULE", "")) for node_class in classes.values()}
    return _ANOTHER_VERSION if _plain_name(pack) in loaded - {""} else f". {_LOAD_PACKS}"


def _plain_name(pack: str) -> str:
    """A pack's name without its owner, its module and signs, in which its spellings differ."""
    return re.sub(r"[\W_]", "", pack.removeprefix("custom_nodes.").rpartition("/")[2].lower())


def _problem(case: _Case) -> Problem:
    kind, name = case.error["type"], case.facts.get("input_name")
    if kind == "dependency_cycle":
        reason = f"Nodes wait for each other in a circle: {case.error['details']}. Remove one of these links."
        return Problem(kind, reason)  # without a node, so that the problem is the same for all nodes of a cycle
    where = place_of(case.node_id, case.prompt[case.node_id], name)
    return Problem(kind, _REASONS[kind](case), where, case.node_id, name)


def _missing(case: _Case) -> str:
    return "it is required, but it has neither a value nor a link."


def _bad_link(case: _Case) -> str:
    return f"{_short(case.given)} is not a link; a link is [node id, number of the output]."


def _mismatch(case: _Case) -> str:
    source, slot = case.facts["linked_node"]
    gives = _kind(case.facts["received_type"])
    return f"it takes {_kind(case.declared)}, but output {slot} of {case.name(source)} gives {gives}."


def _not_convertible(case: _Case) -> str:
    return f"it takes {_kind(case.declared)}, but {_short(case.given)} cannot be converted to that type."


def _too_small(case: _Case) -> str:
    return f"{_short(case.given)} is below the smallest possible value, {case.facts['input_config'][1]['min']}."


def _too_big(case: _Case) -> str:
    return f"{_short(case.given)} is above the largest possible value, {case.facts['input_config'][1]['max']}."


def _not_listed(case: _Case) -> str:
    options = case.declared
    if not options:
        return f"{_short(case.given)} is not available: the list of choices is empty."
    possible = f" Possible: {', '.join(map(str, options))}." if len(options) <= _MANY else ""
    return f"{_short(case.given)} is not available.{_similar(case.given, options)}{possible}"


def _refused(case: _Case) -> str:
    reason = case.error["details"].removeprefix(case.facts["input_name"]).removeprefix(" - ").rstrip(".")
    return f"{reason or 'the node refuses this value'}."


def _exception(case: _Case) -> str:
    link = case.given
    if is_link(link) and link[0] not in case.prompt:
        return f"it is linked to node {link[0]}, which is not in the workflow."
    if is_link(link) and case.facts["exception_type"] == "IndexError":
        return f"it is linked to output {link[1]} of {case.name(link[0])}, which has no such output."
    return f"it could not be checked ({case.facts['exception_type']}: {case.error['details']})."


_REASONS: Mapping[str, Callable[[_Case], str]] = {
    "required_input_missing": _missing,
    "bad_linked_input": _bad_link,
    "return_type_mismatch": _mismatch,
    "invalid_input_type": _not_convertible,
    "value_smaller_than_min": _too_small,
    "value_bigger_than_max": _too_big,
    "value_not_in_list": _not_listed,
    "custom_validation_failed": _refused,
    "exception_during_validation": _exception,
    "exception_during_inner_validation": _exception,
}


def _kind(declared: Any) -> str:
    return "one of a list" if isinstance(declared, list) else str(declared)


def _similar(given: Any, possible: Iterable[Any]) -> str:
    """The hint "Did you mean" with up to three close matches, regardless of case and folder; "" if there are none."""
    names = {str(name).lower(): str(name) for name in possible}
    wanted = str(given)[:200].lower()
    close = difflib.get_close_matches(wanted, names, n=3)
    tails = [name for name in names if name.replace("\\", "/").rpartition("/")[2] == wanted.rpartition("/")[2]]
    found = list(dict.fromkeys([*tails, *close]))[:3]
    return f" Did you mean {' or '.join(repr(names[name]) for name in found)}?" if found else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
