"""A real server in a process of its own, and a client that waits for nothing longer than it must (tests/server)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

PACKS = Path(__file__).parents[1] / "server" / "packs"
PATIENCE = 60.0  # seconds after which something that should happen has not


def begun(command: list[str], *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """`sluice` with these arguments."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SLUICE_DEBUG": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *arguments], env=environment, **(pipes | options))


def until(happened: Callable[[], Any], what: str = "it", patience: float = PATIENCE) -> Any:
    """The first true answer."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if answer := happened():
            return answer
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen")


class Answer:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Listener:
    """A websocket and everything heard on it."""

    def __init__(self, door: Door, client_id: str, features: dict[str, Any] | None) -> None:
        self.door, self.client_id = door, client_id
        self.heard: list[tuple[str, Any]] = []
        self.bytes: list[bytes] = []
        self.closed = False
        self._new = threading.Condition()
        self.socket = door.wait(self._connect(features))

    async def _connect(self, features: dict[str, Any] | None) -> aiohttp.ClientWebSocketResponse[bool]:
        socket = await self.door.session.ws_connect(f"{self.door.address}/ws?clientId={self.client_id}")
        if features is not None:
            await socket.send_json({"type": "feature_flags", "data": features})
        self._listening = asyncio.ensure_future(self._listen(socket))
        return socket

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        async for message in socket:
            with self._new:
                if message.type is aiohttp.WSMsgType.BINARY:
                    self.bytes.append(message.data)
                else:
                    told = json.loads(message.data)
                    self.heard.append((told["type"], told["data"]))
                self._new.notify_all()
        with self._new:
            self.closed = True
            self._new.notify_all()

    def say(self, message: Any) -> None:
        self.door.wait(self.socket.send_json(message))

    def until(self, event: str, test: Callable[[Any], Any] = lambda data: True) -> Any:
        """Wait for an event whose data passes the test, and return the data."""

        def found() -> list[Any]:
            return [data for kind, data in self.heard if kind == event and test(data)]

        with self._new:
            assert self._new.wait_for(found, PATIENCE), f"no {event} among {[kind for kind, _ in self.heard]}"
            return found()[0]

    def end_of(self, prompt_id: str) -> Any:
        """Wait until a prompt has ended; returns its entry in the history."""
        self.until("executing", lambda data: data["node"] is None and data["prompt_id"] == prompt_id)
        return self.door.get(f"/history/{prompt_id}").json[prompt_id]

    def events(self, prompt_id: str) -> list[tuple[str, Any]]:
        return [(kind, data) for kind, data in self.heard if data.get("prompt_id") == prompt_id]

    def close(self) -> None:
        self.door.wait(self.socket.close())


def prompt_of(*nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A prompt of nodes numbered from 1; the last is shown by a node `show`."""
    prompt = {str(i): {"class_type": kind, "inputs": inputs} for i, (kind, inputs) in enumerate(nodes, 1)}
    prompt["show"] = {"class_type": "Show", "inputs": {"value": [str(len(nodes)), 0]}}
    return prompt


class Door:
    """A client of one address, usable without async."""

    prompt_of = staticmethod(prompt_of)
    until = staticmethod(until)

    def __init__(self, address: str) -> None:
        self.address = address
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.session: aiohttp.ClientSession = self.wait(self._session())

    async def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=PATIENCE))

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE + 5)

    def ask(self, method: str, path: str, **options: Any) -> Answer:
        answer: Answer = self.wait(self._ask(method, path, options))
        return answer

    async def _ask(self, method: str, path: str, options: dict[str, Any]) -> Answer:
        from yarl import URL

        url = URL(self.address + path, encoded=True)
        async with self.session.request(method, url, allow_redirects=False, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    def get(self, path: str, **options: Any) -> Answer:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return self.ask("POST", path, **({"json": body} if body is not None else {}), **options)

    def listen(self, client_id: str | None = None, features: dict[str, Any] | None = None) -> Listener:
        return Listener(self, client_id or uuid.uuid4().hex, features)

    def queue(self, prompt: dict[str, Any], client_id: str = "nobody", **more: Any) -> str:
        """Post a prompt that is fit to run; its id."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": client_id, **more})
        assert answer.status == 200, answer.body
        return str(answer.json["prompt_id"])

    def made(self, prompt: dict[str, Any], **more: Any) -> tuple[Any, list[tuple[str, Any]]]:
        """Run a prompt to its end: its entry in the history, and the events of the run."""
        listener = self.listen()
        prompt_id = self.queue(prompt, listener.client_id, **more)
        entry = listener.end_of(prompt_id)
        events = listener.events(prompt_id)
        listener.close()
        return entry, events

    def close(self) -> None:
        if not self.session.closed:
            self.wait(self.session.close())
            self._loop.call_soon_threadsafe(self._loop.stop)


class Server(Door):
    """`sluice serve` on a free port, with the test packs and no device; a worker for each if several are named."""

    def __init__(
        self, command: list[str], base: Path, *arguments: str, packs: Path | None = PACKS, device: str = "none"
    ) -> None:
        given = ["--node-packs", str(packs)] if packs else []
        chosen = ["--devices" if "," in device else "--device", device]
        self.base = base
        self.process = begun(
            command, "serve", "--port", "0", "--base-directory", str(base), *chosen, *given, *arguments
        )
        self.lines: list[str] = []
        self._announced = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._announced.wait(PATIENCE), "the server does not answer"
        first = next((line for line in self.lines if line.startswith("Sluice is at ")), None)
        assert first is not None, "\n".join(self.lines)
        self.url = first.split()[3]
        super().__init__(self.url.split("?")[0].rstrip("/"))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("Sluice is at "):
                self._announced.set()
        self._announced.set()

    @property
    def workers(self) -> list[int]:
        """The processes that this server has started."""
        import psutil

        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def kill(self) -> None:
        """End the server's process at once, its worker not."""
        self.close()
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.close()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)
