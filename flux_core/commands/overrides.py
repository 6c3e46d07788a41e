"""Values given on the command line, put into a prompt: `--set NODE.INPUT=VALUE`, `--set "{{GAP}}=VALUE"`, `--seed N`,
`--count N`.

A node is named by its id, its title or its class, if the name is unambiguous. Contains no particular node class.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import PromptError
from ..graph.interface import Classes, Interfaces
from ..graph.prompt import is_link, name_of, title_of
from ..graph.templates import filled, gaps, is_gap

JsonPrompt = dict[str, dict[str, Any]]

SEEDS = ("seed", "noise_seed")
RANDOM = "random"


Seed = Callable[[int], int]  # a seed of the workflow -> the one to use


def seeds(given: int | str | None, count: int) -> list[Seed | None]:
    """How each of `count` runs changes the seeds of a workflow; None: not at all.

    Given N, the runs use N, N + 1, ...; given RANDOM, each run uses a random seed; given None, the workflow's own seeds
    count up from one run to the next.
    """
    if given is None and count == 1:
        return [None]
    if given == RANDOM:
        drawn = [secrets.randbelow(2**48) for _ in range(count)]  # the editor shows numbers up to 2^53 exactly
        return [_fixed(number) for number in drawn]
    if isinstance(given, int):
        return [_fixed((given + number) % 2**64) for number in range(count)]
    return [_later(number) for number in range(count)]


def _fixed(seed: int) -> Seed:
    return lambda old: seed


def _later(number: int) -> Seed:
    return lambda old: (old + number) % 2**64


def apply(
    prompt: JsonPrompt,
    classes: Classes,
    settings: Iterable[str],
    seed: Seed | None,
    titles: Mapping[str, str] | None = None,
    option: str = "--set ",
) -> JsonPrompt:
    """A copy of the prompt with these values. `titles`: what the editor calls the nodes of a class. `option`: how a
    setting is introduced where it was written, for the messages.

    Raises PromptError naming every setting that fits nowhere.
    """
    changed = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
    interfaces = Interfaces(classes)
    problems = []
    if seed is not None and not _set_seeds(changed, seed):
        problems.append("--seed: no node of the workflow has a seed.")
    for setting in settings:
        try:
            gap, _, value = setting.partition("=")
            if is_gap(gap):
                changed = _filled(changed, interfaces, gap, value)
            else:
                _set(changed, interfaces, setting, titles or {})
        except _Unfit as unfit:
            problems.append(f"{option}{setting}: {unfit}")
    if problems:
        raise PromptError(problems)
    return changed


class _Unfit(Exception):
    """A setting that cannot be applied. The text is the reason."""


def _filled(prompt: JsonPrompt, interfaces: Interfaces, gap: str, value: str) -> JsonPrompt:
    """The prompt with a value in place of a gap; where the gap is all there is, the value is read as its input's."""
    made, count = filled(prompt, gap, value)
    if not count:
        known = sorted({each for _, _, each in gaps(prompt)})
        raise _Unfit(f"the workflow has no {gap}. It has: {', '.join(known) or 'none'}.")
    for node_id, node in prompt.items():
        for name, text in node["inputs"].items():
            if is_gap(text) and made[node_id]["inputs"][name] != text:
                made[node_id]["inputs"][name] = _value(value, _declared(node, interfaces, name))
    return made


def _set(prompt: JsonPrompt, interfaces: Interfaces, setting: str, titles: Mapping[str, str]) -> None:
    target, equals, text = setting.partition("=")
    if not equals:
        raise _Unfit('write it as NODE.INPUT=VALUE, for example --set "KSampler.steps=8".')
    named, _, input_name = target.strip().rpartition(".")
    candidates = _named(prompt, named, titles) if named else list(prompt)
    having = [node_id for node_id in candidates if _has(prompt[node_id], interfaces, input_name)]
    if len(having) != 1:
        raise _Unfit(_explain(prompt, interfaces, named, input_name, candidates, having))
    inputs = prompt[having[0]]["inputs"]
    inputs[input_name] = _value(text, _declared(prompt[having[0]], interfaces, input_name))


def _named(prompt: JsonPrompt, name: str, titles: Mapping[str, str]) -> list[str]:
    """The nodes of a name: that with this id, else those with this title, else those of this class or its title."""
    if name in prompt:
        return [name]
    wanted = name.casefold()
    titled = [node_id for node_id, node in prompt.items() if title_of(node).casefold() == wanted]
    kinds = {node_id: node.get("class_type", "") for node_id, node in prompt.items()}
    return (
        titled
        or [node_id for node_id, kind in kinds.items() if kind.casefold() == wanted]
        or [node_id for node_id, kind in kinds.items() if titles.get(kind, "").casefold() == wanted]
    )


def _has(node: Mapping[str, Any], interfaces: Interfaces, input_name: str) -> bool:
    return input_name in node["inputs"] or _declared(node, interfaces, input_name) is not None


def _declared(node: Mapping[str, Any], interfaces: Interfaces, input_name: str) -> Any:
    class_type = node.get("class_type", "")
    found = interfaces[class_type].input(input_name) if class_type in interfaces else None
    return None if found is None or found.category == "hidden" else found.type


def _value(text: str, kind: Any) -> Any:
    """The text for a STRING or an option of a combo, else the text as JSON, else the text."""
    if kind == "STRING" or (isinstance(kind, list) and text in kind):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, (list, dict)):
        raise _Unfit("a value is a number, a text, true or false.")
    return value


def _explain(
    prompt: JsonPrompt,
    interfaces: Interfaces,
    named: str,
    input_name: str,
    candidates: Sequence[str],
    having: Sequence[str],
) -> str:
    def listed(node_ids: Iterable[str]) -> str:
        return "; ".join(name_of(node_id, prompt[node_id]) for node_id in node_ids)

    if len(having) > 1:
        return f"{named or input_name!r} may mean {listed(having)}. Name one: {having[0]}.{input_name}=..."
    if not candidates:
        return f"there is no node {named!r}. There are: {listed(prompt)}."
    if not named:
        return f"no node has an input {input_name!r}. There are: {listed(prompt)}."
    inputs = ", ".join(_inputs(prompt[candidates[0]], interfaces))
    return f"{listed(candidates[:1])} has no input {input_name!r}. It has: {inputs}."


def _inputs(node: Mapping[str, Any], interfaces: Interfaces) -> list[str]:
    class_type = node.get("class_type", "")
    declared = [each.name for each in interfaces[class_type].inputs()] if class_type in interfaces else []
    return list(dict.fromkeys([*declared, *node["inputs"]]))


def _set_seeds(prompt: JsonPrompt, seed: Seed) -> int:
    """Set every seed, also one that comes from a number node; returns how many inputs hold one."""
    places = set()  # (node, input) that holds a seed: a number node that feeds several samplers is changed once
    for node_id, node in prompt.items():
        for name in SEEDS:
            value = node["inputs"].get(name)
            if not is_link(value):
                places |= {(node_id, name)} if value is not None else set()
            elif "value" in prompt.get(value[0], {}).get("inputs", {}):
                places.add((value[0], "value"))
    for node_id, name in places:
        inputs = prompt[node_id]["inputs"]
        inputs[name] = seed(_number(inputs[name]))
    return len(places)


def _number(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) else 0
