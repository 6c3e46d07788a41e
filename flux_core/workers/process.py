"""The worker process as the server uses it: started, called, read from, replaced after it dies.

The worker imports torch and the nodes; the server imports neither. If the worker dies, the queue is not affected: the
running job fails with the reason, and the next call starts a new worker.

    event loop           sends calls and messages; never waits for the pipe
    writing thread       queue -> worker's standard input
    reading thread       worker's standard output -> event loop
    relaying thread      worker's standard error -> log

Contains nothing about HTTP, the queue or the meaning of prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import InputError, MissingFileError, SluiceError, WorkflowError
from .process_tree import ProcessTree
from .protocol import Channel, Message, frame_of

START_SECONDS = 120.0  # imports can take long from a cold disk; a worker that dies is noticed at once
_KILLED = -getattr(signal, "SIGKILL", 9)
STOP_SECONDS = 0.4  # between requesting the process to end and killing it
LAST_LINE_SECONDS = 1.0  # for the last lines of a dead worker; a process that it started may keep the pipe open
_LONGEST_LINE = 1 << 16
_ENTRY = Path(__file__).resolve().parents[1] / "entry" / "worker.py"

# Errors that the worker raises in a call are raised here again.
_SAID = (WorkflowError, InputError, MissingFileError)
_KINDS: Mapping[str, type[SluiceError]] = {kind.__name__: kind for kind in _SAID}
OnMessage = Callable[[Message, bytes], None]
Log = Callable[[str], None]


class WorkerDied(SluiceError):
    """The worker process ended during a call. The text says how.

    killed: it was killed by the system or a user, for example because memory ran out.
    """

    def __init__(self, text: str, killed: bool = False) -> None:
        super().__init__(text)
        self.killed = killed


class LostContact(WorkerDied):
    """A worker on another machine is not heard any more. `counts`: as an attempt at its job; not if it said so."""

    def __init__(self, text: str, counts: bool = True) -> None:
        super().__init__(text)
        self.counts = counts


class Worker:
    """The worker, in its current process. All methods must be called in the event loop's thread."""

    def __init__(self, options: Mapping[str, Any], on_message: OnMessage, log: Log) -> None:
        """options: of the worker (see flux_core/worker/main.py), as JSON-ready data.

        on_message: receives events and previews. log: receives each line that the worker prints.
        """
        self.options = dict(options)  # of the next process
        self._on_message, self._log = on_message, log
        self._process: _Process | None = None

    @property
    def pid(self) -> int | None:
        """The process's id; None without a process."""
        return None if self._process is None else self._process.popen.pid

    async def call(self, op: str, **arguments: Any) -> Any:
        """Send a call and wait for its answer. Raises WorkerDied, or the SluiceError that the worker raised."""
        process = await self._started()
        number = process.next_call()
        answer = await process.ask(number, {"op": op, "call": number, **arguments})
        if "error" in answer:
            raise _KINDS.get(answer["type"], SluiceError)(answer["error"])
        return answer["result"]

    async def call_route(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Any:
        """Send a request to a node pack's route: ({"status", "headers"}, body). Raises as `call`."""
        process = await self._started()
        number = process.next_call()
        message = {"op": "route", "call": number, "method": method, "path": path, "headers": headers}
        answer = await process.ask(number, message, body)
        if "error" in answer:
            raise SluiceError(answer["error"])
        return answer["result"], answer.get("payload", b"")

    async def run(
        self, prompt_id: str, prompt: Any, extra_data: Any, outputs: list[str], attempt: int = 1, models: Any = ()
    ) -> Message:
        """Run a prompt to its end: {"status", "outputs", "meta", "messages", "facts"}. Raises WorkerDied.

        The process ends with a prompt that was paused: only that gives back all its memory, on a card also the driver's
        share. The next call starts another one. attempt, models: of no interest to a process of this machine.
        """
        process = await self._started()
        message = {"op": "run", "prompt_id": prompt_id, "prompt": prompt, "extra_data": extra_data, "outputs": outputs}
        done = await process.ask(prompt_id, message)
        if done.get("paused") and self._process is process:
            await self.stop()
        return done

    def is_running(self, prompt_id: str) -> bool:
        """Whether it was given this prompt and has not brought it to an end."""
        return self._process is not None and self._process.waits_for(prompt_id)

    def tell(self, op: str, **arguments: Any) -> None:
        """Send a message that has no answer. Does nothing without a worker."""
        if self._process is not None:
            self._process.say({"op": op, **arguments})

    async def stop(self) -> None:
        """End the process and all processes that it started, by force if necessary."""
        process, self._process = self._process, None
        if process is not None:
            await process.end()

    async def _started(self) -> _Process:
        if self._process is None or self._process.dead:
            self._process = _Process(self.options, self._on_message, self._log)
        process = self._process
        try:
            await asyncio.wait_for(asyncio.shield(process.ready), START_SECONDS)
        except asyncio.TimeoutError:
            await self.stop()
            raise WorkerDied(f"The worker process was not ready after {START_SECONDS:.0f} seconds.") from None
        return process


class _Process:
    """One process of the worker."""

    def __init__(self, options: Mapping[str, Any], on_message: OnMessage, log: Log) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message, self._log = on_message, log
        self._answers: dict[int | str, asyncio.Future[Message]] = {}  # by number of the call, or id of the prompt
        self._calls = 0
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._last_lines: deque[str] = deque(maxlen=20)
        self.dead: WorkerDied | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.popen = subprocess.Popen(
            [sys.executable, str(_ENTRY), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},  # for what node packs print; `_relay` reads UTF-8
            start_new_session=True,  # Ctrl-C at the terminal goes to the server only
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._tree = ProcessTree(self.popen.pid)
        self._relaying = threading.Thread(target=self._relay, daemon=True)
        self._relaying.start()
        for thread in (self._write, self._listen):
            threading.Thread(target=thread, daemon=True).start()

    def waits_for(self, key: int | str) -> bool:
        """Whether an answer with this key is expected."""
        return key in self._answers

    def next_call(self) -> int:
        """A unique number for a call."""
        self._calls += 1
        return self._calls

    async def ask(self, key: int | str, message: Message, payload: bytes = b"") -> Message:
        """Send a message and wait for its answer."""
        if self.dead is not None:
            raise self.dead
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._answers[key] = answer
        try:
            self.say(message, payload)
            return await answer
        finally:
            self._answers.pop(key, None)

    def say(self, message: Message, payload: bytes = b"") -> None:
        """Send a message without waiting. If the worker has died, the reading thread notices."""
        self._frames.put(frame_of(message, payload))

    async def end(self) -> None:
        """Request the process to end, then kill it with all processes that it started."""
        self._tree.terminate()
        for _ in range(20):
            if self.popen.poll() is not None:
                break
            await asyncio.sleep(STOP_SECONDS / 20)
        self._tree.kill()
        await asyncio.to_thread(self.popen.wait)

    # -- the threads -------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            while (frame := self._frames.get()) is not None:
                self.popen.stdin.write(frame)
                self.popen.stdin.flush()

    def _relay(self) -> None:
        assert self.popen.stderr is not None
        while line := self.popen.stderr.readline(_LONGEST_LINE):
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            self._post(self._log, text)

    def _listen(self) -> None:
        assert self.popen.stdout is not None
        channel = Channel(cast(BinaryIO, self.popen.stdout), cast(BinaryIO, self.popen.stdout))
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                self._post(self._received, *channel.receive())
        code = self.popen.wait()
        self._relaying.join(LAST_LINE_SECONDS)  # what it printed last says why it ended
        self._frames.put(None)
        self._post(self._died, code)

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is shutting down
            self._loop.call_soon_threadsafe(function, *arguments)

    # -- back in the event loop --------------------------------------------------------------------------------------

    def _received(self, message: Message, payload: bytes) -> None:
        if "ready" in message:
            if not self.ready.done():
                self.ready.set_result(None)
            return
        key = message.get("reply", message.get("done"))
        if key is None:
            self._on_message(message, payload)
            return
        answer = self._answers.get(key)
        if answer is not None and not answer.done():
            answer.set_result({**message, "payload": payload} if payload else message)

    def _died(self, code: int) -> None:
        self.dead = WorkerDied(_how_it_ended(code, self._last_lines), code == _KILLED)
        futures: list[asyncio.Future[Any]] = [*self._answers.values(), self.ready]
        for future in futures:
            if not future.done():
                future.set_exception(self.dead)
                future.exception()  # marks the exception as retrieved: nothing may be waiting for it any more


def _how_it_ended(code: int, last_lines: deque[str]) -> str:
    printed = [line for line in last_lines if line.strip()]
    last = f" Its last line: {printed[-1]}" if printed else ""
    if code == _KILLED:
        return (
            "The worker process was killed. Unless a user killed it, the system ran out of memory: lower --ram, or "
            f"choose a smaller image or model file.{last}"
        )
    if code < 0:
        name = next((number.name for number in signal.Signals if number == -code), f"signal {-code}")
        return f"The worker process crashed ({name}).{last}"
    return f"The worker process ended with code {code}.{last}"


def with_budget(options: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """A worker's options with another budget, which holds for each device of its team. words: {"vram", "ram"}."""
    found = {**options, **words}
    if options.get("team"):
        found["team"] = {**options["team"], "members": [{**member, **words} for member in options["team"]["members"]]}
    return found
