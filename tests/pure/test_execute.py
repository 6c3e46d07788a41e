"""Execution: laws of lists, laziness, growth, errors and interruption."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from contextlib import contextmanager
from typing import Any

import pytest
from sluice.flux_core.errors import InputError, Interrupted
from sluice.flux_core.graph.calls import ExecutionBlocker
from sluice.flux_core.graph.execute import Executor, Result, current_call


def node_class(
    function: Any, outputs: tuple[str, ...] = ("*",), inputs: str = "", output: bool = False, **more: Any
) -> type[Any]:
    """A node around a function; `inputs` are names of optional inputs of any type, a * marks lazy ones."""
    names = inputs.split()
    optional = {name.strip("*"): ("*", {"lazy": name.endswith("*")}) for name in names}
    fixed = {
        "INPUT_TYPES": classmethod(lambda cls: {"optional": optional, "hidden": more.get("hidden", {})}),
        "RETURN_TYPES": outputs,
        "FUNCTION": "run",
        "OUTPUT_NODE": output,
        "run": function,
    }
    return type("FakeNode", (), fixed | more)


SHOW = node_class(lambda self, x=None: {"ui": {"x": [x]}}, (), "x", True)
VALUE = node_class(lambda self, value: (value,), inputs="value")


def n(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


class Run:
    """One executor, the events it sends, and what its `Show` nodes show."""

    def __init__(self, **classes: type[Any]) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.executor = Executor({"Show": SHOW, "Value": VALUE} | classes, lambda *event: self.events.append(event))

    def __call__(self, prompt: dict[str, Any], *outputs: str, **options: Any) -> Result:
        self.events.clear()
        return self.executor.execute(prompt, outputs=outputs or ("9",), **options)

    def shown(self, prompt: dict[str, Any], *outputs: str) -> Any:
        result = self(prompt, *outputs)
        assert result.status == "success", result.exception
        return result.outputs["9"]["x"]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events if event == kind]


class TestLists:
    LISTER = node_class(lambda self, value: (value, value), ("*", "*"), "value", OUTPUT_IS_LIST=(True, False))
    PAIR = node_class(lambda self, a, b: (f"{a}{b}",), inputs="a b")
    WHOLE = node_class(lambda self, a, b: (f"{a}{b}",), inputs="a b", INPUT_IS_LIST=True)

    def graph(self, kind: str) -> dict[str, Any]:
        letters, numbers = n("List", value={"__value__": list("pqr")}), n("List", value={"__value__": [1, 2]})
        pair = n(kind, a=["1", 0], b=["2", 0])
        return {"1": letters, "2": numbers, "3": pair, "9": n("Show", x=["3", 0])}

    def test_a_plain_node_is_called_for_each_value_and_short_lists_repeat_their_last(self) -> None:
        assert Run(List=self.LISTER, Pair=self.PAIR).shown(self.graph("Pair")) == ["p1", "q2", "r2"]

    def test_a_node_that_wants_lists_is_called_once_with_them(self) -> None:
        assert Run(List=self.LISTER, Pair=self.WHOLE).shown(self.graph("Pair")) == ["['p', 'q', 'r'][1, 2]"]

    def test_an_output_that_is_no_list_is_one_value(self) -> None:
        prompt = {"1": n("List", value={"__value__": [1, 2, 3]}), "9": n("Show", x=["1", 1])}
        assert Run(List=self.LISTER).shown(prompt) == [[1, 2, 3]]

    def test_the_lists_of_several_calls_are_joined(self) -> None:
        double = node_class(lambda self, a: ([a, a],), inputs="a", OUTPUT_IS_LIST=(True,))
        prompt = {"1": n("List", value={"__value__": [1, 2]}), "2": n("Double", a=["1", 0]), "9": n("Show", x=["2", 0])}
        assert Run(List=self.LISTER, Double=double).shown(prompt) == [1, 1, 2, 2]

    def test_an_empty_list_is_told_by_name(self) -> None:
        result = Run(List=self.LISTER)({"1": n("List", value={"__value__": []}), "9": n("Show", x=["1", 0])})
        assert result.status == "error" and "input x received an empty list" in str(result.exception)


class TestInputs:
    def test_hidden_inputs_are_filled_in(self) -> None:
        hidden = {"p": "PROMPT", "e": "EXTRA_PNGINFO", "u": "UNIQUE_ID", "d": "DYNPROMPT", "k": "API_KEY_COMFY_ORG"}
        seen: dict[str, Any] = {}
        see = node_class(lambda self, **inputs: seen.update(inputs) or (), (), output=True, hidden=hidden)
        prompt = {"9": n("See")}
        Run(See=see)(prompt, extra_data={"extra_pnginfo": {"workflow": 1}})
        assert seen["p"] == prompt and seen["e"] == {"workflow": 1} and seen["u"] == "9" and seen["k"] is None
        assert seen["d"].get_node("9") == prompt["9"] and seen["d"].get_real_node_id("9") == "9"

    def test_undeclared_links_are_passed_on_undeclared_constants_are_not(self) -> None:
        names = node_class(lambda self, **inputs: (sorted(inputs),), inputs="a")
        prompt = {"1": n("Value", value=1), "2": n("Names", a=1, more=["1", 0], const=5), "9": n("Show", x=["2", 0])}
        assert Run(Names=names).shown(prompt) == [["a", "more"]]

    def test_a_node_may_ask_for_the_link_itself(self) -> None:
        raw = node_class(lambda self, a: (a,), inputs="a")
        raw.INPUT_TYPES = classmethod(lambda cls: {"required": {"a": ("*", {"rawLink": True})}})
        prompt = {"1": n("Value", value=1), "2": n("Raw", a=["1", 0]), "9": n("Show", x=["2", 0])}
        assert Run(Raw=raw).shown(prompt) == [["1", 0]]

    def test_an_output_that_was_not_given_arrives_as_nothing(self) -> None:
        short = node_class(lambda self: ("only",), ("*", "*"))
        assert Run(Short=short).shown({"1": n("Short"), "9": n("Show", x=["1", 1])}) == [None]

    def test_a_return_that_is_no_tuple_is_told(self) -> None:
        result = Run(Bad=node_class(lambda self: "text"))({"1": n("Bad"), "9": n("Show", x=["1", 0])})
        assert "FakeNode.run returned a str; a node must return a tuple" in str(result.exception)


class TestLaziness:
    def choose(self, wanted: Any) -> type[Any]:
        def check(self: Any, a: Any = None, b: Any = None) -> Any:
            return wanted

        return node_class(lambda self, a=None, b=None: ((a, b),), inputs="a* b*", check_lazy_status=check)

    PROMPT = {
        "1": n("Value", value="A"),
        "2": n("Value", value="B"),
        "3": n("Choose", a=["1", 0], b=["2", 0]),
        "9": n("Show", x=["3", 0]),
    }

    @pytest.mark.parametrize(
        ("wanted", "given", "ran"),
        [
            (["a"], ("A", None), ["1", "3", "9"]),
            ([], (None, None), ["3", "9"]),
            (["a", "b"], ("A", "B"), ["1", "2", "3", "9"]),
        ],
    )
    def test_only_what_is_asked_for_is_run(self, wanted: list[str], given: Any, ran: list[str]) -> None:
        run = Run(Choose=self.choose(wanted))
        assert run.shown(self.PROMPT) == [given]
        assert sorted({data["node"] for data in run.of("executing")}) == ran

    def test_what_is_at_hand_is_given_even_if_not_asked_for(self) -> None:
        run = Run(Choose=self.choose([]))
        assert run.shown(self.PROMPT | {"8": n("Show", x=["1", 0])}, "8", "9") == [("A", None)]

    def test_a_choice_may_be_made_in_steps_and_asynchronously(self) -> None:
        async def check(self: Any, a: Any, b: Any) -> Any:
            return ["a"] if a is None else ["a", "b"]

        lazy = node_class(lambda self, a, b: ((a, b),), inputs="a* b*", check_lazy_status=check)
        assert Run(Choose=lazy).shown(self.PROMPT) == [("A", "B")]

    def test_asking_for_what_is_not_linked_is_told(self) -> None:
        result = Run(Choose=self.choose(["c"]))(self.PROMPT)
        assert result.status == "error" and "needs its input c" in str(result.exception)


class TestOrder:
    def test_outputs_come_first_then_what_leads_to_them(self) -> None:
        step = node_class(lambda self, a=None: (a,), inputs="a")
        prompt = {
            "a1": n("Step"),
            "a2": n("Step", a=["a1", 0]),
            "a3": n("Step", a=["a2", 0]),
            "a": n("Show", x=["a3", 0]),
            "b1": n("Step", a="other"),
            "b": n("Show", x=["b1", 0]),
        }
        assert Run(Step=step)(prompt, "a", "b").executed == ("b1", "b", "a1", "a2", "a3", "a")

    def test_nodes_that_no_wanted_output_needs_do_not_run(self) -> None:
        values = {"1": n("Value", value=1), "2": n("Value", value=2)}
        prompt = values | {"8": n("Show", x=["2", 0]), "9": n("Show", x=["1", 0])}
        assert Run()(prompt, "9").executed == ("1", "9")

    def test_a_chain_of_thousands_is_run(self) -> None:
        count = 4000
        step = node_class(lambda self, a=0: (a + 1,), inputs="a")
        chain = {str(i): n("Step", **({"a": [str(i - 1), 0]} if i > 100 else {})) for i in range(100, 100 + count)}
        run = Executor({"Step": step, "Show": SHOW})
        assert run.execute(chain | {"9": n("Show", x=[str(99 + count), 0])}, outputs=["9"]).outputs["9"]["x"] == [count]


class TestErrors:
    def fail(self, error: Exception) -> type[Any]:
        def run(self: Any, a: Any = None) -> Any:
            raise error

        return node_class(run, inputs="a")

    PROMPT = {"1": n("Value", value={"__value__": [1.5, "s"]}), "3": n("Fail", a=["1", 0]), "9": n("Show", x=["3", 0])}

    def test_an_error_names_the_node_and_what_it_was_given(self) -> None:
        run = Run(Fail=self.fail(InputError("too many legs")))
        result = run(self.PROMPT, prompt_id="p")
        (told,) = run.of("execution_error")
        assert told == result.messages[-1][1] and result.status == "error" and result.executed == ("1",)
        assert told["node_id"] == "3" and told["node_type"] == "Fail" and told["executed"] == ["1"]
        assert told["exception_message"] == "too many legs\n"
        assert told["exception_type"] == "sluice.flux_core.errors.InputError"
        assert told["current_inputs"] == {"a": ["[1.5, 's']"]} and told["current_outputs"] == ["1", "3", "9"]
        assert any("raise error" in line for line in told["traceback"])
        assert [kind for kind, _ in result.messages] == ["execution_start", "execution_cached", "execution_error"]
        json.dumps(run.events)

    def test_an_error_keeps_nothing_alive(self) -> None:
        class Big:
            pass

        watched: list[weakref.ref[Big]] = []

        def run(self: Any) -> Any:
            big = Big()
            watched.append(weakref.ref(big))
            raise ValueError("no")

        result = Run(Fail=node_class(run))({"3": n("Fail"), "9": n("Show", x=["3", 0])})
        gc.collect()
        assert isinstance(result.exception, ValueError) and watched[0]() is None

    def test_advice_from_outside_is_added(self) -> None:
        classes = {"Fail": self.fail(MemoryError("full")), "Show": SHOW}
        executor = Executor(classes, after_failure=lambda error: f"Tip for {error}.")
        result = executor.execute({"3": n("Fail"), "9": n("Show", x=["3", 0])}, outputs=["9"])
        assert result.messages[-1][1]["exception_message"] == "full\nTip for full."

    def test_huge_and_unprintable_inputs_are_sent_in_brief(self) -> None:
        run = Run(Fail=self.fail(ValueError()))
        run({"1": n("Value", value="x" * 10**6), "3": n("Fail", a=["1", 0]), "9": n("Show", x=["3", 0])})
        assert len(run.of("execution_error")[0]["current_inputs"]["a"][0]) < 3000

    def test_the_next_prompt_runs_after_an_error(self) -> None:
        run = Run(Fail=self.fail(ValueError()))
        assert run(self.PROMPT).status == "error"
        assert run.shown({"1": n("Value", value=5), "9": n("Show", x=["1", 0])}) == [5]

    def test_ctrl_c_passes_through_and_leaves_the_executor_usable(self) -> None:
        def stop(self: Any) -> Any:
            raise KeyboardInterrupt

        run = Run(Stop=node_class(stop))
        with pytest.raises(KeyboardInterrupt):
            run({"3": n("Stop"), "9": n("Show", x=["3", 0])})
        assert run.shown({"1": n("Value", value=5), "9": n("Show", x=["1", 0])}) == [5]

    def test_everything_runs_inside_what_is_put_around_it(self) -> None:
        inside: list[str] = []

        @contextmanager
        def around() -> Any:
            inside.append("in")
            yield
            inside.append("out")

        def noted(self: Any) -> tuple[None]:
            inside.append("node")
            return (None,)

        note = node_class(noted)
        executor = Executor({"Note": note, "Show": SHOW}, around=around)
        executor.execute({"1": n("Note"), "9": n("Show", x=["1", 0])}, outputs=["9"])
        assert inside == ["in", "node", "out"]


class TestInterruption:
    def stepping(self, run: Run, at_two: Any) -> type[Any]:
        def work(self: Any) -> Any:
            for step in range(1, 6):
                if step == 2:
                    at_two()
                run.executor.progress(step, 5)
            return ("done",)

        return node_class(work)

    PROMPT = {"1": n("Work"), "9": n("Show", x=["1", 0])}

    def run(self, at_two: Any) -> Run:
        run = Run()
        run.executor.classes = {"Show": SHOW, "Work": self.stepping(run, lambda: at_two(run.executor))}
        return run

    def test_a_cancel_stops_at_the_next_step(self) -> None:
        run = self.run(lambda executor: executor.cancel())
        result = run(self.PROMPT, prompt_id="p")
        assert result.status == "interrupted" and isinstance(result.exception, Interrupted)
        kind, told = result.messages[-1]
        told.pop("timestamp")
        assert (kind, told) == (
            "execution_interrupted",
            {"prompt_id": "p", "node_id": "1", "node_type": "Work", "executed": []},
        )
        assert [data["value"] for data in run.of("progress")] == [1]

    def test_a_cancel_is_for_one_prompt_only(self) -> None:
        cancelled: list[int] = []

        def once(executor: Executor) -> None:
            if not cancelled:
                cancelled.append(1)
                executor.cancel()

        run = self.run(once)
        assert run(self.PROMPT).status == "interrupted"
        assert run(self.PROMPT).status == "success"

    def test_a_cancel_for_another_prompt_waits_for_it(self) -> None:
        run = self.run(lambda executor: executor.cancel("later"))
        assert run(self.PROMPT, prompt_id="now").status == "success"
        assert run(self.PROMPT, prompt_id="later").status == "interrupted"
        assert run(self.PROMPT, prompt_id="later").status == "success"

    def test_a_cancel_while_nothing_runs_does_nothing(self) -> None:
        run = self.run(lambda executor: None)
        run.executor.cancel()
        assert run(self.PROMPT).status == "success"

    def test_a_cancel_from_another_thread_is_seen(self) -> None:
        def elsewhere(executor: Executor) -> None:
            thread = threading.Thread(target=executor.cancel)
            thread.start()
            thread.join()

        assert self.run(elsewhere)(self.PROMPT).status == "interrupted"

    def test_a_node_may_stop_the_prompt_itself(self) -> None:
        def stop(self: Any) -> Any:
            raise Interrupted("enough")

        assert Run(Work=node_class(stop))(self.PROMPT).status == "interrupted"

    def test_nothing_starts_after_a_cancel(self) -> None:
        run = Run()

        def cancel(self: Any) -> tuple[None]:
            run.executor.cancel()
            return (None,)

        run.executor.classes = {"Show": SHOW, "Work": node_class(cancel)}
        result = run(self.PROMPT)
        assert result.status == "interrupted" and result.executed == ("1",)


class TestProgress:
    def test_steps_and_previews_are_told_with_the_node_they_belong_to(self) -> None:
        run = Run()

        def work(self: Any) -> Any:
            run.executor.progress(1, 4)
            run.executor.progress(2, 4, preview="picture")
            return (1,)

        run.executor.classes = {"Show": SHOW, "Work": node_class(work)}
        run({"1": n("Work"), "9": n("Show", x=["1", 0])}, prompt_id="p")
        assert run.of("progress") == [{"value": v, "max": 4, "prompt_id": "p", "node": "1"} for v in (1, 2)]
        ids = {"node_id": "1", "display_node_id": "1", "parent_node_id": None, "real_node_id": "1", "prompt_id": "p"}
        assert run.of("preview") == [{"image": "picture", **ids}]
        states = [data["nodes"]["1"] for data in run.of("progress_state")]
        assert [(s["value"], s["max"], s["state"]) for s in states[:4]] == [
            (0.0, 1.0, "running"),
            (1, 4, "running"),
            (2, 4, "running"),
            (4, 4, "finished"),
        ]
        assert states[0].items() >= ids.items()

    def test_progress_outside_of_a_run_is_no_error(self) -> None:
        Run().executor.progress(1, 2)


class TestBlockers:
    BLOCK = node_class(
        lambda self, value, message=None: (ExecutionBlocker(message) if value == 2 else value,), inputs="value message"
    )

    def test_what_a_blocker_feeds_is_skipped_and_the_rest_runs(self) -> None:
        seen: list[Any] = []

        def shown(self: Any, x: Any) -> dict[str, Any]:
            seen.append(x)
            return {"ui": {"x": [x]}}

        see = node_class(shown, (), "x", True)
        run = Run(List=TestLists.LISTER, Block=self.BLOCK, See=see)
        numbers = n("List", value={"__value__": [1, 2, 3]})
        prompt = {"1": numbers, "2": n("Block", value=["1", 0]), "9": n("See", x=["2", 0])}
        assert run.shown(prompt) == [1, 3] and seen == [1, 3] and run.of("execution_error") == []

    def test_a_message_is_told_once(self) -> None:
        run = Run(Block=self.BLOCK)
        prompt = {
            "1": n("Block", value=2, message="not today"),
            "2": n("Value", value=["1", 0]),
            "9": n("Show", x=["2", 0]),
        }
        assert run(prompt).status == "success"
        assert [told["exception_message"] for told in run.of("execution_error")] == ["Execution Blocked: not today"]


class TestGrowth:
    """Nodes that answer with a graph to be run in their place."""

    def grower(self, graph: Any, result: Any) -> type[Any]:
        return node_class(lambda self, a=None: {"expand": graph, "result": result}, inputs="a")

    def test_the_graph_is_run_and_its_results_take_the_nodes_place(self) -> None:
        graph = {"g.1": n("Value", value=["1", 0]), "g.2": n("Add", a=["g.1", 0])}
        add = node_class(lambda self, a: (a + 1,), inputs="a")
        run = Run(Grow=self.grower(graph, (["g.2", 0], "plain")), Add=add)
        prompt = {"1": n("Value", value=5), "2": n("Grow"), "9": n("Show", x=["2", 0])}
        assert run.shown(prompt) == [6]
        by_node = {data["node"]: data["display_node"] for data in run.of("executing")}
        assert by_node["g.1"] == "2" and by_node["9"] == "9"
        assert run.of("progress_state")[-1]["nodes"]["g.2"]["parent_node_id"] == "2"

    def test_nothing_of_it_is_run_again_until_something_changes(self) -> None:
        calls: list[str] = []

        def called(self: Any, a: str) -> tuple[str]:
            calls.append(a)
            return (a,)

        work = node_class(called, inputs="a")

        def grow(self: Any, a: str) -> Any:
            return {"expand": {"g1": n("Work", a="same"), "g2": n("Work", a=a)}, "result": (["g2", 0],)}

        run = Run(Grow=node_class(grow, inputs="a"), Work=work)
        for value in ("x", "x", "y"):
            run.shown({"2": n("Grow", a=value), "9": n("Show", x=["2", 0])})
        assert calls == ["x", "y"]  # g1 is not needed by any result

    def test_growth_may_go_on_and_outputs_inside_are_run(self) -> None:
        def loop(self: Any, count: int, prefix: str = "") -> Any:
            if count == 0:
                return ("end",)
            name = f"{prefix}g{count}"
            graph = {name: n("Loop", count=count - 1, prefix=name), f"{name}s": n("Show", x=count)}
            return {"expand": graph, "result": ([name, 0],)}

        run = Run(Loop=node_class(loop, inputs="count prefix"))
        result = run({"2": n("Loop", count=3), "9": n("Show", x=["2", 0])})
        assert result.outputs["9"]["x"] == ["end"]
        assert sorted(ui["x"][0] for key, ui in result.outputs.items() if key != "9") == [1, 2, 3]
        assert {data["display_node"] for data in run.of("executing")} == {"2", "9"}

    def test_errors_inside_belong_to_the_node_of_the_request(self) -> None:
        def fail(self: Any) -> Any:
            raise ValueError("inside")

        run = Run(Grow=self.grower({"g": n("Fail")}, (["g", 0],)), Fail=node_class(fail))
        run({"2": n("Grow"), "9": n("Show", x=["2", 0])})
        (told,) = run.of("execution_error")
        assert told["node_id"] == "2" and told["exception_message"] == "inside\n"

    def test_a_circle_that_grows_is_told(self) -> None:
        graph = {"g1": n("Value", value=["g2", 0]), "g2": n("Value", value=["g1", 0])}
        run = Run(Grow=self.grower(graph, (["g1", 0],)))
        assert run({"2": n("Grow"), "9": n("Show", x=["2", 0])}).status == "error"
        (told,) = run.of("execution_error")
        assert told["node_id"] == "2" and "in a circle: g1 -> g2 -> g1" in told["exception_message"]

    @pytest.mark.parametrize(
        ("graph", "words"),
        [
            ({"9": n("Value", value=1)}, "that id is already in use"),
            ({"g": n("Alien")}, "expands into a Alien"),
            ({"g": n("Value", value=["h", 0])}, "node h is not in the workflow"),
        ],
    )
    def test_graphs_that_cannot_be_run_are_told(self, graph: Any, words: str) -> None:
        result = Run(Grow=self.grower(graph, (["g", 0],)))({"2": n("Grow"), "9": n("Show", x=["2", 0])})
        assert result.status == "error" and words in str(result.exception)


class TestAsynchronousNodes:
    def test_they_work_at_the_same_time(self) -> None:
        arrived: list[Any] = []

        async def meet(self: Any, name: str) -> Any:
            arrived.append(current_call.get())
            for _ in range(100):
                if len(arrived) == 3:
                    return (name,)
                await asyncio.sleep(0.01)
            raise TimeoutError("the others never came")

        join = node_class(lambda self, a, b, c: (a + b + c,), inputs="a b c")
        prompt = {key: n("Meet", name=key) for key in "abc"} | {"2": n("Join", a=["a", 0], b=["b", 0], c=["c", 0])}
        run = Run(Meet=node_class(meet, inputs="name"), Join=join)
        assert run.shown(prompt | {"9": n("Show", x=["2", 0])}) == ["abc"]
        assert sorted(arrived) == [("a", 0), ("b", 0), ("c", 0)]

    def test_each_value_of_a_list_is_awaited(self) -> None:
        async def double(self: Any, a: int) -> Any:
            await asyncio.sleep(0.001 * a)
            return (2 * a,)

        numbers = n("List", value={"__value__": [3, 1, 2]})
        prompt = {"1": numbers, "2": n("Double", a=["1", 0]), "9": n("Show", x=["2", 0])}
        assert Run(List=TestLists.LISTER, Double=node_class(double, inputs="a")).shown(prompt) == [6, 2, 4]

    def test_an_error_stops_the_others(self) -> None:
        ended: list[str] = []

        async def work(self: Any, name: str) -> Any:
            if name == "bad":
                await asyncio.sleep(0)
                raise ValueError("bad one")
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(name)

        prompt = {"1": n("Work", name="slow"), "2": n("Work", name="bad")}
        prompt |= {"8": n("Show", x=["1", 0]), "9": n("Show", x=["2", 0])}
        result = Run(Work=node_class(work, inputs="name"))(prompt, "8", "9")
        assert result.status == "error" and "bad one" in str(result.exception) and ended == ["slow"]

    def test_a_cancel_reaches_them(self) -> None:
        run = Run()

        async def wait(self: Any) -> Any:
            run.executor.cancel()
            await asyncio.sleep(60)

        run.executor.classes = {"Show": SHOW, "Wait": node_class(wait)}
        assert run({"1": n("Wait"), "9": n("Show", x=["1", 0])}).status == "interrupted"


def test_equal_outputs_each_show_what_was_made_once() -> None:
    run = Run()
    result = run({"1": n("Value", value=1), "8": n("Show", x=["1", 0]), "9": n("Show", x=["1", 0])}, "8", "9")
    assert result.outputs == {"8": {"x": [1]}, "9": {"x": [1]}}
    assert [data["node"] for data in run.of("executed")] == ["8", "9"] and len(result.executed) == 2
    assert result.meta["9"] == {"node_id": "9", "display_node": "9", "parent_node": None, "real_node_id": "9"}
