"""Workers on other machines, as real processes on loopback: files there and back, kills of either side, one result."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

PACKS = Path(__file__).parent / "packs"
LONG = {"value": 1, "steps": 600, "seconds": 0.1}
Work = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def work(sluice: Callable[..., Any], tmp_path: Path) -> Iterator[Work]:
    """work(url, arguments...): `sluice work` in a process of its own, without a device."""
    begun: list[subprocess.Popen[str]] = []

    def begin(url: str, *arguments: str, packs: Path | None = PACKS) -> subprocess.Popen[str]:
        given = ["--node-packs", str(packs)] if packs else []
        place = ["--base-directory", str(tmp_path / "elsewhere"), "--name", "box", "--device", "none"]
        begun.append(sluice("work", url, *place, *given, *arguments))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()


@pytest.fixture
def server(start: Callable[..., Any]) -> Any:
    """It leaves all jobs to others, and waits a second for one that is silent."""
    return start("--remote-only", "--lease", "1")


def remote(server: Any) -> dict[str, Any] | None:
    return next((one for one in server.get("/sluice/workers").json if one["name"] == "box/none"), None)


def joined(server: Any) -> None:
    server.until(lambda: (remote(server) or {}).get("contact"), "a worker joins")


def status(server: Any, prompt_id: str) -> str:
    return str(server.get(f"/jobs/{prompt_id}").json["status"])


def test_inputs_go_there_pictures_and_progress_come_back_and_names_are_given_here(server: Any, work: Work) -> None:
    for name, colour in (("a.png", "red"), ("sub/b.png", "blue")):
        (server.base / "input" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 16), colour).save(server.base / "input" / name)
    Image.new("RGB", (8, 8)).save(server.base / "output" / "box_00004_.png")  # so the next number is 5
    process = work(server.address)
    joined(server)
    listener = server.listen()

    def saved(name: str) -> tuple[str, bytes]:
        prompt = {
            "1": {"class_type": "LoadImage", "inputs": {"image": name}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "box"}},
        }
        prompt_id = server.queue(prompt, listener.client_id)
        (shown,) = listener.end_of(prompt_id)["outputs"]["2"]["images"]
        told = listener.until("executed", lambda data: data["prompt_id"] == prompt_id and data["output"])
        assert told["output"]["images"] == [shown]
        assert server.get("/sluice/workers").json[1]["name"] == "box/none"
        return shown["filename"], Image.open(server.base / "output" / shown["filename"]).convert("RGB").tobytes()

    assert saved("a.png") == ("box_00005_.png", bytes((255, 0, 0)) * 512)
    assert saved("sub/b.png") == ("box_00006_.png", bytes((0, 0, 255)) * 512)
    Image.new("RGB", (32, 16), "lime").save(server.base / "input" / "a.png")  # another content under the same name
    assert saved("a.png") == ("box_00007_.png", bytes((0, 255, 0)) * 512)

    steps = server.queue(server.prompt_of(("Steps", {"value": 1, "steps": 3, "seconds": 0.01})), listener.client_id)
    assert listener.end_of(steps)["status"]["completed"]
    assert [d["value"] for d in (d for k, d in listener.events(steps) if k == "progress")][-1] == 3
    stopped = server.queue(server.prompt_of(("Steps", LONG)), listener.client_id)
    listener.until("progress", lambda data: data["prompt_id"] == stopped)
    server.post("/interrupt")
    assert listener.end_of(stopped)["status"]["messages"][-1][0] == "execution_interrupted"
    assert server.post("/sluice/budget", {"worker": "box/none"}).json == {"box/none": {}}
    dead = server.queue(server.prompt_of(("Die", {"value": 1, "how": "kill"})), listener.client_id)
    assert "killed" in listener.end_of(dead)["status"]["messages"][-1][1]["exception_message"]

    # SIGTERM: the running job ends, and no other begins.
    last = server.queue(server.prompt_of(("Steps", {"value": 1, "steps": 8, "seconds": 0.1})), listener.client_id)
    listener.until("progress", lambda data: data["prompt_id"] == last)
    left = server.queue(server.prompt_of(("Number", {"value": 1})))
    process.send_signal(signal.SIGTERM)
    assert listener.end_of(last)["status"]["completed"]
    assert process.wait(20) == 0
    server.until(lambda: remote(server) is None)
    assert status(server, left) == "pending"


def test_a_job_whose_worker_is_killed_is_done_by_another_and_once(server: Any, work: Work) -> None:
    listener = server.listen()
    process = work(server.address)
    joined(server)
    prompt = server.prompt_of(("Steps", {"value": 1, "steps": 12, "seconds": 0.1}))
    prompt_id = server.queue(prompt, listener.client_id)
    listener.until("progress")
    children = psutil.Process(process.pid).children()
    process.kill()
    server.until(lambda: status(server, prompt_id) == "pending", "the end of the lease")
    server.until(lambda: not any(child.is_running() for child in children), "the end of the worker process")
    cancelled = server.queue(server.prompt_of(("Steps", LONG)), listener.client_id, front=True)
    second = work(server.address)
    listener.until("progress", lambda data: data["prompt_id"] == cancelled)
    second.kill()  # and this one is cancelled while its state is unknown
    server.until(lambda: not (remote(server) or {}).get("contact"))
    server.post("/interrupt")
    assert listener.end_of(cancelled)["status"]["messages"][-1][0] == "execution_interrupted"
    work(server.address)
    assert listener.end_of(prompt_id)["status"]["completed"]
    assert sorted(server.get("/history").json) == sorted([prompt_id, cancelled])


def test_a_worker_brings_its_job_to_the_server_that_comes_back(start: Callable[..., Any], work: Work) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    first = start("--remote-only", "--lease", "5", "--port", port)
    listener = first.listen()
    work(first.address)
    joined(first)
    prompt_id = first.queue(first.prompt_of(("Steps", {"value": 7, "steps": 25, "seconds": 0.1})), listener.client_id)
    listener.until("progress")
    first.kill()
    killed = time.time() * 1000
    second = start("--remote-only", "--lease", "5", "--port", port)
    entry = second.until(lambda: second.get(f"/history/{prompt_id}").json.get(prompt_id))
    assert entry["status"]["completed"] and entry["outputs"]["show"]["value"] == [7]
    started = [data["timestamp"] for kind, data in entry["status"]["messages"] if kind == "execution_start"]
    assert len(started) == 1 and started[0] < killed  # it was not run again


def test_what_stands_in_the_way_is_one_sentence(start: Callable[..., Any], work: Work) -> None:
    server = start("--token", "open sesame")

    def said(*arguments: str, **options: Any) -> str:
        process = work(*arguments, **options)
        out, _ = process.communicate(timeout=60)
        assert process.returncode in (1, 2)
        return str(out.strip().splitlines()[-1])

    assert "does not know this token" in said(server.address, "--token", "wrong")
    assert "asks for a token" in said(server.address)
    other = said(server.address, "--token", "open sesame", packs=None)
    assert re.search(
        "has other nodes than this server: it has no node packs, the server has the node pack.* test_nodes", other
    )
    assert "is not an address of a server" in said("somewhere")
    assert [line for line in server.lines if line.startswith("A worker at 127.0.0.1 was refused: The worker box/none")]
