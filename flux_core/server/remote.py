"""A worker on another machine: the same interface as a process of the server, over a WebSocket.

    connected -> out of contact -> connected again        its job continues
                        | the lease ends
                        v
                       gone                               its job waits for another worker

Independent of: HTTP, the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ..errors import InputError, MissingFileError, SluiceError, WorkflowError
from ..workers.process import LostContact, OnMessage, WorkerDied
from ..workers.protocol import Message, frame_of
from .remote_files import NeededFiles, Results

LEASE_SECONDS = 10.0  # an unreachable worker keeps its job for this time, unless the server sets another
_KINDS: dict[str, type[SluiceError]] = {kind.__name__: kind for kind in (WorkflowError, InputError, MissingFileError)}

Send = Callable[[bytes], None]


class RemoteWorker:
    """One remote worker. session: identifies one process of the program there. Use in the event loop only."""

    pid: int | None = None

    def __init__(
        self, name: str, session: str, on_message: OnMessage, needed: NeededFiles, results: Results,
        on_gone: Callable[[], None], lease: float = LEASE_SECONDS,
    ) -> None:  # fmt: skip
        """on_message: receives events and previews. on_gone: called once, when the worker has gone for good.

        lease: seconds for which it may be out of contact.
        """
        self._seconds = lease
        self.name, self.session = name, session
        self.options: dict[str, Any] = {}
        self._on_message, self._on_gone, self._needed, self._results = on_message, on_gone, needed, results
        self._send: Send | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._calls = 0
        self._job: tuple[str, int] | None = None
        self._done: asyncio.Future[Message] | None = None
        self._lease: asyncio.TimerHandle | None = None
        self._gone = False

    # -- the connection ----------------------------------------------------------------------------------------------

    def connected(self, send: Send) -> None:
        """It is connected (again); `send` takes frames for it and never waits."""
        self._send = send
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None

    def disconnected(self, send: Send) -> bool:
        """A connection has ended. If it was the newest, the lease begins. Returns whether it was the newest."""
        if self._send is not send:
            return False
        self._send = None
        if not self._gone:
            self._lease = asyncio.get_running_loop().call_later(self._seconds, self.lose)
        return True

    def lose(self, counts: bool = True) -> None:
        """Treat the worker as gone for good. counts: whether this counts as an attempt at its job."""
        if self._gone:
            return
        self._gone, self._send = True, None
        if self._lease is not None:
            self._lease.cancel()
        self._fail(LostContact(f"The worker {self.name} {'is out of reach' if counts else 'has left'}.", counts))
        self._on_gone()

    def _fail(self, error: WorkerDied) -> None:
        for future in (*self._answers.values(), self._done):
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # marks the exception as retrieved: nothing may be waiting for it any more

    # -- calls -------------------------------------------------------------------------------------------------------

    async def call(self, op: str, **arguments: Any) -> Any:
        """Send a call and wait for its reply. Raises LostContact, or the SluiceError that the worker raised."""
        self._calls += 1
        number = self._calls
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._say({"op": op, "call": number, **arguments})
            reply = await answer
        finally:
            del self._answers[number]
        if "error" in reply:
            raise _KINDS.get(reply["type"], SluiceError)(reply["error"])
        return reply["result"]

    async def call_route(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Any:
        """Routes of node packs are answered by workers of the server's own machine."""
        raise SluiceError("A worker on another machine answers no routes.")

    async def run(
        self, prompt_id: str, prompt: Any, extra_data: Any, outputs: list[str], attempt: int = 1, models: Any = ()
    ) -> Message:
        """Run a prompt to its end. Raises LostContact, WorkerDied; SluiceError if one of its files is not available."""
        files = await asyncio.to_thread(self._needed.of, prompt, models)
        message = {
            "op": "run", "prompt_id": prompt_id, "attempt": attempt, "prompt": prompt, "extra_data": extra_data,
            "outputs": outputs, "files": files,
        }  # fmt: skip
        return await self._result(prompt_id, attempt, message)

    async def rest(
        self, prompt_id: str, prompt: Any, extra_data: Any, outputs: list[str], attempt: int = 1, models: Any = ()
    ) -> Message:
        """`run` for a prompt that the worker is already running."""
        return await self._result(prompt_id, attempt, None)

    async def _result(self, prompt_id: str, attempt: int, message: Message | None) -> Message:
        self._job, self._done = (prompt_id, attempt), asyncio.get_running_loop().create_future()
        try:
            if message is not None:
                self._say(message)
            return await self._done
        finally:
            self._job = self._done = None

    def tell(self, op: str, **arguments: Any) -> None:
        """Send a message that has no reply. If the worker is out of reach, a job that is to be stopped counts as
        ended.
        """
        if self._send is not None:
            self._send(frame_of({"op": op, **arguments}))
        elif op == "interrupt" and self._done is not None:
            self._fail(LostContact(f"The worker {self.name} is out of reach."))

    async def stop(self) -> None:
        """The server ends. The worker continues, and delivers its result when it reconnects."""
        self._send = None

    def _say(self, message: Message) -> None:
        if self._send is None:
            raise LostContact(f"The worker {self.name} is out of reach.", counts=False)
        self._send(frame_of(message))

    # -- received ----------------------------------------------------------------------------------------------------

    async def received(self, message: Message, payload: bytes) -> None:
        """Handle a frame. Events and previews of a job count only while the worker has the job."""
        if "reply" in message:
            answer = self._answers.get(message["reply"])
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif "file" in message:
            await self._file(message, payload)
        elif self._ends(message):
            self._end(message)
        elif "event" in message or "preview" in message or "tell" in message:
            if message.get("event") == "executed":
                message = {**message, "data": self._results.renamed(message["data"])}
            if self._job is not None or str(message.get("event", "")).startswith("sluice."):
                self._on_message(message, payload)

    async def _file(self, message: Message, payload: bytes) -> None:
        about = message["file"]
        if self._job != (about["prompt_id"], about["attempt"]):
            return  # of a job that another worker has now
        try:
            await asyncio.to_thread(self._results.receive, about, bool(message["last"]), payload)
        except SluiceError as error:
            if self._done is not None and not self._done.done():
                self._done.set_exception(error)

    def _ends(self, message: Message) -> bool:
        return any(kind in message for kind in ("done", "died", "unable"))

    def _end(self, message: Message) -> None:
        prompt_id = message.get("done") or message.get("died") or message.get("unable")
        if self._send is not None:
            self._send(frame_of({"op": "taken", "prompt_id": prompt_id, "attempt": message["attempt"]}))
        if self._done is None or self._done.done() or self._job != (prompt_id, message["attempt"]):
            return  # a late result: the job has ended, or another worker has it
        if "died" in message:
            self._done.set_exception(WorkerDied(message["error"], bool(message["killed"])))
        elif "unable" in message:
            self._done.set_exception(SluiceError(message["error"]))
        else:
            renamed = {key: self._results.renamed(message[key]) for key in ("outputs", "messages")}
            self._done.set_result({**message, **renamed})
