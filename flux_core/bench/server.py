"""The server under load and with kills: no acknowledged job may be lost.

    load     clients post jobs, listeners hold websockets open; another process requests /queue all the time
    kills    the same while server and worker are killed at random moments, by SIGKILL

The jobs run in a worker without torch and take a few milliseconds, so that the server itself is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from ..errors import SluiceError
from .scratch import scratch_folder

PACK = """
import time
class Tick:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "bench", "tick", (), True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {}), "seconds": ("FLOAT", {})}}
    def tick(self, name, seconds):
        with open(FILE, "a") as file:
            file.write(name + "\\n")
        time.sleep(seconds)
        return {"ui": {"name": [name]}}
NODE_CLASS_MAPPINGS = {"Tick": Tick}
"""
STARTER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sluice", sys.argv[1])
sys.modules["sluice"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["sluice"])
from sluice.flux_core.commands.cli import main
raise SystemExit(main(sys.argv[2:]))
"""
PROBE = """
import http.client, sys, time
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
while True:
    began = time.perf_counter()
    connection.request("GET", "/queue")
    connection.getresponse().read()
    print(time.perf_counter() - began, flush=True)
    time.sleep(0.02)
"""
TICKS = "ticks"  # the file to which the names of jobs are written
PATIENCE = 300.0  # seconds after which something has gone wrong


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench server`."""
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=20, help="number of clients that post jobs at the same time")
    parser.add_argument(
        "--listeners", type=int, default=50, help="number of open websockets, including those of the clients"
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=50,
        help="number of kills of the server or worker, while as many jobs are posted again",
    )
    parser.add_argument("--seconds", type=float, default=0.005, help="duration of a job")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times, memory and the account of the jobs, in both parts."""
    return asyncio.run(_measure(args))


async def _measure(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with scratch_folder() as folder:
        async with running(folder, ticking(folder)) as server:
            found["load"] = await _load(server, args)
            _print_load(found["load"])
            if args.kills:
                found["kills"] = await _kills(server, args)
                _print_kills(found["kills"])
    return found


# -- load --------------------------------------------------------------------------------------------------------------


async def _load(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    listeners = [await server.listen() for _ in range(args.listeners)]
    await server.settled([await server.post("warm", 0.0, listeners[0].client_id)])
    memory = [server.rss]
    names = [f"load-{n}" for n in range(args.jobs)]
    probe = subprocess.Popen([sys.executable, "-c", PROBE, str(server.port)], stdout=subprocess.PIPE, text=True)
    began = time.monotonic()
    acknowledged = await _post_shares(server, names, args, [listener.client_id for listener in listeners])
    accepted = time.monotonic() - began
    memory.append(server.rss)
    await server.settled(acknowledged)
    took = time.monotonic() - began
    probe.terminate()
    waits = [float(line) for line in probe.communicate()[0].splitlines()]
    memory.append(server.rss)
    runs = Counter(server.ticks())
    ends_heard = sum(len(listener.ended) for listener in listeners)
    for listener in listeners:
        await listener.close()
    return {
        "jobs": len(acknowledged), "clients": args.clients, "listeners": args.listeners,
        "lost": sum(runs[name] == 0 for name in names), "run_twice": sum(runs[name] > 1 for name in names),
        "ends_heard": ends_heard - 1, "accepted_s": round(accepted, 2), "done_s": round(took, 2),
        "queue_asked": len(waits), "queue_median_ms": _percentile(waits, 50), "queue_p99_ms": _percentile(waits, 99),
        "queue_max_ms": _percentile(waits, 100), "rss_mb": [round(rss / 1e6, 1) for rss in memory],
    }  # fmt: skip


async def _post_shares(server: Server, names: list[str], args: argparse.Namespace, ids: list[str]) -> list[str]:
    """Each client posts its share of the jobs, one after another. Returns the acknowledged ones."""

    async def post_all(client: int) -> list[str]:
        share = names[client :: args.clients]
        return [await server.post(name, args.seconds, ids[client % len(ids)]) for name in share]

    posted = await asyncio.gather(*(post_all(client) for client in range(args.clients)))
    return [prompt_id for share in posted for prompt_id in share]


def _print_load(found: dict[str, Any]) -> None:
    print(
        f"load: {found['jobs']} jobs by {found['clients']} clients with {found['listeners']} listeners: "
        f"accepted in {found['accepted_s']} s, done in {found['done_s']} s; {found['lost']} lost, "
        f"{found['run_twice']} run twice, {found['ends_heard']} ends heard; /queue {found['queue_median_ms']} ms, "
        f"99 % within {found['queue_p99_ms']} ms ({found['queue_asked']} times); "
        f"server memory {' -> '.join(map(str, found['rss_mb']))} MB"
    )


# -- kills -------------------------------------------------------------------------------------------------------------


async def _kills(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    chance = random.Random(args.seed)
    names = [f"kill-{n}" for n in range(args.jobs)]
    posting = asyncio.create_task(_post_shares(server, names, args, ["nobody"]))
    killed: Counter[str] = Counter()
    began = time.monotonic()
    while killed.total() < args.kills:
        await asyncio.sleep(chance.uniform(0.05, 0.6))
        killed[await server.kill(chance.choice(("server", "worker")))] += 1
    acknowledged = await posting
    await server.settled(acknowledged)
    history: dict[str, Any] = await server.get("/history")
    entries = [history.get(prompt_id) for prompt_id in acknowledged]
    failed = [entry for entry in entries if entry and not entry["status"]["completed"]]
    runs = Counter(server.ticks())
    return {
        "jobs": len(acknowledged), "kills": dict(killed), "lost": entries.count(None),
        "completed": len(entries) - entries.count(None) - len(failed), "reported_failed": len(failed),
        "started_again": sum(runs[name] > 1 for name in names), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def _print_kills(found: dict[str, Any]) -> None:
    print(
        f"kills: {found['kills']} while {found['jobs']} jobs came in: {found['lost']} acknowledged jobs lost, "
        f"{found['completed']} completed, {found['reported_failed']} reported as failed with their worker, "
        f"{found['started_again']} started again after the server had been killed ({found['seconds']} s)"
    )


# -- the server and its visitors ---------------------------------------------------------------------------------------


@dataclass
class Listener:
    """A websocket that counts the ends of jobs."""

    client_id: str
    socket: aiohttp.ClientWebSocketResponse[Any]
    ended: list[str] = field(default_factory=list)

    async def listen(self) -> None:
        async for message in self.socket:
            if message.type is aiohttp.WSMsgType.TEXT and '"executing"' in message.data:
                data = message.json()["data"]
                if data["node"] is None:
                    self.ended.append(data["prompt_id"])

    async def close(self) -> None:
        await self.socket.close()


class Server:
    """`sluice serve` in a process that can be killed and started again, on the same port and folder."""

    def __init__(self, base: Path, session: aiohttp.ClientSession, options: Sequence[str]) -> None:
        """options: of `sluice serve`, beside its port and folder."""
        self.base, self.session, self.options = base, session, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = self._start()
        self._listening: set[asyncio.Task[None]] = set()

    def _start(self) -> subprocess.Popen[bytes]:
        root = Path(__file__).resolve().parents[2] / "__init__.py"
        arguments = ["serve", "--port", str(self.port), "--base-directory", str(self.base), *self.options]
        with (self.base / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", STARTER, str(root), *arguments], stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def rss(self) -> int:
        """Bytes of the server process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def ticks(self) -> list[str]:
        """The names of the jobs that have run, once for each run."""
        ticked = self.base / TICKS
        return ticked.read_text().splitlines() if ticked.exists() else []

    async def kill(self, which: str) -> str:
        """End it at once. A killed server is started again; the server replaces a killed worker."""
        if which == "worker":
            children = await self.workers()
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(children[0]).kill()
            return which
        self.process.kill()
        await asyncio.to_thread(self.process.wait)
        self.process = self._start()
        return which

    async def workers(self) -> list[int]:
        """The workers of the server, once it has one."""
        while not (children := psutil.Process(self.process.pid).children()):
            await asyncio.sleep(0.02)
        return [child.pid for child in children]

    async def post(self, name: str, seconds: float, client_id: str) -> str:
        """Queue a job; the request is repeated with the same id until it is acknowledged."""
        prompt = {"1": {"class_type": "Tick", "inputs": {"name": name, "seconds": seconds}}}
        return await self.queue(prompt, f"{name}-{uuid.uuid4().hex}", client_id)

    async def queue(self, prompt: dict[str, Any], prompt_id: str, client_id: str) -> str:
        """Queue a prompt; the request is repeated with the same id until it is acknowledged."""
        body = {"prompt": prompt, "client_id": client_id, "prompt_id": prompt_id}
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with self.session.post(self.url("/prompt"), json=body) as answer:
                    if answer.status in (200, 409):  # 409: it was queued already, and its answer was lost in a kill
                        return prompt_id
                    if answer.status < 500:
                        raise SluiceError(f"A job was refused: {await answer.text()}")
            await asyncio.sleep(0.05)

    async def get(self, path: str) -> Any:
        """The answer of a route."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with self.session.get(self.url(path)) as answer:
                    return await answer.json()
            await asyncio.sleep(0.05)

    async def listen(self) -> Listener:
        """A new listener."""
        client_id = uuid.uuid4().hex
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                socket = await self.session.ws_connect(self.url(f"/ws?clientId={client_id}"))
                listener = Listener(client_id, socket)
                task = asyncio.create_task(listener.listen())
                self._listening.add(task)
                return listener
            await asyncio.sleep(0.05)

    async def settled(self, acknowledged: list[str]) -> None:
        """Wait until nothing is queued any more. Raises SluiceError if that takes too long."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if (await self.get("/prompt"))["exec_info"]["queue_remaining"] == 0:
                await asyncio.sleep(0.2)  # for the last messages to arrive
                return
            await asyncio.sleep(0.1)
        raise SluiceError(f"{len(acknowledged)} jobs were not done after {PATIENCE:.0f} seconds.")

    def url(self, path: str) -> str:
        """The address of a route."""
        return f"http://127.0.0.1:{self.port}{path}"


def ticking(base: Path) -> list[str]:
    """The options of a server without torch whose jobs write their names to a file."""
    (base / "packs").mkdir()
    (base / "packs" / "tick.py").write_text(f"FILE = {str(base / TICKS)!r}\n{PACK}")
    return ["--device", "none", "--node-packs", str(base / "packs")]


@contextlib.asynccontextmanager
async def running(base: Path, options: Sequence[str]) -> AsyncIterator[Server]:
    """A server in this folder; it is stopped at the end."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        server = Server(base, session, options)
        try:
            yield server
        finally:
            server.process.terminate()
            await asyncio.to_thread(server.process.wait)


def _percentile(values: list[float], percent: int) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 2)
