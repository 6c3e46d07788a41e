"""The worker process, seen from the server: started, asked, listened to, replaced when it dies.

The worker imports torch and the nodes, the server neither. Nothing the worker does, its death included, can take the
queue along: a running job then ends as failed, with the reason, and the next one starts a new worker.

Does not know: HTTP, the queue, what a prompt means.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import SluiceError
from .pipe import Channel, Message

START_SECONDS = 120.0  # importing torch from a cold disk can take long; a worker that dies is noticed at once
_ENTRY = Path(__file__).resolve().parents[1] / "entry" / "worker.py"

OnMessage = Callable[[Message, bytes], None]


class WorkerDied(SluiceError):
    """The worker process ended while something was asked of it. The text says how."""


class Worker:
    """One child process. All methods are for the event loop's thread."""

    def __init__(self, options: Mapping[str, Any], on_message: OnMessage, log: Callable[[str], None]) -> None:
        """options: what the worker's own command line would say (folders, device, budgets), as JSON-able data.
        on_message: hears events, previews. log: hears each line the worker prints."""
        self._options, self._on_message, self._log = options, on_message, log
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._calls: dict[int | str, asyncio.Future[Message]] = {}  # call numbers, and ids of running prompts
        self._next_call = 0
        self._ready: asyncio.Future[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=20)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def call(self, op: str, **arguments: Any) -> Any:
        """Ask something and wait for the answer. Raises WorkerDied, or SluiceError with the worker's own words."""
        channel = await self._started()
        self._next_call += 1
        return (await self._ask(channel, self._next_call, {"op": op, "call": self._next_call, **arguments}))["result"]

    async def run(self, prompt_id: str, prompt: Any, extra_data: Any, outputs: list[str]) -> Message:
        """Run a prompt to its end: {"status", "outputs", "meta", "messages"}. Raises WorkerDied."""
        channel = await self._started()
        message = {"op": "run", "prompt_id": prompt_id, "prompt": prompt, "extra_data": extra_data, "outputs": outputs}
        return await self._ask(channel, prompt_id, message)

    def tell(self, op: str, **arguments: Any) -> None:
        """Say something that has no answer. A worker that is not there need not hear it."""
        if self._channel is not None:
            self._send(self._channel, {"op": op, **arguments})

    async def stop(self) -> None:
        """End the process, at once if need be."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        for _ in range(20):
            if process.poll() is not None:
                break
            await asyncio.sleep(0.02)
        else:
            process.kill()
        await asyncio.to_thread(process.wait)

    # ----------------------------------------------------------------------------------------------------------------

    async def _ask(self, channel: Channel, key: int | str, message: Message) -> Message:
        future = self._calls[key] = asyncio.get_running_loop().create_future()
        try:
            self._send(channel, message)
            answer: Message = await future
        finally:
            self._calls.pop(key, None)
        if "error" in answer:
            raise SluiceError(answer["error"])
        return answer

    def _send(self, channel: Channel, message: Message) -> None:
        try:
            channel.send(message)
        except (OSError, ValueError):
            pass  # its death is on the way to us by the reading thread, which fails every call

    async def _started(self) -> Channel:
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._start()
        await asyncio.wait_for(asyncio.shield(self._ready), START_SECONDS)
        if self._channel is None:
            raise WorkerDied("The worker ended just now.")
        return self._channel

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._last_lines.clear()
        self._process = subprocess.Popen(
            [sys.executable, str(_ENTRY), json.dumps(self._options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=os.name == "posix",  # Ctrl-C at the terminal is the server's to answer
        )
        for thread in (self._relay, self._listen):
            threading.Thread(target=thread, args=(self._process, loop), daemon=True).start()

    def _relay(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            _post(loop, self._log, text)

    def _listen(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        """Reads until the other end is gone. Runs in a thread of its own."""
        assert process.stdin is not None and process.stdout is not None
        channel = Channel(cast(BinaryIO, process.stdout), cast(BinaryIO, process.stdin))
        try:
            while True:
                _post(loop, self._received, channel, *channel.receive())
        except (EOFError, OSError, ValueError):
            pass
        process.wait()
        _post(loop, self._died, process)

    def _received(self, channel: Channel, message: Message, payload: bytes) -> None:
        if "ready" in message and self._ready is not None:
            self._channel = channel
            if not self._ready.done():
                self._ready.set_result(None)
            return
        key = message.get("reply", message.get("done"))
        future = self._calls.get(key) if key is not None else None
        if future is not None and not future.done():
            future.set_result(message)
        elif key is None:
            self._on_message(message, payload)

    def _died(self, process: subprocess.Popen[bytes]) -> None:
        reason = WorkerDied(_obituary(process.returncode, self._last_lines))
        ready, self._ready, self._channel = self._ready, None, None
        if self._process is process:
            self._process = None
        for future in [*self._calls.values(), *([ready] if ready is not None else [])]:
            if not future.done():
                future.set_exception(reason)
                future.exception()  # somebody may have stopped waiting; that is no error of its own


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        pass  # the loop is closed: the server is going down


def _obituary(code: int, last_lines: deque[str]) -> str:
    said = [line for line in last_lines if line.strip()]
    last = f" Its last words: {said[-1]}" if said else ""
    if code == -getattr(signal, "SIGKILL", 9):
        return (
            "The worker process was killed while it ran this job. If nobody did so on purpose, the system ran out of "
            "memory: lower --ram, or choose a smaller picture or model file." + last
        )
    if code < 0:
        return f"The worker process crashed ({signal.Signals(-code).name}) while it ran this job.{last}"
    return f"The worker process ended with code {code} while it ran this job.{last}"
