"""`sluice work` without its command line: connects a worker process of this machine to a server elsewhere.

    server <- WebSocket -> Dialer <- pipes -> worker process

The worker process is the same as for `sluice serve`, and does not depend on the distance. The Dialer opens the
connection, so this machine needs no open port. It fetches the files of a job, passes frames on, sends results, and
connects again if the connection breaks. A job continues in the meantime, and its result is kept until the server has
it.

Independent of: nodes, the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from ..errors import SluiceError
from .fetch import Fetcher, Needed
from .process import Worker, WorkerDied
from .protocol import Message, frame_of, parsed

HEARTBEAT = 5.0  # seconds without a message of the server after which the connection counts as broken
LARGEST_FRAME = 64 << 20  # bytes
_PART = 4 << 20  # bytes of a result in one frame
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before connecting again; the last one repeats
_QUESTIONS = ("budget", "system", "identity", "packs")  # calls that the server makes to a remote worker

Say = Callable[[str], None]


class Refused(SluiceError):
    """The server does not accept this worker; the text gives the reason."""


class Dialer:
    """One worker and its connection."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        name: str,
        options: Mapping[str, Any],
        fetcher: Fetcher,
        say: Say,
    ) -> None:
        """session: sends the token. url: of the server, without a slash at its end. options: of the worker process."""
        self.name = name
        self._session, self._url, self._fetcher, self._say = session, url, fetcher, say
        self._life = uuid.uuid4().hex
        self._place = Path(options["base"])
        self._worker = Worker(options, self._heard, say)
        self._socket: aiohttp.ClientWebSocketResponse[bool] | None = None
        self._outbox: asyncio.Queue[tuple[Message, bytes]] = asyncio.Queue()
        self._job: tuple[str, int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._result: Message | None = None  # the result, kept until the server has it
        self._taken = asyncio.Event()
        self._sent: dict[tuple[str, str, str], None] = {}  # files that the server has received since it started
        self._files = 0  # events of the running job so far
        self._draining = False
        self._left = asyncio.Event()

    # -- the connection ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `leave` or `drain`. Raises Refused."""
        forwarding = asyncio.create_task(self._forward())
        try:
            failed = 0
            while not self._left.is_set():
                try:
                    await self._one_connection()
                    failed = 0
                except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
                    _raise_if_final(error, self._url, "Authorization" in self._session.headers)
                    if not failed:
                        self._say(f"No connection to {self._url} ({error or type(error).__name__}). Connecting again.")
                    failed += 1
                if self._draining and self._job is None:
                    return
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._left.wait(), _PAUSES[min(failed, len(_PAUSES)) - 1] if failed else 0.2)
        finally:
            forwarding.cancel()
            if self._task is not None:
                self._task.cancel()
            await self._worker.stop()

    async def drain(self) -> None:
        """Take no further job, and return when the result of the running one has been delivered."""
        self._draining = True
        await self._tell({"drain": True})
        while self._job is not None:
            self._taken.clear()
            await self._taken.wait()
        await self.leave()

    async def leave(self) -> None:
        """End at once; the running job returns to the queue."""
        await self._tell({"leave": True})
        self._left.set()
        if self._socket is not None:
            await self._socket.close()

    async def _one_connection(self) -> None:
        identity = await self._worker.call("identity")
        async with self._session.ws_connect(
            f"{self._url}/sluice/worker", heartbeat=HEARTBEAT, max_msg_size=LARGEST_FRAME
        ) as socket:
            running = None if self._job is None else {"prompt_id": self._job[0], "attempt": self._job[1]}
            hello = {"name": self.name, "session": self._life, "clock": time.time(), "running": running, **identity}
            await socket.send_bytes(frame_of({"hello": hello}))
            welcome, _ = parsed(await socket.receive_bytes())
            if "refused" in welcome:
                raise Refused(welcome["refused"])
            self._welcomed(welcome["welcome"])
            self._socket = socket
            try:
                if self._draining:
                    await self._tell({"drain": True})
                if self._result is not None:
                    self._outbox.put_nowait((self._result, b""))
                async for frame in socket:
                    if frame.type is aiohttp.WSMsgType.BINARY:
                        self._ordered(*parsed(frame.data))
            finally:
                self._socket = None

    def _welcomed(self, welcome: Message) -> None:
        self._say(f"{self.name} works for {self._url}.")
        if welcome["warning"]:
            self._say(welcome["warning"])
        if not welcome["known"]:
            self._sent.clear()  # a server that was restarted has no record of files
        if self._job is not None and not welcome["keep"]:
            self._say("The running job has been given to another worker.")
            self._worker.tell("interrupt", prompt_id=self._job[0])
            self._forget()

    # -- messages of the server --------------------------------------------------------------------------------------

    def _ordered(self, message: Message, _: bytes) -> None:
        op = message["op"]
        if op == "run":
            self._task = asyncio.create_task(self._run(message))
        elif op == "interrupt":
            if self._job is not None and message["prompt_id"] == self._job[0]:
                self._interrupt()
        elif op == "taken":
            if self._job == (message["prompt_id"], message["attempt"]):
                self._forget()
        elif "call" in message:
            asyncio.get_running_loop().create_task(self._answer(message))
        else:
            self._worker.tell(op, **{key: value for key, value in message.items() if key != "op"})

    async def _answer(self, message: Message) -> None:
        arguments = {key: value for key, value in message.items() if key not in ("op", "call")}
        try:
            if message["op"] not in _QUESTIONS:
                raise SluiceError(f"A worker on another machine does not answer {message['op']!r}.")
            outcome = {"result": await self._worker.call(message["op"], **arguments)}
            if message["op"] == "budget":
                self._worker.options.update(outcome["result"])  # of the next process
        except SluiceError as error:
            outcome = {"error": str(error), "type": type(error).__name__}
        await self._tell({"reply": message["call"], **outcome})

    # -- a job -------------------------------------------------------------------------------------------------------

    async def _run(self, message: Message) -> None:
        """Run a job from its files to its result, which is kept until the server has it."""
        prompt_id, attempt = message["prompt_id"], message["attempt"]
        self._job, self._files, self._result = (prompt_id, attempt), 0, None
        try:
            for about in message["files"]:
                await self._fetcher.bring(Needed.parse(about), self._fetching)
            done = await self._worker.run(prompt_id, message["prompt"], message["extra_data"], message["outputs"])
        except asyncio.CancelledError:  # before the worker process had the job
            done = _interrupted(prompt_id)
        except WorkerDied as error:
            done = {"died": prompt_id, "error": str(error), "killed": error.killed}
        except SluiceError as error:
            done = {"unable": prompt_id, "error": str(error)}
        if self._job == (prompt_id, attempt):
            self._result = {**done, "attempt": attempt}
            self._outbox.put_nowait((self._result, b""))

    def _interrupt(self) -> None:
        assert self._job is not None
        self._worker.tell("interrupt", prompt_id=self._job[0])
        if self._task is not None and not self._worker.is_running(self._job[0]):
            self._task.cancel()  # it is still fetching files

    def _forget(self) -> None:
        self._job = self._result = None
        self._taken.set()

    def _fetching(self, text: str) -> None:
        assert self._job is not None
        data = {"prompt_id": self._job[0], "text": text}
        self._outbox.put_nowait(({"event": "sluice.fetching", "data": data}, b""))

    # -- messages of the worker process ------------------------------------------------------------------------------

    def _heard(self, message: Message, payload: bytes) -> None:
        self._outbox.put_nowait((message, payload))

    async def _forward(self) -> None:
        """Send the waiting messages in order; the files that a message names are sent before it."""
        while True:
            message, payload = await self._outbox.get()
            if self._socket is None:
                continue  # events are lost with the connection; the result is sent again
            if message.get("event") == "executed":
                await self._send_files(message["data"])
            elif "done" in message:
                await self._send_files(message["outputs"])
            await self._tell(message, payload)

    async def _send_files(self, outputs: Any) -> None:
        if self._job is None:
            return
        for about in _files_in(outputs):
            key = about["type"], about["subfolder"], about["filename"]
            if key in self._sent:
                continue
            path = self._place / about["type"] / about["subfolder"] / about["filename"]
            named = {"prompt_id": self._job[0], "attempt": self._job[1], "index": self._files, **about}
            try:
                data = await asyncio.to_thread(path.read_bytes)
            except OSError:
                continue  # the entry keeps its name, and the page reports that there is no such file
            for start in range(0, max(len(data), 1), _PART):
                part = data[start : start + _PART]
                await self._tell({"file": named, "last": start + _PART >= len(data)}, part)
            if self._socket is not None:
                self._files += 1
                self._sent[key] = None

    async def _tell(self, message: Message, payload: bytes = b"") -> None:
        if self._socket is not None:
            with contextlib.suppress(ConnectionError, RuntimeError, aiohttp.ClientError):
                await self._socket.send_bytes(frame_of(message, payload))


