"""The cache: a change affects exactly the nodes below it, and results of removed nodes are dropped."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sluice.flux_core.graph.cache import CacheKeys
from sluice.flux_core.graph.execute import Executor
from sluice.flux_core.graph.interface import Interfaces
from sluice.flux_core.graph.live import LivePrompt


class Thing:
    """A result that can be watched."""


class Value:
    """A source: returns the value that was set."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"value": ("*",)}})
    RETURN_TYPES, FUNCTION = ("*",), "run"

    def run(self, value: Any) -> tuple[Any]:
        return (value,)


class Join:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}, "optional": {"a": ("*",), "b": ("*",), "word": ("STRING",)}}

    RETURN_TYPES, FUNCTION = ("*", "*"), "run"
    made: list[weakref.ref[Thing]] = []

    def run(self, **inputs: Any) -> tuple[Any, Any]:
        thing = Thing()
        Join.made.append(weakref.ref(thing))
        return (str(inputs), thing)


class Named(Join):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return Join.INPUT_TYPES() | {"hidden": {"own": "UNIQUE_ID"}}


class Clock(Value):
    """A node that reports itself whether it has changed."""

    answer: Any = 1

    @classmethod
    def IS_CHANGED(cls, value: Any) -> Any:
        if isinstance(cls.answer, Exception):
            raise cls.answer
        return cls.answer


class Show:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"x": ("*",)}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "run", True

    def __init__(self) -> None:
        self.count = 0

    def run(self, x: Any) -> dict[str, Any]:
        self.count += 1
        return {"ui": {"text": [str(x)], "count": [self.count]}}


CLASSES = {"Value": Value, "Join": Join, "Named": Named, "Clock": Clock, "Show": Show}


