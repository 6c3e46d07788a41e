"""The API prompt: links, the entries that are kept, the names of nodes in sentences."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice.flux_core.errors import WorkflowError
from sluice.flux_core.graph.flatten import to_prompt
from sluice.flux_core.graph.prompt import Link, is_link, name_of, parse_prompt
from sluice.flux_core.io.embedded import Embedded, clean_prompt, is_prompt

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NODES = st.dictionaries(
    st.text(max_size=3),
    st.dictionaries(st.sampled_from(["class_type", "inputs", "_meta", "is_changed"]), JSON) | JSON,
    max_size=4,
)


def test_a_list_of_text_and_number_is_a_link_and_nothing_else_is() -> None:
    assert is_link(["4", 0]) and is_link(["38:13", 1])
    for value in ("4", ["4"], ["4", "0"], [4, 0], ["4", True], ["4", 0, 0], {"0": "4"}, None, []):
        assert not is_link(value)


def test_inputs_become_links_and_constants_and_wrapped_lists_are_unwrapped() -> None:
    inputs = {"model": ["4", 1], "steps": 20, "names": {"__value__": ["a", 2]}, "bare": [1, 2, 3]}
    node = parse_prompt({"3": {"class_type": "K", "inputs": inputs, "_meta": {"title": "S"}}})["3"]
    assert node.inputs == {"model": Link("4", 1), "steps": 20, "names": ["a", 2], "bare": [1, 2, 3]}
    assert list(node.links()) == [("model", Link("4", 1))] and node.title == "S"


def test_a_node_is_named_by_id_title_and_class() -> None:
    assert name_of("3", {"class_type": "K", "_meta": {"title": "S"}}) == 'node 3 "S" (K)'
    assert name_of("3", {"class_type": "K", "_meta": {"title": "K"}}) == "node 3 (K)"
    assert name_of("3", {"class_type": "K"}) == "node 3 (K)"


def test_cleaning_keeps_class_inputs_and_the_texts_of_meta() -> None:
    dirty = {"class_type": "A", "inputs": {"x": [1, {"y": None}]}, "_meta": {"title": "t", "n": 1}, "is_changed": 1}
    clean = {"class_type": "A", "inputs": {"x": [1, {"y": None}]}, "_meta": {"title": "t"}}
    assert clean_prompt({"1": dirty, "2": {"inputs": {}}}) == {"1": clean, "2": {"inputs": {}}}


def test_a_prompt_is_exact_so_it_goes_before_the_canvas() -> None:
    prompt = {"1": {"class_type": "A", "inputs": {}}}
    assert to_prompt(Embedded(prompt=prompt, workflow={"nodes": []}), {}) == prompt


def test_parameters_of_other_programs_are_no_workflow() -> None:
    with pytest.raises(WorkflowError, match="parameters"):
        to_prompt(Embedded(parameters="a cat, Steps: 20"), {})


@settings(max_examples=200, deadline=None)
@given(NODES | JSON)
def test_any_json_is_cleaned_or_refused_with_one_error(value: Any) -> None:
    try:
        cleaned = clean_prompt(value)
    except WorkflowError:
        return
    assert json.loads(json.dumps(cleaned, allow_nan=False)) == cleaned == clean_prompt(cleaned)
    if is_prompt(cleaned):
        assert [node.id for node in parse_prompt(cleaned).values()] == list(cleaned)
