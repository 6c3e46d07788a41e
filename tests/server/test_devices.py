"""Several workers of one server: jobs side by side, each with its own death and cancel; nothing is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

LONG = {"value": 1, "steps": 600, "seconds": 0.1}
WORKFLOW = Path(__file__).parents[2] / "workflows" / "text_to_image.png"
TWO = "none:0,none:1"


@pytest.fixture
def pair(command: list[str], start: Callable[..., Any]) -> Iterator[Any]:
    yield start(device=TWO)


def workers(server: Any) -> dict[str, Any]:
    return {worker["name"]: worker for worker in server.get("/sluice/workers").json}


def running(server: Any) -> list[str]:
    return [item[1] for item in server.get("/queue").json["queue_running"]]


def both_busy(server: Any, listener: Any) -> list[str]:
    jobs = [server.queue(server.prompt_of(("Steps", LONG)), listener.client_id) for _ in range(2)]
    for job in jobs:
        listener.until("progress", lambda data, job=job: data["prompt_id"] == job)
    return jobs


def test_two_workers_run_two_jobs_and_each_is_stopped_and_dies_alone(pair: Any) -> None:
    listener, other = pair.listen(), pair.listen()
    first, second = both_busy(pair, listener)
    third = pair.queue(pair.prompt_of(("Number", {"value": 3})), listener.client_id)
    assert sorted(running(pair)) == sorted([first, second])
    at = {worker["job"]: name for name, worker in workers(pair).items()}
    assert set(at) == {first, second} and set(at.values()) == {"none:0", "none:1"}

    pair.post("/interrupt", {"prompt_id": first})  # the other goes on, the third takes the place
    assert listener.end_of(first)["status"]["messages"][-1][0] == "execution_interrupted"
    assert listener.end_of(third)["status"]["completed"] and running(pair) == [second]

    pids = pair.workers
    busiest = max(pids, key=lambda pid: psutil.Process(pid).cpu_times().user)
    both = [pair.queue(pair.prompt_of(("Steps", LONG)), listener.client_id)]
    listener.until("progress", lambda data: data["prompt_id"] == both[0])
    psutil.Process(busiest).kill()
    lost = pair.until(lambda: next((job for job in (second, *both) if job not in running(pair)), None))
    error = listener.end_of(lost)["status"]["messages"][-1][1]
    assert "killed" in error["exception_message"]
    (left,) = {second, *both} - {lost}
    assert running(pair) == [left]
    fourth = pair.queue(pair.prompt_of(("Number", {"value": 4})), listener.client_id)
    assert listener.end_of(fourth)["status"]["completed"] and running(pair) == [left]
    assert pair.get(f"/jobs/{fourth}").json["status"] == "completed"
    told = [data["workers"] for kind, data in listener.heard if kind == "sluice.workers"]
    assert any(sum(worker["job"] is not None for worker in one) == 2 for one in told)
    pair.post("/interrupt")
    pair.until(lambda: not running(pair))
    other.until("sluice.workers", lambda data: all(worker["job"] is None for worker in data["workers"]))
    heard = {kind for kind, _ in other.heard}
    assert "sluice.stopping" in heard and not [kind for kind in heard if kind.startswith("execut")]


def test_kill_dash_nine_puts_the_jobs_of_all_workers_back(pair: Any, start: Callable[..., Any]) -> None:
    listener = pair.listen()
    jobs = both_busy(pair, listener)
    waiting = [pair.queue(pair.prompt_of(("Number", {"value": n}))) for n in range(3)]
    pids = pair.workers
    pair.kill()
    pair.until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the end of the workers")
    second = start(device=TWO)
    second.until(lambda: sorted(running(second)) == sorted(jobs))
    second.post("/interrupt")
    second.until(lambda: second.get("/prompt").json["exec_info"]["queue_remaining"] == 0)
    history = second.get("/history").json
    assert set(history) == {*jobs, *waiting}
    assert all(history[job]["status"]["completed"] for job in waiting)


def test_two_processors_make_the_same_picture_each_within_its_own_budget(start: Callable[..., Any]) -> None:
    server = start("--ram", "1200M,1400M", packs=None, device="cpu:0,cpu:1")
    prompt = json.loads(Image.open(WORKFLOW).info["prompt"])
    listener = server.listen()
    # in front of the queue, because other jobs wait some seconds for the worker that has their models
    jobs = [server.queue(prompt, listener.client_id, front=True) for _ in range(2)]
    pictures = []
    for job in jobs:
        (shown,) = (images for node in listener.end_of(job)["outputs"].values() for images in node["images"])
        pictures.append(Image.open(server.base / "output" / shown["subfolder"] / shown["filename"]))
    assert pictures[0].tobytes() == pictures[1].tobytes()
    plans = [data for kind, data in listener.heard if kind == "sluice.memory.plan"]
    limits = {plan["worker"]: plan["limit_bytes"] for plan in plans}
    assert limits == {"cpu:0": 1200 << 20, "cpu:1": 1400 << 20}
    changed = server.post("/sluice/budget", {"ram": "1500M", "worker": "cpu:1"}).json
    assert changed == {"cpu:1": {"vram": "auto", "ram": "1500M"}}
    assert server.post("/sluice/budget", {}).json["cpu:0"]["ram"] == "1200M"
    assert server.post("/sluice/budget", {"worker": "cpu:7"}).status == 404
    refused = server.post("/sluice/budget", {"ram": "1M"})
    assert refused.status == 400 and re.match("cpu:0: 1 MiB of RAM is too little", refused.json["error"]["message"])