def n(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def ran(executor: Executor, prompt: dict[str, Any], outputs: tuple[str, ...] = ("9",)) -> list[str]:
    result = executor.execute(prompt, outputs=outputs)
    assert result.status == "success", result.exception
    return sorted(result.executed)


GRAPH = {
    "1": n("Value", value=1),
    "2": n("Value", value=2),
    "3": n("Join", a=["1", 0]),
    "4": n("Join", a=["3", 0], b=["2", 0]),
    "9": n("Show", x=["4", 0]),
}


def changed(node_id: str, **inputs: Any) -> dict[str, Any]:
    return GRAPH | {node_id: GRAPH[node_id] | {"inputs": GRAPH[node_id]["inputs"] | inputs}}


class TestWhatRunsAgain:
    def test_nothing_when_nothing_changed(self) -> None:
        executor = Executor(CLASSES)
        assert ran(executor, GRAPH) == ["1", "2", "3", "4", "9"]
        assert ran(executor, GRAPH) == []

    def test_exactly_the_changed_node_and_all_below_it(self) -> None:
        executor = Executor(CLASSES)
        ran(executor, GRAPH)
        assert ran(executor, changed("2", value=5)) == ["2", "4", "9"]
        assert ran(executor, GRAPH) == ["2", "4", "9"]  # the former result was dropped
        assert ran(executor, changed("4", word="x")) == ["4", "9"]
        assert ran(executor, changed("9", x=["4", 1])) == ["4", "9"]
        assert ran(executor, changed("9", x=["4", 0])) == ["9"]

    def test_ids_titles_and_places_play_no_part(self) -> None:
        executor = Executor(CLASSES)
        ran(executor, GRAPH)
        moved = {"9": GRAPH["9"] | {"inputs": {"x": ["d", 0]}}, "d": n("Join", b=["b", 0], a=["c", 0])}
        moved |= {"c": n("Join", a=["a", 0]), "b": n("Value", value=2), "a": n("Value", value=1)}
        moved["a"]["_meta"] = {"title": "T"}
        assert ran(executor, moved) == []

    def test_a_node_that_takes_its_id_is_not_the_same_elsewhere(self) -> None:
        executor = Executor(CLASSES)
        assert ran(executor, {"1": n("Named"), "9": n("Show", x=["1", 0])}) == ["1", "9"]
        assert ran(executor, {"2": n("Named"), "9": n("Show", x=["2", 0])}) == ["2", "9"]

    def test_equal_nodes_are_run_once(self) -> None:
        prompt = {"1": n("Join"), "2": n("Join"), "3": n("Join", a=["1", 0], b=["2", 0]), "9": n("Show", x=["3", 0])}
        assert len(ran(Executor(CLASSES), prompt)) == 3

    def test_values_of_different_types_are_different(self) -> None:
        executor = Executor(CLASSES)
        for value in (1, 1.0, True, "1", ["1"], [1], {"1": 1}, None, "None", [["1"]], {"a": None}, 0.1 + 0.2, 0.3):
            assert "2" in ran(executor, changed("2", value={"__value__": value}))
            assert ran(executor, changed("2", value={"__value__": value})) == []


class TestIsChanged:
    PROMPT = {"1": n("Clock", value=1), "9": n("Show", x=["1", 0])}

    def answers(self, *answers: Any) -> list[list[str]]:
        executor = Executor(CLASSES)
        results = []
        for Clock.answer in answers:
            results.append(ran(executor, self.PROMPT))
        return results

    def test_an_equal_answer_means_unchanged(self) -> None:
        assert self.answers("abc", "abc", "abd", {"x": [1]}, {"x": [1]}) == [["1", "9"], [], ["1", "9"], ["1", "9"], []]

    def test_nan_objects_and_failures_mean_changed(self) -> None:
        for answer in (math.nan, object(), ValueError("no")):
            assert self.answers(answer, answer) == [["1", "9"], ["1", "9"]]

    def test_it_sees_constants_only(self) -> None:
        seen = []

        class Looks(Join):
            @classmethod
            def IS_CHANGED(cls, **inputs: Any) -> int:
                seen.append(inputs)
                return 0

        prompt = {"1": n("Value", value=1), "2": n("Looks", a=["1", 0], word="w"), "9": n("Show", x=["2", 0])}
        ran(Executor(CLASSES | {"Looks": Looks}), prompt)
        assert seen == [{"a": None, "word": "w"}]


class TestWhatIsKept:
    def test_results_live_as_long_as_their_node_is_in_the_prompt_even_if_it_does_not_run(self) -> None:
        executor = Executor(CLASSES)
        Join.made.clear()
        ran(executor, GRAPH)
        ran(executor, GRAPH | {"8": n("Show", x=["2", 0])}, outputs=("8",))
        gc.collect()
        assert Join.made and all(ref() is not None for ref in Join.made)
        ran(executor, {"8": n("Show", x=["2", 0]), "2": GRAPH["2"]}, outputs=("8",))
        gc.collect()
        assert all(ref() is None for ref in Join.made)

    def test_forget_drops_everything(self) -> None:
        executor = Executor(CLASSES)
        Join.made.clear()
        ran(executor, GRAPH)
        executor.forget()
        gc.collect()
        assert all(ref() is None for ref in Join.made)
        assert len(ran(executor, GRAPH)) == 5

    def test_a_node_object_keeps_its_state_while_it_is_on_the_canvas(self) -> None:
        executor = Executor(CLASSES)
        counts = [executor.execute(changed("2", value=v), outputs=("9",)).outputs["9"]["count"] for v in (1, 2, 3)]
        assert counts == [[1], [2], [3]]
        ran(executor, {"8": n("Show", x=["2", 0]), "2": GRAPH["2"]}, outputs=("8",))
        assert executor.execute(GRAPH, outputs=("9",)).outputs["9"]["count"] == [1]

    def test_results_before_a_failure_are_kept(self) -> None:
        class Fail(Join):
            def run(self, **inputs: Any) -> Any:
                raise ValueError("no")

        executor = Executor(CLASSES | {"Fail": Fail})
        broken = GRAPH | {"4": n("Fail", a=["3", 0], b=["2", 0])}
        assert executor.execute(broken, outputs=("9",)).status == "error"
        assert ran(executor, GRAPH) == ["4", "9"]


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """Any graph without circles: each node may take from earlier ones."""
    size = draw(st.integers(2, 12))
    prompt: dict[str, Any] = {}
    for i in range(size):
        links = {name: [str(draw(st.integers(0, i - 1))), 0] for name in ("a", "b") if i and draw(st.booleans())}
        prompt[str(i)] = n("Join", **links, word=draw(st.sampled_from("xy")))
    return prompt | {"9z": n("Show", x=[str(size - 1), 0])}


def below(prompt: dict[str, Any], node_id: str) -> set[str]:
    found = {node_id}
    for other, node in prompt.items():  # sources come first
        if any(value[0] in found for value in node["inputs"].values() if isinstance(value, list)):
            found.add(other)
    return found


@settings(max_examples=100, deadline=None)
@given(graphs(), st.data())
def test_keys_change_for_a_node_and_those_below_it_alone(prompt: dict[str, Any], data: st.DataObject) -> None:
    node_id = data.draw(st.sampled_from([key for key in prompt if key != "9z"]))
    other = prompt | {node_id: n("Join", **prompt[node_id]["inputs"] | {"word": "new"})}
    interfaces = Interfaces(CLASSES)
    before, after = (CacheKeys(LivePrompt(one), interfaces) for one in (prompt, other))
    assert {key for key in prompt if before[key] != after[key]} == below(prompt, node_id)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_every_needed_node_runs_once_and_after_its_sources(prompt: dict[str, Any]) -> None:
    for i, key in enumerate(prompt):
        if key != "9z":
            prompt[key]["inputs"]["word"] = str(i)  # equal nodes would be run once for all
    order = Executor(CLASSES).execute(prompt, outputs=("9z",)).executed
    needed = {key for key in prompt if "9z" in below(prompt, key)}
    assert sorted(order) == sorted(needed)
    for node_id in order:
        sources = [value[0] for value in prompt[node_id]["inputs"].values() if isinstance(value, list)]
        assert all(order.index(source) < order.index(node_id) for source in sources)