def _raise_if_final(error: Exception, url: str, with_token: bool) -> None:
    """Raise Refused for a response that would be the same the next time. with_token: whether one was given."""
    status = getattr(error, "status", None)
    if status == 401:
        wrong = "does not know this token" if with_token else "asks for a token"
        raise Refused(f"{url} {wrong}. It is printed when the server starts; give it with --token.")
    if status in (403, 404):
        raise Refused(f"{url} answers, but takes no workers from here ({status}). Is it `sluice serve`, by this name?")


def _files_in(outputs: Any) -> Iterator[dict[str, str]]:
    """Files that nodes have created, at any depth of a message: {"type", "subfolder", "filename"}."""
    if isinstance(outputs, dict):
        if isinstance(outputs.get("filename"), str) and outputs.get("type") in ("output", "temp"):
            yield {
                "type": outputs["type"],
                "subfolder": str(outputs.get("subfolder", "")),
                "filename": outputs["filename"],
            }
            return
        outputs = list(outputs.values())
    if isinstance(outputs, list):
        for one in outputs:
            yield from _files_in(one)


def _interrupted(prompt_id: str) -> Message:
    data = {
        "prompt_id": prompt_id,
        "node_id": "",
        "node_type": "",
        "executed": [],
        "timestamp": int(time.time() * 1000),
    }
    messages = [["execution_interrupted", data]]
    return {"done": prompt_id, "status": "interrupted", "outputs": {}, "meta": {}, "messages": messages, "facts": {}}
