"""What a client may rely on when prompts run: ComfyUI's behaviours, over HTTP and websocket."""

from __future__ import annotations

from typing import Any

import pytest
from doubles.client import Server

Events = list[tuple[str, Any]]  # kind and data


def executed(events: Events) -> list[str]:
    return [data["node"] for kind, data in events if kind == "executing" and data["node"] is not None]


def cached(events: Events) -> Any:
    return next(data["nodes"] for kind, data in events if kind == "execution_cached")


def shown(entry: Any) -> Any:
    return entry["outputs"]["show"]["value"]


def sum_of(server: Server, a: Any, b: Any) -> dict[str, Any]:
    return server.prompt_of(("Number", {"value": a}), ("Number", {"value": b}), ("Add", {"a": ["1", 0], "b": ["2", 0]}))


def test_events_come_in_comfyuis_order_and_the_history_before_the_end(server: Server) -> None:
    entry, events = server.made(server.prompt_of(("Number", {"value": 11})))
    kinds = [kind for kind, _ in events]
    assert kinds == [
        "sluice.started",  # our own, for the Memory tab; clients of ComfyUI ignore kinds that they do not know
        "execution_start", "execution_cached",
        "progress_state", "executing", "progress_state",
        "progress_state", "executing", "executed", "progress_state",
        "execution_success", "executing",
    ]  # fmt: skip
    assert events[-1][1]["node"] is None
    assert shown(entry) == [11] and entry["status"]["status_str"] == "success" and entry["status"]["completed"]
    assert [kind for kind, _ in entry["status"]["messages"]] == [
        "execution_start", "execution_cached", "execution_success",
    ]  # fmt: skip


def test_an_equal_prompt_runs_nothing_and_shows_again(server: Server) -> None:
    prompt = sum_of(server, 21, 22)
    server.made(prompt)
    entry, events = server.made(prompt)
    assert executed(events) == [] and sorted(cached(events)) == ["1", "2", "3", "show"]
    assert shown(entry) == [43] and "executed" in [kind for kind, _ in events]


def test_a_change_runs_what_depends_on_it_and_nothing_else(server: Server) -> None:
    prompt = sum_of(server, 31, 32)
    server.made(prompt)
    prompt["2"]["inputs"]["value"] = 33
    entry, events = server.made(prompt)
    assert executed(events) == ["2", "3", "show"] and cached(events) == ["1"] and shown(entry) == [64]


def test_ids_and_titles_do_not_count_as_changes(server: Server) -> None:
    prompt = server.prompt_of(("Number", {"value": 36}))
    server.made(prompt)
    moved = {"9": {**prompt["1"], "_meta": {"title": "mine"}}, "show": prompt["show"]}
    moved["show"]["inputs"] = {"value": ["9", 0]}
    _, events = server.made(moved)
    assert executed(events) == []


def test_unknown_inputs_are_ignored(server: Server) -> None:
    entry, _ = server.made(server.prompt_of(("Number", {"value": 37, "refresh": 1})))
    assert shown(entry) == [37]


def test_lazy_inputs_that_are_not_needed_do_not_run(server: Server) -> None:
    nodes = ("Number", {"value": 41}), ("Broken", {"value": 42})
    entry, events = server.made(
        server.prompt_of(*nodes, ("Either", {"choice": 1, "first": ["1", 0], "second": ["2", 0]}))
    )
    assert shown(entry) == [41] and "2" not in executed(events)
    entry, _ = server.made(server.prompt_of(*nodes, ("Either", {"choice": -1, "first": ["1", 0], "second": ["2", 0]})))
    assert entry["status"]["status_str"] == "error"


def test_is_changed_decides_what_is_kept(server: Server) -> None:
    for value, again in ((1, ["1"]), (-1, [])):
        prompt = server.prompt_of(("Clock", {"value": value}))
        server.made(prompt)
        _, events = server.made(prompt)
        assert executed(events) == [*again, *(["show"] if again else [])]


def test_a_node_that_cannot_tell_whether_it_changed_runs_each_time(server: Server) -> None:
    prompt = server.prompt_of(("Upset", {"value": 1}))
    server.made(prompt)
    _, events = server.made(prompt)
    assert "1" in executed(events)


