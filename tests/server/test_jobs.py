"""Queue, jobs, interruption, and what listeners hear: messages, previews in both forms, pace."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from doubles.client import Listener, Server, until

UI_FEATURES = {"supports_preview_metadata": True, "supports_progress_text_metadata": True}


def long_prompt(server: Server, seconds: float = 0.1, steps: int = 100) -> dict[str, Any]:
    return server.prompt_of(("Steps", {"value": 1, "steps": steps, "seconds": seconds}))


def has_jpeg(frames: list[bytes]) -> bool:
    return any(b"\xff\xd8\xff" in frame for frame in frames)


def short_prompt(server: Server) -> dict[str, Any]:
    return server.prompt_of(("Number", {"value": 1}))


@pytest.fixture
def busy(server: Server) -> Iterator[tuple[Listener, str]]:
    """A server with a job that runs until it is interrupted: its listener and id."""
    listener = server.listen()
    prompt_id = server.queue(long_prompt(server), listener.client_id)
    listener.until("progress")
    yield listener, prompt_id
    server.post("/queue", {"clear": True})
    server.post("/interrupt")
    listener.end_of(prompt_id)
    listener.close()


def test_a_listener_is_greeted_and_told_what_the_server_can(server: Server) -> None:
    listener = server.listen("somebody", UI_FEATURES)
    assert listener.until("status") == {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "somebody"}
    assert listener.until("feature_flags")["supports_preview_metadata"] is True
    listener.close()


def test_a_listener_without_id_is_given_one(server: Server) -> None:
    listener = server.listen("")
    assert listener.until("status")["sid"]
    listener.close()


def test_what_listeners_say_besides_is_ignored(server: Server) -> None:
    listener = server.listen()
    odd: tuple[Any, ...] = (
        "x",
        1,
        None,
        [],
        {"type": "feature_flags"},
        {"type": "feature_flags", "data": 3},
        {"data": {}},
    )
    for said in odd:
        listener.say(said)
    listener.say({"type": "feature_flags", "data": {}})
    listener.until("feature_flags")
    listener.close()


def test_a_new_connection_replaces_the_old_one_of_the_same_id(server: Server) -> None:
    old = server.listen("twin")
    new = server.listen("twin")
    server.until(lambda: old.closed, "closing")
    prompt_id = server.queue(short_prompt(server), "twin")
    assert new.end_of(prompt_id)
    new.close()


def test_the_queue_lists_what_runs_and_what_waits(server: Server, busy: tuple[Listener, str]) -> None:
    _, running = busy
    waiting = server.queue(short_prompt(server))
    queue = server.get("/queue").json
    assert [item[1] for item in queue["queue_running"]] == [running]
    (item,) = queue["queue_pending"]
    assert item[1] == waiting and item[2] == short_prompt(server) and item[4] == ["show"]
    assert server.get("/prompt").json == {"exec_info": {"queue_remaining": 2}}
    statuses = {job["id"]: job["status"] for job in server.get("/jobs?status=in_progress,pending").json["jobs"]}
    assert statuses == {running: "in_progress", waiting: "pending"}


def test_front_goes_before_and_numbers_are_obeyed(server: Server, busy: tuple[Listener, str]) -> None:
    last = server.queue(short_prompt(server))
    first = server.queue(short_prompt(server), front=True)
    middle = server.queue(short_prompt(server), number=0.5)
    assert [item[1] for item in server.get("/queue").json["queue_pending"]] == [first, middle, last]


def test_waiting_jobs_can_be_taken_out(server: Server, busy: tuple[Listener, str]) -> None:
    ids = [server.queue(short_prompt(server)) for _ in range(4)]
    assert server.post("/queue", {"delete": [ids[0], "nobody", 3]}).status == 200
    assert server.post(f"/jobs/{ids[1]}/cancel").json == {"cancelled": True}
    assert server.post("/jobs/cancel", {"job_ids": [ids[2]]}).json == {"cancelled": True}
    assert server.post("/jobs/nobody/cancel").json == {"cancelled": False}
    assert [item[1] for item in server.get("/queue").json["queue_pending"]] == ids[3:]
    server.post("/queue", {"clear": True})
    assert server.get("/queue").json["queue_pending"] == []


@pytest.mark.parametrize("how", ["body", "empty", "cancel"])
def test_a_running_job_can_be_stopped(server: Server, how: str) -> None:
    listener = server.listen()
    prompt_id = server.queue(long_prompt(server), listener.client_id)
    listener.until("progress")
    if how == "body":
        server.post("/interrupt", {"prompt_id": prompt_id})
    elif how == "empty":
        server.post("/interrupt")
    else:
        assert server.post(f"/jobs/{prompt_id}/cancel").json == {"cancelled": True}
    entry = listener.end_of(prompt_id)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert listener.until("execution_interrupted")["node_id"] == "1"
    assert server.get(f"/jobs/{prompt_id}").json["status"] == "cancelled"
    listener.close()


def test_a_job_that_does_not_stop_is_ended_with_its_process_when_it_is_stopped_again(server: Server) -> None:
    """A step of it takes ten minutes. The second request counts two seconds after the first."""
    listener = server.listen()
    prompt_id = server.queue(long_prompt(server, seconds=600.0), listener.client_id)
    listener.until("executing", lambda data: data["node"] == "1")
    server.post("/interrupt")
    server.post("/interrupt")  # a double click
    assert [job[1] for job in server.get("/queue").json["queue_running"]] == [prompt_id]

    def ended() -> bool:
        server.post("/interrupt")
        return not server.get("/queue").json["queue_running"]

    until(ended)
    assert listener.end_of(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted"
    assert server.get(f"/jobs/{prompt_id}").json["status"] == "cancelled"
    next_id = server.queue(short_prompt(server), listener.client_id)
    assert listener.end_of(next_id)["status"]["status_str"] == "success"
    listener.close()


def test_interrupting_another_job_stops_nothing(server: Server, busy: tuple[Listener, str]) -> None:
    server.post("/interrupt", {"prompt_id": "another"})
    busy[0].until("progress", lambda data: data["value"] >= 3)


def test_an_id_of_ones_own_is_kept_and_taken_once(server: Server) -> None:
    listener = server.listen()
    body = {"prompt": short_prompt(server), "prompt_id": "my-own-id", "client_id": listener.client_id}
    assert server.post("/prompt", body).json["prompt_id"] == "my-own-id"
    listener.end_of("my-own-id")
    assert server.post("/prompt", body).status == 409
    assert server.post("/prompt", body | {"prompt_id": "a\nb"}).status == 400
    assert server.post("/prompt", body | {"prompt_id": 3}).status == 400
    listener.close()


def test_numbers_grow_also_over_refused_prompts(server: Server) -> None:
    first = server.post("/prompt", {"prompt": short_prompt(server)}).json["number"]
    server.post("/prompt", {"prompt": {}})
    assert server.post("/prompt", {"prompt": short_prompt(server)}).json["number"] == first + 2


def test_jobs_have_what_the_editors_list_needs(server: Server) -> None:
    extra = {"extra_pnginfo": {"workflow": {"id": "the canvas", "nodes": []}}, "auth_token_comfy_org": "secret"}
    prompt = {"1": {"class_type": "Paint", "inputs": {"value": 1, "text": "a fox", "steps": 4}}}
    entry, _ = server.made(prompt, extra_data=extra)
    prompt_id = entry["prompt"][1]
    job = next(job for job in server.get("/jobs?status=completed&limit=64").json["jobs"] if job["id"] == prompt_id)
    image = entry["outputs"]["1"]["images"][0]
    assert job["preview_output"] == {**image, "nodeId": "1", "mediaType": "images"} and job["outputs_count"] == 1
    assert job["workflow_id"] == "the canvas" and job["status"] == "completed"
    assert job["create_time"] <= job["execution_start_time"] <= job["execution_end_time"]
    detail = server.get(f"/jobs/{prompt_id}").json
    assert detail["outputs"] == entry["outputs"] and detail["workflow"]["prompt"] == prompt
    assert detail["workflow"]["extra_data"]["extra_pnginfo"] == extra["extra_pnginfo"]
    assert "secret" not in json.dumps([entry, detail])
    assert server.get("/jobs/nobody").status == 404


def test_lists_of_jobs_have_pages(server: Server) -> None:
    for _ in range(3):
        server.made(short_prompt(server))
    page = server.get("/jobs?status=completed&limit=2&offset=1").json
    assert len(page["jobs"]) == 2 and page["pagination"]["has_more"] == (page["pagination"]["total"] > 3)
    newest = server.get("/jobs?status=completed&limit=3").json["jobs"]
    assert [job["id"] for job in newest][1:] == [job["id"] for job in page["jobs"]]
    assert server.get("/jobs?status=nonsense").status == 400
    assert server.get("/jobs?limit=many").status == 400


# -- previews ----------------------------------------------------------------------------------------------------------


def test_previews_come_in_the_form_each_listener_understands(server: Server) -> None:
    new, old = server.listen(features=UI_FEATURES), server.listen()
    new.until("feature_flags")
    for listener in (new, old):
        prompt = long_prompt(server, seconds=0.02, steps=3000)
        prompt_id = server.queue(prompt, listener.client_id, extra_data={"preview_method": "auto"})
        server.until(partial(has_jpeg, listener.bytes), "a preview")
        server.post("/interrupt")
        listener.end_of(prompt_id)
    previews = [frame for frame in new.bytes if struct.unpack_from(">I", frame)[0] == 4]
    length = struct.unpack_from(">I", previews[0], 4)[0]
    ids, picture = json.loads(previews[0][8 : 8 + length]), previews[0][8 + length :]
    assert ids["node_id"] == ids["display_node_id"] == ids["real_node_id"] == "1" and ids["parent_node_id"] is None
    assert ids["image_type"] == "image/jpeg" and picture.startswith(b"\xff\xd8\xff")
    frames = [frame for frame in old.bytes if struct.unpack_from(">I", frame)[0] == 1]
    assert struct.unpack_from(">II", frames[0]) == (1, 1) and frames[0][8:11] == b"\xff\xd8\xff"
    assert frames == old.bytes, "whoever knows the old form only takes every frame for a picture"
    new.close()
    old.close()


def test_the_pace_is_told_to_all_and_inside_the_node(server: Server) -> None:
    listener, other = server.listen(features=UI_FEATURES), server.listen()
    listener.until("feature_flags")
    prompt_id = server.queue(long_prompt(server, seconds=0.02, steps=4), listener.client_id)
    listener.end_of(prompt_id)
    assert other.until("sluice.started", lambda data: data["prompt_id"] == prompt_id)["worker"]
    pace = other.until("sluice.step", lambda data: data["step"] == 4)
    assert pace["prompt_id"] == prompt_id and pace["node_id"] == "1" and pace["steps"] == 4
    assert pace["seconds_per_step"] >= 0.02 and pace["seconds_left"] == 0
    texts = [frame for frame in listener.bytes if struct.unpack_from(">I", frame)[0] == 3]
    n = struct.unpack_from(">I", texts[-1], 4)[0]
    assert texts[-1][8 : 8 + n].decode() == prompt_id
    assert texts[-1][8 + n : 13 + n] == b"\0\0\0\x011" and b"s/it" in texts[-1]
    events = server.get("/sluice/workers").json[0]["events"]
    assert events["sluice.step"]["prompt_id"] == prompt_id
    kinds = [kind for kind in events if kind in ("sluice.started", "sluice.step")]
    assert kinds == ["sluice.started", "sluice.step"], "the oldest comes first"
    listener.close()
    other.close()


def test_freed_memory_is_told_and_nothing_is_remembered_of_it(server: Server) -> None:
    listener = server.listen()
    server.post("/free", {"unload_models": True, "free_memory": True})
    listener.until("sluice.memory.freed")
    assert not [kind for kind in server.get("/sluice/workers").json[0]["events"] if kind.startswith("sluice.memory.")]
    listener.close()


def test_who_comes_back_in_the_middle_of_a_job_hears_where_it_is(server: Server, busy: tuple[Listener, str]) -> None:
    listener, prompt_id = busy
    back = server.listen(listener.client_id)
    assert back.until("executing")["node"] == "1"
    assert back.until("progress_state")["nodes"]["1"]["state"] == "running"
    back.until("progress")
    listener.until("status")
    server.post("/interrupt")
    back.end_of(prompt_id)
    listener.heard.append(("executing", {"node": None, "prompt_id": prompt_id}))  # it was replaced; let `busy` end
