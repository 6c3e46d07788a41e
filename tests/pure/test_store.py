"""After any kill the store has every acknowledged job once, and in order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sluice.flux_core.errors import SluiceError
from sluice.flux_core.server import store as module
from sluice.flux_core.server.job import CANCELLED, COMPLETED, FAILED, PENDING, RUNNING, Job
from sluice.flux_core.server.jobs import listed
from sluice.flux_core.server.store import ATTEMPTS, CannotWrite, Store


def request(n: int = 0) -> dict[str, Any]:
    return {
        "prompt": {"1": {"class_type": "A", "inputs": {"n": n}}},
        "extra_data": {},
        "outputs": ["1"],
        "client_id": "c",
    }


RESULT = {
    "outputs": {"1": {"images": []}},
    "meta": {},
    "status": {"status_str": "success", "completed": True, "messages": []},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "queue.sqlite3")
    yield store
    store.close()


def add(store: Store, prompt_id: str, number: float | None = None) -> Job:
    return store.add(prompt_id, store.next_number() if number is None else number, request())


def taken(store: Store, prompt_id: str | None = None) -> Job:
    """The job that runs next, or the named one."""
    job = store.take(prompt_id)
    assert job is not None
    return job


def got(store: Store, prompt_id: str) -> Job:
    job = store.get(prompt_id)
    assert job is not None
    return job


def test_jobs_run_in_the_order_of_their_numbers_and_each_once(store: Store) -> None:
    for prompt_id in "abc":
        add(store, prompt_id)
    add(store, "first", number=-9)
    taken = []
    while job := store.take():
        taken.append(job.prompt_id)
    assert taken == ["first", "a", "b", "c"] and store.waiting == 0


def test_an_id_is_taken_once(store: Store) -> None:
    add(store, "a")
    with pytest.raises(KeyError):
        add(store, "a")
    assert store.waiting == 1


def test_the_queue_lists_running_and_waiting_jobs_as_comfyui_does(store: Store) -> None:
    for prompt_id in "ab":
        add(store, prompt_id)
    store.take()
    listed = json.loads(store.queue_json(["a"]))
    assert [item[1] for item in listed["queue_running"]] == ["a"]
    assert listed["queue_pending"] == [[2.0, "b", request()["prompt"], {}, ["1"]]]


def test_the_queue_lists_many_jobs_in_little_room_and_none_is_left_out(store: Store) -> None:
    long = request() | {"extra_data": {"note": "x" * 7000}}
    for number in range(1000):
        store.add(f"job {number}", number, long)
    store.take("job 500")
    listed = store.queue_json(["job 500"])
    pending = json.loads(listed)["queue_pending"]
    assert [item[1] for item in pending] == [f"job {number}" for number in range(1000) if number != 500]
    assert pending[99][2:] == [long["prompt"], long["extra_data"], ["1"]]
    assert pending[100] == [100.0, "job 100", {}, {"client_id": "c"}, ["1"]]
    assert json.loads(listed)["queue_running"][0][3] == long["extra_data"]
    assert len(listed) < 101 * 7200 + 900 * 80


def test_waiting_jobs_are_grouped_by_their_models(store: Store) -> None:
    for number, models in enumerate((["a"], ["b", "a"], ["a"], [], ["a"])):
        store.add(f"job {number}", number, request() | {"models": models})
    groups = {group.models: group for group in store.groups(2, {frozenset("a"): 5.0})}
    assert {key: (list(group.first), group.count) for key, group in groups.items()} == {
        frozenset("a"): (["job 0", "job 2"], 3), frozenset("ab"): (["job 1"], 1), frozenset(): (["job 3"], 1)
    }  # fmt: skip
    assert groups[frozenset("a")].seconds == 5.0 and groups[frozenset("ab")].number == 1
    store.take("job 0")
    store.delete_waiting(["job 1", "job 3"])
    assert [(group.first, group.count) for group in store.groups(9, {})] == [(["job 2", "job 4"], 2)]


def test_a_result_counts_once_and_only_for_the_attempt_that_runs(store: Store) -> None:
    add(store, "a")
    assert not store.finish("a", COMPLETED, RESULT)
    job = taken(store, "a")
    assert store.take("a") is None
    assert not store.finish("a", COMPLETED, RESULT, job.attempts + 1)
    assert store.finish("a", COMPLETED, RESULT, job.attempts)
    assert not store.finish("a", FAILED, RESULT, job.attempts) and got(store, "a").status == COMPLETED


def test_a_job_whose_worker_is_lost_waits_again_and_is_resumed_only_by_its_last_attempt(tmp_path: Path) -> None:
    store = Store(tmp_path / "q")
    add(store, "a")
    add(store, "b")
    assert taken(store, "a").attempts == 1
    store.wait_again("a", counts=False)
    assert taken(store, "a").attempts == 1
    store.wait_again("a", counts=True)
    assert taken(store, "a").attempts == 2 and store.waiting == 1
    store.close()
    store = Store(tmp_path / "q")  # the server has ended; the worker continues
    assert store.resume("a", 1) is None and store.resume("b", 1) is None and store.waiting == 2
    job = store.resume("a", 2)
    assert job is not None and (job.status, job.attempts, store.waiting) == (RUNNING, 2, 1)
    assert store.resume("a", 2) is None
    assert not store.is_cancelled("a")
    store.cancel("a")
    assert store.is_cancelled("a")
    store.close()


def test_a_reopened_store_has_every_job_and_puts_running_ones_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "q")
    for prompt_id in "abc":
        add(store, prompt_id)
    store.take()
    store.finish("a", COMPLETED, RESULT)
    store.take()
    store.close()
    store = Store(tmp_path / "q")
    assert store.put_back == 1 and store.next_number() == 4
    assert [taken(store).prompt_id for _ in range(2)] == ["b", "c"]
    assert got(store, "a").result == RESULT
    store.close()


def test_a_job_that_keeps_killing_its_server_is_reported_not_tried_forever(tmp_path: Path) -> None:
    add(store := Store(tmp_path / "q"), "a")
    for attempt in range(ATTEMPTS):
        assert taken(store).attempts == attempt + 1
        store.close()
        store = Store(tmp_path / "q")
    assert store.take() is None
    job = got(store, "a")
    assert job.status == FAILED and "not tried again" in json.dumps(job.result)
    summary = store.history.summary("a")
    assert summary is not None
    error = listed(summary)["execution_error"]  # the frontend shows no job at all if a field is missing
    assert {"node_id", "node_type", "exception_message", "exception_type", "traceback"} <= error.keys()
    store.close()


def test_history_windows(store: Store) -> None:
    for prompt_id in "abcde":
        add(store, prompt_id)
        store.take()
        store.finish(prompt_id, COMPLETED, RESULT)

    def window(count: int | None, offset: int = -1) -> str:
        return "".join(json.loads(store.history.as_json(count, offset)))

    assert window(None) == "abcde"
    assert window(2) == "de"
    assert window(2, 1) == "bc"
    assert window(9, 4) == "e"
    assert window(9) == "abcde" and window(0) == "" and window(2, 9) == ""
    newest, total = store.history.summaries([COMPLETED, FAILED], limit=2, offset=1)
    assert total == 5 and [job.prompt_id for job in newest] == ["d", "c"]
    store.history.delete(["a"])
    assert window(None) == "bcde"
    store.history.delete()
    assert window(None) == ""


def test_entries_of_the_history_have_comfyuis_shape(store: Store) -> None:
    assert store.history.entry_json("a") == "{}"
    canvas = {"id": "w", "seed": 2**64 - 1, "text": "ü\u0000"}
    asked = request() | {"extra_data": {"extra_pnginfo": {"workflow": canvas}}}
    store.add("a", store.next_number(), asked)
    store.take()
    assert store.history.entry_json("a") == "{}"
    store.finish("a", COMPLETED, RESULT | {"facts": {"seconds": 1.5}})
    entry = json.loads(store.history.entry_json("a"))["a"]
    assert entry == {"prompt": [1.0, "a", asked["prompt"], asked["extra_data"], ["1"]], **RESULT}
    summary = store.history.summary("a")
    assert summary is not None
    assert summary.workflow_id == "w" and summary.outputs == RESULT["outputs"] and summary.facts == {"seconds": 1.5}


def test_a_job_stopped_with_the_server_does_not_count_as_tried(tmp_path: Path) -> None:
    add(store := Store(tmp_path / "q"), "a")
    for _ in range(ATTEMPTS + 1):
        assert taken(store).attempts == 1
        store.release("a")
        store.close()
        store = Store(tmp_path / "q")
    store.close()


def test_a_full_disk_refuses_new_jobs_and_loses_no_old_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "q")
    add(store, "a")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(CannotWrite, match="disk is full"):
        for n in range(1000):
            store.add(f"b{n}", 1.0, request() | {"padding": "x" * 4000})
    refused = n
    store._db.execute(f"PRAGMA max_page_count = {pages + 10_000}")
    assert store.waiting == 1 + refused and store.get(f"b{refused}") is None
    add(store, f"b{refused}")
    assert taken(store).prompt_id == "a"
    store.close()


def test_a_history_that_is_too_long_loses_its_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_HISTORY", 2)
    store = Store(tmp_path / "q")
    for prompt_id in "abcd":
        add(store, prompt_id)
    for prompt_id in "abc":
        store.take()
        store.finish(prompt_id, COMPLETED, RESULT)
    store.close()
    store = Store(tmp_path / "q")
    assert list(json.loads(store.history.as_json(None))) == ["b", "c"] and store.waiting == 1
    store.close()


def test_deleting_touches_only_what_waits(store: Store) -> None:
    for prompt_id in "abc":
        add(store, prompt_id)
    store.take()
    assert store.delete_waiting(["a", "b", "nobody"]) == ["b"]
    assert store.delete_waiting() == ["c"]
    assert got(store, "a").status == RUNNING and store.get("b") is None


def test_a_second_server_on_the_same_directory_is_refused(prologue: str, tmp_path: Path, store: Store) -> None:
    opens = "from pathlib import Path; from sluice.flux_core.server.store import Store; Store(Path(sys.argv[1]))"
    command = [sys.executable, "-c", prologue + opens, str(tmp_path / "queue.sqlite3")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode != 0 and "Another Sluice server" in run.stderr


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "q").write_bytes(b"not a database" * 100)
    with pytest.raises(SluiceError, match="damaged"):
        Store(tmp_path / "q")


WRITER = """
from pathlib import Path
from sluice.flux_core.server.store import Store
request = {"prompt": {}, "extra_data": {}, "outputs": [], "client_id": ""}
store = Store(Path(sys.argv[1]))
for n in range(10_000):
    store.add(f"{sys.argv[2]}-{n}", store.next_number(), request)
    print(n, flush=True)
