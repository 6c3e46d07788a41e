"""Takes jobs from the store, has the worker run them, writes down what came of them, and tells those who listen.

The order matters to clients: a result is in the history before `executing {node: null}` says that it is finished.

Does not know: HTTP, nodes, torch.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from .clients import Clients
from .pipe import Message
from .store import CANCELLED, COMPLETED, FAILED, Job, Store, now
from .worker import Worker, WorkerDied

_STATUS = {"success": COMPLETED, "error": FAILED, "interrupted": CANCELLED}
_TO_EVERYONE = {"execution_interrupted"}


class Conductor:
    def __init__(self, store: Store, clients: Clients) -> None:
        self.store, self.clients = store, clients
        self.worker: Worker | None = None
        self.running: Job | None = None
        self.last_events: dict[str, Any] = {}  # newest event of each of our own kinds, for pages that open later
        self._wake = asyncio.Event()
        self._executed: list[str] = []
        self._node: str | None = None

    # -- asked by routes ---------------------------------------------------------------------------------------------

    def add(self, prompt_id: str, number: float, request: dict[str, Any]) -> Job:
        """Queue a job; it is on disk when this returns. Raises KeyError if the id is taken."""
        job = self.store.add(prompt_id, number, request)
        self._wake.set()
        self.tell_status()
        return job

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Stop the running job (if it is this one). Whether there was one."""
        if self.running is None or prompt_id not in (None, self.running.prompt_id):
            return False
        assert self.worker is not None
        self.worker.tell("interrupt", prompt_id=self.running.prompt_id)
        return True

    def cancel(self, prompt_id: str) -> bool:
        """Take a waiting job out of the queue, or stop it if it is running."""
        gone = bool(self.store.delete_waiting([prompt_id]))
        if gone:
            self.tell_status()
        return gone or self.interrupt(prompt_id)

    def clear(self, prompt_ids: list[str] | None = None) -> None:
        """Take waiting jobs out of the queue; None means all."""
        if self.store.delete_waiting(prompt_ids):
            self.tell_status()

    @property
    def running_ids(self) -> list[str]:
        return [] if self.running is None else [self.running.prompt_id]

    @property
    def status(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": self.store.waiting + len(self.running_ids)}}

    def tell_status(self) -> None:
        self.clients.send("status", {"status": self.status})

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            job = self.store.take()
            if job is None:
                self._wake.clear()
                await self._wake.wait()
            else:
                await self._one(job)

    async def _one(self, job: Job) -> None:
        assert self.worker is not None
        self.running, self._executed, self._node = job, [], None
        self.tell_status()
        request = job.request
        try:
            done = await self.worker.run(job.prompt_id, request["prompt"], request["extra_data"], request["outputs"])
        except (WorkerDied, TimeoutError) as error:
            done = self._died(job, error)
        result = {
            "outputs": done["outputs"],
            "meta": done["meta"],
            "status": {
                "status_str": "success" if done["status"] == "success" else "error",
                "completed": done["status"] == "success",
                "messages": done["messages"],
            },
        }
        self.store.finish(job.prompt_id, _STATUS[done["status"]], result)
        self.running = None
        self.tell_status()
        self.clients.send("executing", {"node": None, "prompt_id": job.prompt_id}, request["client_id"])

    def _died(self, job: Job, error: Exception) -> Message:
        """The account of a job whose worker did not live to give one."""
        node = job.request["prompt"].get(self._node or "", {})
        data = {
            "prompt_id": job.prompt_id,
            "node_id": self._node or "",
            "node_type": node.get("class_type", ""),
            "executed": self._executed,
            "exception_message": str(error),
            "exception_type": type(error).__name__,
            "traceback": [],
            "current_inputs": {},
            "current_outputs": [],
            "timestamp": now(),
        }
        self.clients.send("execution_error", data, job.request["client_id"])
        return {"status": "error", "outputs": {}, "meta": {}, "messages": [["execution_error", data]]}

    # -- heard from the worker ---------------------------------------------------------------------------------------

    def heard(self, message: Message, payload: bytes) -> None:
        """An event or a preview, on its way to who submitted the job."""
        client_id = None if self.running is None else self.running.request["client_id"]
        if "preview" in message:
            if client_id is not None:
                self.clients.send_preview(message["preview"], message["image_type"], payload, client_id)
            return
        event, data = message["event"], message["data"]
        if event == "executing":
            self._node = data["node"]
        elif event == "progress_state":
            self._executed = [one for one, state in data["nodes"].items() if state.get("state") == "finished"]
        if event.startswith("sluice."):
            self.last_events[event] = data
            self.clients.send(event, data)
        elif event in _TO_EVERYONE:
            self.clients.send(event, data)
        elif client_id is not None:
            self.clients.send(event, data, client_id)

    async def close(self) -> None:
        if self.worker is not None:
            with contextlib.suppress(ProcessLookupError):
                await self.worker.stop()
