"""Deaths, restarts and starts: nothing acknowledged is lost, nothing is left behind, each refusal is one sentence."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from doubles.client import Server

LONG = {"value": 1, "steps": 600, "seconds": 0.1}


def number(server: Server, value: int = 1) -> dict[str, Any]:
    return server.prompt_of(("Number", {"value": value}))


def ended(server: Server, prompt_id: str) -> Any:
    return server.until(lambda: server.get(f"/history/{prompt_id}").json.get(prompt_id), f"the end of {prompt_id}")


# -- the worker dies ---------------------------------------------------------------------------------------------------

DEATHS = [
    ("kill", "killed", "ran out of memory"),
    ("exit", "ended with code 7", "I have had enough."),
    ("crash", "crashed (SIGSEGV)", ""),
]


@pytest.mark.parametrize("how, said, also", DEATHS, ids=[case[0] for case in DEATHS])
def test_a_job_whose_worker_dies_has_failed_with_the_reason_and_the_next_one_runs(
    server: Server, how: str, said: str, also: str
) -> None:
    listener = server.listen()
    prompt = server.prompt_of(("Number", {"value": 3}), ("Die", {"value": 1, "how": how}))
    dying = server.queue(prompt, listener.client_id)
    after = server.queue(number(server), listener.client_id)
    entry = listener.end_of(dying)
    error = listener.until("execution_error")
    assert entry["status"]["messages"][-1] == ["execution_error", error] and not entry["status"]["completed"]
    assert said in error["exception_message"] and also in error["exception_message"]
    assert error["node_id"] == "2" and error["node_type"] == "Die"
    assert server.get(f"/jobs/{dying}").json["status"] == "failed"
    assert listener.end_of(after)["status"]["completed"]
    listener.close()


def test_running_out_of_memory_is_told_with_advice_and_the_worker_lives(server: Server) -> None:
    pids = server.workers
    entry, events = server.made(server.prompt_of(("Die", {"value": 1, "how": "memory"})))
    message = dict(events)["execution_error"]["exception_message"]
    assert "out of memory" in message and "--vram" in message
    assert server.workers == pids and server.made(number(server))[0]["status"]["completed"]


def test_a_worker_killed_while_idle_is_replaced_when_it_is_needed(server: Server) -> None:
    (pid,) = server.workers
    psutil.Process(pid).kill()
    server.until(lambda: pid not in server.workers)
    assert server.made(number(server))[0]["status"]["completed"]


def test_an_engine_error_does_not_stop_the_worker(server: Server) -> None:
    prompt = server.prompt_of(("Number", {"value": 1}))
    extra = {"extra_pnginfo": {"workflow": {"nested": json.loads("[" * 90 + "]" * 90)}}}
    assert server.made(prompt, extra_data=extra)[0]["status"]["completed"]


# -- the server dies ---------------------------------------------------------------------------------------------------


def test_kill_dash_nine_loses_no_job_and_no_result(start: Callable[..., Server]) -> None:
    first = start()
    done = [first.made(number(first, n))[0]["prompt"][1] for n in range(2)]
    listener = first.listen()
    running = first.queue(first.prompt_of(("Steps", LONG)), listener.client_id)
    listener.until("progress")
    waiting = [first.queue(number(first, n)) for n in range(5)]
    (worker,) = first.workers
    first.kill()
    first.until(lambda: not psutil.pid_exists(worker), "the end of the worker")
    second = start()
    second.until(lambda: any("run again" in line for line in second.lines))
    assert list(second.get("/history").json) == done
    listener = second.listen()
    second.until(lambda: second.get("/queue").json["queue_running"])
    queue = second.get("/queue").json
    assert [item[1] for item in queue["queue_running"]] == [running]
    assert [item[1] for item in queue["queue_pending"]] == waiting
    second.post("/interrupt")
    assert all(ended(second, prompt_id)["status"]["completed"] for prompt_id in waiting)


def test_a_hundred_jobs_and_five_deaths(start: Callable[..., Server]) -> None:
    """Jobs come in while server and worker are killed in turns. Each acknowledged one ends, each once."""
    server = start()
    acknowledged = []
    for n in range(100):
        acknowledged.append(server.queue(number(server, n), prompt_id=f"job {n}"))
        if n in (15, 50, 85):
            server.kill()
            server = start()
        elif n in (30, 70):
            (worker,) = server.until(partial(getattr, server, "workers"))
            psutil.Process(worker).kill()
    server.until(lambda: server.get("/prompt").json["exec_info"]["queue_remaining"] == 0, "the end of all jobs")
    history = server.get("/history").json
    assert sorted(history) == sorted(acknowledged)
    failed = [entry for entry in history.values() if not entry["status"]["completed"]]
    assert len(failed) <= 2 and all("worker process" in json.dumps(entry["status"]) for entry in failed)


def test_stopping_in_good_order_keeps_the_running_job_for_the_next_time(start: Callable[..., Server]) -> None:
    first = start()
    listener = first.listen()
    running = first.queue(first.prompt_of(("Steps", LONG)), listener.client_id)
    listener.until("progress")
    assert first.stop() == 0
    second = start()
    second.until(lambda: second.get("/queue").json["queue_running"])
    assert second.get(f"/jobs/{running}").json["status"] == "in_progress"


def test_a_cancel_is_told_at_once_and_outlives_a_kill(start: Callable[..., Server]) -> None:
    first = start()
    listener = first.listen()
    stubborn = first.queue(first.prompt_of(("Steps", LONG | {"seconds": 60.0})), listener.client_id)
    listener.until("executing", lambda data: data["node"] == "1")
    first.post("/interrupt")
    assert listener.until("sluice.stopping") == {"prompt_id": stubborn}
    first.kill()
    second = start()
    assert second.get(f"/jobs/{stubborn}").json["status"] == "cancelled"
    assert second.get("/queue").json == {"queue_running": [], "queue_pending": []}


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number_of_signal", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_nothing_behind_even_if_the_worker_hears_nothing(
    start: Callable[..., Server], number_of_signal: signal.Signals
) -> None:
    server = start()
    listener = server.listen()
    server.queue(server.prompt_of(("Stuck", {"value": 1})), listener.client_id)
    listener.until("executing")
    workers = server.workers
    assert workers and server.stop(number_of_signal) == 0
    assert not any(psutil.pid_exists(pid) for pid in workers)


# -- the beginning -----------------------------------------------------------------------------------------------------


def refused(sluice: Callable[..., subprocess.Popen[str]], *arguments: str) -> str:
    """Both streams of a program that does not start: the one sentence."""
    process = sluice("serve", *arguments)
    said, _ = process.communicate(timeout=60)
    assert process.returncode in (1, 2)
    (line,) = said.strip().splitlines()
    return line


def test_a_second_server_on_the_same_directory_is_refused(
    start: Callable[..., Server], sluice: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    start()
    assert "Another Sluice server" in refused(sluice, "--port", "0", "--base-directory", str(tmp_path))


def test_a_port_in_use_is_refused(sluice: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"Port {port} is in use" in refused(sluice, "--port", port, "--base-directory", str(tmp_path))


def test_what_cannot_be_used_is_refused_by_name(sluice: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    base = ["--port", "0", "--base-directory", str(tmp_path)]
    output = str(tmp_path / "file" / "out")
    assert f"{tmp_path / 'file'} is a file, so there is no folder {output}. Move it away" in refused(
        sluice, *base, "--output-directory", output
    )
    assert "There is no folder" in refused(sluice, *base, "--models", str(tmp_path / "nowhere"))
    assert "does not exist" in refused(sluice, *base, "--node-packs", str(tmp_path / "nowhere"))
    assert "no address" in refused(sluice, *base, "--host", "host.invalid")
    assert "not a size" in refused(sluice, *base, "--vram", "plenty")
    (tmp_path / "user" / "sluice").mkdir(parents=True, exist_ok=True)
    (tmp_path / "user" / "sluice" / "queue.sqlite3").write_bytes(b"no database " * 100)
    assert "damaged" in refused(sluice, *base)


def test_the_page_and_the_nodes_are_there_before_torch_is(start: Callable[..., Server]) -> None:
    server = start(packs=None, device="cpu")
    assert server.get("/").status == 200
    assert "KSampler" in server.get("/object_info").json
    assert server.until(lambda: server.get("/system_stats").json["devices"])[0]["type"] == "cpu"


def test_the_server_imports_no_torch_and_stays_small(server: Server) -> None:
    server.made(number(server))
    assert psutil.Process(server.process.pid).memory_info().rss < 80e6
    with open(f"/proc/{server.process.pid}/maps") as maps:
        assert "torch" not in maps.read()


def test_without_the_editors_package_the_page_says_how_to_get_it(prologue: str) -> None:
    code = (
        prologue + "sys.modules['comfyui_frontend_package'] = None\n"
        "from importlib import util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'comfyui_frontend_package' else real(name, *rest)\n"
        "from sluice.flux_core.server import frontend\n"
        "print(frontend.static(), frontend.HOW_TO_INSTALL)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith("None") and "pip install 'sluice[app]'" in told


def test_a_visitor_from_elsewhere_needs_the_token(start: Callable[..., Server]) -> None:
    server = start("--host", "0.0.0.0", "--token", "a secret")
    assert server.url.endswith("?token=a%20secret")
    local = f"http://127.0.0.1:{server.address.rpartition(':')[2]}"
    server.address = local
    assert server.get("/queue").status == 401
    assert server.get("/queue?token=wrong").status == 401
    page = server.get("/?token=a%20secret")
    assert page.status == 200 and "HttpOnly" in page.headers["Set-Cookie"]
    assert server.get("/queue", headers={"Authorization": "Bearer a secret"}).status == 200
    assert "a secret" not in json.dumps(server.get("/system_stats?token=a%20secret").json)


def test_old_previews_are_removed_at_the_start(start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()
    for name, age in (("old.png", 3 * 86400), ("new.png", 60)):
        (tmp_path / "temp" / name).write_bytes(b"")
        os.utime(tmp_path / "temp" / name, (time.time() - age,) * 2)
    start()
    assert os.listdir(tmp_path / "temp") == ["new.png"]