def test_an_error_stops_the_prompt_names_its_node_and_keeps_what_was_made(server: Server) -> None:
    prompt = server.prompt_of(("Number", {"value": 51}), ("Broken", {"value": ["1", 0]}))
    entry, events = server.made(prompt)
    error = dict(events)["execution_error"]
    assert error["node_id"] == "2" and error["node_type"] == "Broken" and error["exception_type"] == "ValueError"
    assert "51 is not to my taste" in error["exception_message"] and error["executed"] == ["1"]
    assert error["current_inputs"] == {"value": [51]} and error["traceback"]
    assert entry["status"]["status_str"] == "error" and not entry["status"]["completed"]
    _, events = server.made(prompt)
    assert cached(events) == ["1"]
    jobs = server.get("/jobs?status=failed").json["jobs"]
    assert jobs[0]["execution_error"]["node_id"] == "2"


def test_lists_call_what_follows_once_for_each_and_total_takes_them_whole(server: Server) -> None:
    entry, _ = server.made(server.prompt_of(("Many", {"count": 4})))
    assert shown(entry) == [0, 1, 2, 3]
    entry, _ = server.made(server.prompt_of(("Many", {"count": 4}), ("Total", {"values": ["1", 0]})))
    assert shown(entry) == [6]


def test_inputs_of_any_name_reach_a_node_that_welcomes_them(server: Server) -> None:
    entry, _ = server.made(
        server.prompt_of(("Number", {"value": 61}), ("Anything", {"x": ["1", 0], "any name": ["1", 0]}))
    )
    assert shown(entry) == [122]


def test_a_node_may_become_a_graph(server: Server) -> None:
    entry, events = server.made(server.prompt_of(("Number", {"value": 7}), ("Twice", {"value": ["1", 0]})))
    assert shown(entry) == [14]
    inner = next(data for kind, data in events if kind == "executing" and data["node"] == "2.sum")
    assert inner["display_node"] == "2"


def test_nodes_may_answer_later(server: Server) -> None:
    entry, _ = server.made(server.prompt_of(("Later", {"value": 8})))
    assert shown(entry) == [8]


def test_node_ids_are_opaque(server: Server) -> None:
    prompt = {
        "38:13": {"class_type": "Number", "inputs": {"value": 5}},
        "ä ö": {"class_type": "Show", "inputs": {"value": ["38:13", 0]}},
    }
    entry, events = server.made(prompt)
    assert entry["outputs"]["ä ö"]["value"] == [5] and "38:13" in executed(events)


def test_odd_values_shown_by_nodes_arrive_as_json(server: Server) -> None:
    entry, _ = server.made({"1": {"class_type": "Odd", "inputs": {"value": 1}}})
    nan, infinity, a_set, some_bytes, half = entry["outputs"]["1"]["value"]
    assert nan is None and infinity is None and "1" in a_set and "bytes" in some_bytes and half == "\ufffd"


# -- before running ----------------------------------------------------------------------------------------------------

REFUSED = [
    ("required_input_missing", ("Number", {}), "value"),
    ("value_bigger_than_max", ("Number", {"value": 101}), "value"),
    ("value_smaller_than_min", ("Number", {"value": -101}), "value"),
    ("invalid_input_type", ("Number", {"value": "many"}), "value"),
    ("value_not_in_list", ("Chosen", {"value": "blue"}), "value"),
    ("bad_linked_input", ("Number", {"value": ["1"]}), "value"),
    ("custom_validation_failed", ("OnlyEven", {"value": 3}), "value"),
]


@pytest.mark.parametrize("kind, node, name", REFUSED, ids=[case[0] for case in REFUSED])
def test_what_is_refused_names_its_input(
    server: Server, kind: str, node: tuple[str, dict[str, Any]], name: str
) -> None:
    answer = server.post("/prompt", {"prompt": server.prompt_of(node)})
    assert answer.status == 400
    body = answer.json
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    told = body["node_errors"]["1"]
    error = told["errors"][0]
    assert error["type"] == kind and error["extra_info"]["input_name"] == name
    assert told["dependent_outputs"] == ["show"] and told["class_type"] == node[0]
    assert body["problems"]


def test_links_of_the_wrong_type_are_refused(server: Server) -> None:
    prompt = server.prompt_of(("Half", {"value": 1.0}), ("Add", {"a": ["1", 0], "b": ["1", 0]}))
    answer = server.post("/prompt", {"prompt": prompt})
    assert [e["type"] for e in answer.json["node_errors"]["2"]["errors"]] == ["return_type_mismatch"] * 2