"""


def test_every_acknowledged_job_survives_kill_dash_nine(prologue: str, tmp_path: Path) -> None:
    for turn in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", prologue + WRITER, str(tmp_path / "q"), str(turn)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(20 + 7 * turn):
            writer.stdout.readline()
        writer.kill()
        acknowledged = 20 + 7 * turn + len(writer.stdout.read().splitlines())
        writer.wait()
        store = Store(tmp_path / "q")
        assert all(got(store, f"{turn}-{n}").status == PENDING for n in range(acknowledged))
        store.close()


@pytest.mark.parametrize("in_good_order", [True, False])
def test_a_job_that_was_being_cancelled_is_not_run_again(tmp_path: Path, in_good_order: bool) -> None:
    add(store := Store(tmp_path / "q"), "a")
    store.take()
    store.cancel("a")
    if in_good_order:
        store.release("a")
    store.close()
    store = Store(tmp_path / "q")
    assert store.put_back == 0 and store.take() is None
    job = got(store, "a")
    assert job.status == CANCELLED and job.ended and "execution_interrupted" in json.dumps(job.result)
    assert "execution_interrupted" in store.history.entry_json("a")
    store.close()


def test_a_job_that_was_done_before_it_could_be_cancelled_has_its_result(store: Store) -> None:
    add(store, "a")
    store.cancel("a")  # it only waits: nothing to stop
    assert got(store, "a").result is None
    store.take()
    store.cancel("a")
    store.finish("a", COMPLETED, RESULT)
    assert (got(store, "a").status, got(store, "a").result) == (COMPLETED, RESULT)
