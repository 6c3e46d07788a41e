"""Takes jobs from the store, has the worker run them, writes down what came of them, and tells those who listen.

The order matters to clients: a result is in the history before `executing {node: null}` says that it is finished.

Does not know: HTTP, nodes, torch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ..errors import SluiceError
from ..graph.prompt import name_of
from ..workers.process import OnMessage, Worker, WorkerDied
from ..workers.protocol import Message
from .clients import Client, Clients, text
from .store import CANCELLED, COMPLETED, FAILED, CannotWrite, Job, Store, now

log = logging.getLogger(__name__)

STATUS_SECONDS = 0.03  # in which several changes of the queue are told as one
RETRY_SECONDS = 2.0  # between attempts to write a result on a full disk
_STATUS = {"success": COMPLETED, "error": FAILED, "interrupted": CANCELLED}
_TO_EVERYONE = {"execution_interrupted"}
_MEMORY, _FREED = "sluice.memory.", "sluice.memory.freed"


class JobRunner:
    """`running` is the job the worker has now. `last_events`: the newest event of each of our own kinds."""

    def __init__(self, store: Store, clients: Clients, start: Callable[[OnMessage], Worker]) -> None:
        self.store, self.clients = store, clients
        self.worker = start(self.heard)
        self.running: Job | None = None
        self.last_events: dict[str, Any] = {}
        self._wake = asyncio.Event()
        self._telling = False
        self._node: str | None = None
        self._progress: dict[str, Any] = {}

    # -- asked by routes ---------------------------------------------------------------------------------------------

    def add(self, prompt_id: str, number: float, request: dict[str, Any]) -> Job:
        """Queue a job; it is on disk when this returns. Raises KeyError if the id is taken, CannotWrite."""
        job = self.store.add(prompt_id, number, request)
        self._wake.set()
        self.tell_status()
        return job

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Stop the running job (if it is this one) after its current block. Whether there was one.

        That it is to be stopped is on disk before anything else happens: it is not run again after a restart.
        """
        if self.running is None or prompt_id not in (None, self.running.prompt_id):
            return False
        running = self.running.prompt_id
        try:
            self.store.cancel(running)
        except CannotWrite as error:  # it is stopped all the same
            log.error("%s", error)
        self.worker.tell("interrupt", prompt_id=running)
        self.clients.send("sluice.stopping", {"prompt_id": running})
        return True

    def cancel(self, prompt_id: str) -> bool:
        """Take a waiting job out of the queue, or stop it if it is running."""
        return bool(self.clear([prompt_id])) or self.interrupt(prompt_id)

    def clear(self, prompt_ids: list[str] | None = None) -> list[str]:
        """Take waiting jobs out of the queue; None means all. Those that were there."""
        gone = self.store.delete_waiting(prompt_ids)
        if gone:
            self.tell_status()
        return gone

    @property
    def running_ids(self) -> list[str]:
        return [] if self.running is None else [self.running.prompt_id]

    @property
    def status(self) -> dict[str, Any]:
        """How many jobs are to be done, as clients are told."""
        return {"exec_info": {"queue_remaining": self.store.waiting + len(self.running_ids)}}

    def tell_status(self) -> None:
        """Tell everybody how many jobs are to be done; changes that follow one another closely are told once."""
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_later(STATUS_SECONDS, self._tell_status)

    def _tell_status(self) -> None:
        self._telling = False
        self.clients.send("status", {"status": self.status})

    def greet(self, client: Client) -> None:
        """Tell a new listener how things stand; one that comes back in the middle of its job, where that is."""
        client.put(text("status", {"status": self.status, "sid": client.id}))
        if self.running is None or self.running.request.get("client_id") != client.id or self._node is None:
            return
        prompt_id = self.running.prompt_id
        client.put(text("execution_start", {"prompt_id": prompt_id, "timestamp": now()}))
        client.put(text("executing", {"node": self._node, "display_node": self._node, "prompt_id": prompt_id}))
        if self._progress:
            client.put(text("progress_state", self._progress))

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run jobs until cancelled."""
        while True:
            self._wake.clear()
            try:
                job = self.store.take()
            except CannotWrite as error:
                log.error("%s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if job is None:
                await self._wake.wait()
                continue
            try:
                await self._one(job)
            except Exception:  # a fault of ours must not stop the queue
                log.exception("The job %s could not be brought to its end.", job.prompt_id)
                await self._end(job, self._failed(job, SluiceError("The server could not note what came of this job.")))

    async def close(self) -> None:
        """The running job waits again, the worker ends. `run` must have been cancelled."""
        if self.running is not None:
            self.store.release(self.running.prompt_id)
        await self.worker.stop()

    async def _one(self, job: Job) -> None:
        self.running, self._node, self._progress = job, None, {}
        self.tell_status()
        request = job.request
        try:
            done = await self.worker.run(job.prompt_id, request["prompt"], request["extra_data"], request["outputs"])
        except WorkerDied as error:
            done = self._failed(job, error)
        await self._end(job, done)

    async def _end(self, job: Job, done: Message) -> None:
        if done["status"] == "error":
            log.error("%s", _account(job, done["messages"]))
        await self._write_down(job, done)
        self.running = None
        self.tell_status()
        self.clients.send("executing", {"node": None, "prompt_id": job.prompt_id}, job.request["client_id"])

    async def _write_down(self, job: Job, done: Message) -> None:
        succeeded = done["status"] == "success"
        status = {
            "status_str": "success" if succeeded else "error",
            "completed": succeeded,
            "messages": done["messages"],
        }
        result = {"outputs": done["outputs"], "meta": done["meta"], "status": status, "facts": done["facts"]}
        while True:
            try:
                return self.store.finish(job.prompt_id, _STATUS[done["status"]], result)
            except CannotWrite as error:  # the pictures are saved; their entry must not be lost for want of room
                log.error("%s", error)
                await asyncio.sleep(RETRY_SECONDS)

    def _failed(self, job: Job, error: SluiceError) -> Message:
        """The account of a job that nobody else can give, because its worker did not live to do so."""
        node = job.request["prompt"].get(self._node or "", {})
        states = self._progress.get("nodes", {})
        data = {
            "prompt_id": job.prompt_id,
            "node_id": self._node or "",
            "node_type": node.get("class_type", ""),
            "executed": [one for one, state in states.items() if state.get("state") == "finished"],
            "exception_message": str(error),
            "exception_type": type(error).__name__,
            "traceback": [],
            "current_inputs": {},
            "current_outputs": list(job.request["prompt"]),
            "timestamp": now(),
        }
        if isinstance(error, WorkerDied) and error.killed:
            data["about"] = "memory"
        self.clients.send("execution_error", data, job.request["client_id"])
        messages = [["execution_error", data]]
        return {"status": "error", "outputs": {}, "meta": {}, "messages": messages, "facts": {}}

    # -- heard from the worker ---------------------------------------------------------------------------------------

    def _remember(self, event: str, data: Any) -> None:
        if event == _FREED:  # what was told of memory before does not hold any more
            self.last_events = {kind: told for kind, told in self.last_events.items() if not kind.startswith(_MEMORY)}
        else:
            self.last_events[event] = data

    def heard(self, message: Message, payload: bytes) -> None:
        """An event or a preview, on its way to who submitted the job; our own kinds go to everybody."""
        client_id = None if self.running is None else self.running.request["client_id"]
        if "preview" in message:
            if client_id is not None:
                self.clients.send_preview(message["preview"], message["image_type"], payload, client_id)
            return
        if "tell" in message:
            self.clients.send_for_pack(message["tell"], message.get("data"), payload, message["client_id"])
            return
        event, data = message["event"], message["data"]
        if event == "executing":
            self._node = data["node"]
        elif event == "progress_state":
            self._progress = data
        if event.startswith("sluice."):
            self._remember(event, data)
            self.clients.send(event, data)
        elif event in _TO_EVERYONE:
            self.clients.send(event, data)
        elif client_id is not None:
            self.clients.send(event, data, client_id)
        if event == "sluice.step" and client_id is not None:
            self.clients.send_node_text(data["prompt_id"], data["node_id"], data["text"], client_id)


def _account(job: Job, messages: list[Any]) -> str:
    """A failed job as one line for the terminal and the log panel: in which node, and what went wrong."""
    told = messages[-1][1] if messages else {}
    node_id = str(told.get("node_id", ""))
    node = job.request["prompt"].get(node_id)
    where = f" in {name_of(node_id, node)}" if node else ""
    return f"The job failed{where}: {' '.join(str(told.get('exception_message', '')).split())}"
