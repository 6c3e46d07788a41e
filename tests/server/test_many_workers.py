"""Three workers, two of them processes of the server and one behind a link that is cut; and two hundred idle ones."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import psutil
import pytest
from doubles.client import PACKS, Listener, Server
from doubles.link import Link
from sluice.flux_core.worker.calls import Calls
from sluice.flux_core.worker.program_nodes import program_tables
from sluice.flux_core.workers.protocol import frame_of, parsed
from sluice.nodes.host import pack_host

MODELS = [f"model {letter}.safetensors" for letter in "abcde"]
CLIENTS, JOBS = 3, 60
PREVIEW_WITH_METADATA = 4
IDLE = 200


@pytest.fixture
def link(start: Callable[..., Server]) -> Iterator[tuple[Server, Link]]:
    """A server with two workers, which waits five seconds for a third, and the link to it."""
    server = start("--lease", "5", device="none:0,none:1")  # a busy machine delays heartbeats, too
    link = Link(int(server.address.rpartition(":")[2]))
    yield server, link
    link.close()


@pytest.fixture
def third(sluice: Callable[..., subprocess.Popen[str]], link: tuple[Server, Link], tmp_path: Path) -> Iterator[str]:
    """The name of a worker behind the link."""
    server, between = link
    place = ["--base-directory", str(tmp_path / "elsewhere"), "--name", "far", "--device", "none"]
    process = sluice("work", f"http://127.0.0.1:{between.port}", *place, "--node-packs", str(PACKS))
    server.until(lambda: "far/none" in workers(server), "a worker joins")
    yield "far/none"
    process.kill()
    process.wait()


def workers(server: Server, reachable: bool = True) -> dict[str, Any]:
    """By name; also those out of reach whose lease has not ended, if `reachable` is false."""
    return {one["name"]: one for one in server.get("/sluice/workers").json if one["contact"] or not reachable}


def at_work(server: Server, name: str) -> str | None:
    """The job of this worker."""
    found = workers(server).get(name)
    return None if found is None else found["job"]


def cut_in_a_job(server: Server, between: Link, name: str) -> str:
    """Cut the link while this worker has a job whose result the server does not have; returns the job."""
    while True:
        server.until(lambda: at_work(server, name))
        between.cut()
        server.until(lambda: name not in workers(server))
        job: str | None = workers(server, reachable=False)[name]["job"]
        if job is not None:
            return job
        between.mend()


def previewed(listener: Listener) -> set[str]:
    """The jobs whose previews were heard."""
    found = set()
    for frame in list(listener.bytes):
        kind, length = struct.unpack(">II", frame[:8])
        if kind == PREVIEW_WITH_METADATA:
            found.add(json.loads(frame[8 : 8 + length])["prompt_id"])
    return found


def written(server: Server) -> dict[str, dict[str, Any]]:
    """The jobs as the server has stored them. Stops it."""
    server.stop()
    with closing(sqlite3.connect(server.base / "user" / "sluice" / "queue.sqlite3")) as file:
        file.row_factory = sqlite3.Row
        return {row["prompt_id"]: dict(row) for row in file.execute("SELECT * FROM jobs ORDER BY started")}


def test_every_job_has_one_result_when_a_worker_is_killed_and_a_link_is_cut(
    link: tuple[Server, Link], third: str
) -> None:
    server, between = link
    (server.base / "models" / "vae").mkdir(parents=True)
    for name in MODELS:
        (server.base / "models" / "vae" / name).write_bytes(name.encode())
    listeners = [server.listen(features={"supports_preview_metadata": True}) for _ in range(CLIENTS)]
    theirs: list[list[str]] = [[] for _ in range(CLIENTS)]
    for number in range(JOBS):
        client, model = number % CLIENTS, MODELS[number % len(MODELS)]
        node = ("Loaded", {"name": model, "value": number, "steps": 4, "seconds": 0.02})
        theirs[client].append(server.queue(server.prompt_of(node), listeners[client].client_id))
    jobs = {job for each in theirs for job in each}

    first = server.until(lambda: at_work(server, third))
    server.until(lambda: server.get(f"/jobs/{first}").json["status"] == "completed")
    killed = psutil.Process(server.workers[0])
    killed.suspend()  # so that it does not end its job just then
    server.until(lambda: all(at_work(server, name) for name in ("none:0", "none:1")))
    killed.kill()
    lost = cut_in_a_job(server, between, third)  # for longer than the lease: another does it, its result comes late
    server.until(lambda: third not in workers(server, reachable=False), "the end of the lease")
    server.until(lambda: server.get(f"/jobs/{lost}").json["status"] != "pending", "another takes the job")
    between.mend()
    server.until(lambda: third in workers(server), "it is back")
    for listener, each in zip(listeners, theirs, strict=True):
        for job in each:
            listener.end_of(job)
    ends = [
        [data["prompt_id"] for kind, data in one.heard if kind == "executing" and not data["node"]] for one in listeners
    ]
    assert [sorted(each) for each in ends] == [sorted(each) for each in theirs]
    for listener, each in zip(listeners, theirs, strict=True):
        assert previewed(listener) and previewed(listener) <= set(each)

    stored = written(server)
    assert set(stored) == jobs
    failed = [job for job in stored.values() if job["status"] != "completed"]
    assert len(failed) == 1 and "killed" in failed[0]["result"]
    assert {job: row["attempts"] for job, row in stored.items() if row["attempts"] != 1} == {lost: 2}
    done_by: dict[str, list[str]] = {}
    for row in stored.values():
        (model,) = json.loads(row["request"])["models"]
        done_by.setdefault(json.loads(row["result"])["facts"]["worker"], []).append(model)
    assert set(done_by) == {"none:0", "none:1", third}
    changes = sum(1 + sum(a != b for a, b in pairwise(models)) for models in done_by.values())
    assert (
        changes <= JOBS // 3
    )  # how many depends on how long jobs take; if models did not count, four in five would be
    for each in theirs:
        for model in MODELS:
            same = [stored[job]["started"] for job in each if model in stored[job]["request"] and job != lost]
            assert same == sorted(same)


def test_two_hundred_idle_workers_cost_the_server_little(start: Callable[..., Server]) -> None:
    server = start(packs=None)
    known: Any = SimpleNamespace(worker=SimpleNamespace(classes=program_tables(pack_host())[0], packs=None))
    identity = Calls.on_identity(known, {})

    async def join(session: aiohttp.ClientSession, number: int) -> Any:
        socket = await session.ws_connect(f"{server.address}/sluice/worker")
        hello = {"name": f"idle {number}", "session": f"life {number}", "clock": None, "running": None, **identity}
        await socket.send_bytes(frame_of({"hello": hello}))
        assert "welcome" in parsed(await socket.receive_bytes())[0]
        return asyncio.ensure_future(socket.receive())  # which answers pings

    async def all_join() -> tuple[aiohttp.ClientSession, list[Any]]:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return session, await asyncio.gather(*(join(session, number) for number in range(IDLE)))

    session, listening = server.wait(all_join())
    process = psutil.Process(server.process.pid)
    before = process.num_ctx_switches().voluntary
    server.wait(asyncio.sleep(1.0))
    wakes = process.num_ctx_switches().voluntary - before
    assert len(workers(server)) == IDLE + 1 and not any(one.done() for one in listening)
    assert process.memory_info().rss < 100 << 20
    assert wakes < IDLE  # nothing is asked of each worker every second
    server.wait(session.close())