def test_circles_are_refused(server: Server) -> None:
    prompt = server.prompt_of(("Add", {"a": ["2", 0], "b": ["2", 0]}), ("Add", {"a": ["1", 0], "b": ["1", 0]}))
    answer = server.post("/prompt", {"prompt": prompt})
    assert answer.status == 400
    kinds = {error["type"] for told in answer.json["node_errors"].values() for error in told["errors"]}
    assert kinds == {"dependency_cycle"}


@pytest.mark.parametrize(
    "body, kind",
    [
        ({}, "no_prompt"),
        ({"prompt": {}}, "prompt_no_outputs"),
        ({"prompt": {"1": {"class_type": "Number", "inputs": {"value": 1}}}}, "prompt_no_outputs"),
        ({"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}, "invalid_prompt"),
        ({"prompt": {"1": {"inputs": {}}}}, "invalid_prompt"),
    ],
    ids=["nothing", "empty", "no output", "unknown class", "no class"],
)
def test_prompts_that_are_none(server: Server, body: dict[str, Any], kind: str) -> None:
    answer = server.post("/prompt", body)
    assert answer.status == 400 and answer.json["error"]["type"] == kind


def test_good_outputs_run_beside_bad_ones(server: Server) -> None:
    prompt = server.prompt_of(("Number", {"value": 71}))
    prompt["bad"] = {"class_type": "Show", "inputs": {}}
    answer = server.post("/prompt", {"prompt": prompt})
    assert answer.status == 200 and list(answer.json["node_errors"]) == ["bad"]
    prompt_id = answer.json["prompt_id"]
    entry = server.until(lambda: server.get(f"/history/{prompt_id}").json.get(prompt_id))
    assert shown(entry) == [71] and entry["prompt"][4] == ["show"]


def test_only_the_targets_run(server: Server) -> None:
    prompt = server.prompt_of(("Number", {"value": 72}))
    prompt["other"] = {"class_type": "Show", "inputs": {"value": ["2", 0]}}
    prompt["2"] = {"class_type": "Broken", "inputs": {"value": 1}}
    entry, events = server.made(prompt, partial_execution_targets=["show"])
    assert entry["prompt"][4] == ["show"] and "2" not in executed(events) and shown(entry) == [72]
    answer = server.post("/prompt", {"prompt": prompt, "partial_execution_targets": ["2"]})
    assert answer.status == 400 and answer.json["error"]["type"] == "prompt_no_outputs"


def test_constants_are_converted_and_kept_so(server: Server) -> None:
    entry, _ = server.made(server.prompt_of(("Half", {"value": 3})))
    assert entry["prompt"][2]["1"]["inputs"]["value"] == 3.0 and shown(entry) == [1.5]
    entry, _ = server.made(server.prompt_of(("Number", {"value": "12"})))
    assert entry["prompt"][2]["1"]["inputs"]["value"] == 12


def test_wrapped_constants_are_unwrapped(server: Server) -> None:
    entry, _ = server.made(server.prompt_of(("Number", {"value": {"__value__": 13}})))
    assert shown(entry) == [13]


# -- the history -------------------------------------------------------------------------------------------------------


def test_windows_of_the_history(server: Server) -> None:
    ids = [server.made(server.prompt_of(("Number", {"value": n})))[0]["prompt"][1] for n in range(4)]
    everything = list(server.get("/history").json)
    assert everything[-4:] == ids
    assert list(server.get("/history?max_items=2").json) == ids[-2:]
    start = len(everything) - 4
    assert list(server.get(f"/history?max_items=2&offset={start + 1}").json) == ids[1:3]
    assert list(server.get(f"/history?offset={start + 2}").json) == ids[2:]
    assert list(server.get("/history?max_items=1000&offset=100000").json) == []
    assert list(server.get("/history?max_items=0").json) == []
    assert list(server.get("/history?max_items=-1").json) == everything
    assert server.get("/history/nobody").json == {}
    assert server.post("/history", {"delete": ids[:1]}).status == 200
    assert server.get(f"/history/{ids[0]}").json == {} and server.get(f"/history/{ids[1]}").json != {}
