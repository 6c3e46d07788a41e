"""Sends all clients the state of the queue and of the workers, and a new client the state that it finds.

Independent of: HTTP, how jobs are assigned and run.
"""

from __future__ import annotations

import asyncio
from typing import Any

from .clients import Client, Clients, text
from .job import PAUSED, Job, now
from .members import Members
from .store import Store

STATUS_SECONDS = 0.03  # changes of the queue within this time are sent as one message


class Announcements:
    """The messages about the jobs of `store` and the workers `members`."""

    def __init__(self, store: Store, members: Members, clients: Clients) -> None:
        self._store, self._members, self._clients = store, members, clients
        self.aside: dict[str, Job] = {}  # jobs that let others go first, from when they are told to until they go on
        self._queue_pending = self._workers_pending = False  # whether a message will be sent soon

    @property
    def status(self) -> dict[str, Any]:
        """The number of jobs left, in the form for clients."""
        return {"exec_info": {"queue_remaining": self._store.waiting + len(self._members.running_ids)}}

    @property
    def paused(self) -> list[dict[str, Any]]:
        """The paused jobs for pages: prompt_id, number, when they were created, whether they are still stopping.

        aside: whether they go on without being asked, because they let other jobs go first.
        """
        found, _ = self._store.history.summaries([PAUSED], oldest_first=True)
        both = [(one, False) for one in found] + [(one, True) for one in self.aside.values()]
        return [
            {"prompt_id": one.prompt_id, "number": one.number, "created": one.created,
             "stopping": one.prompt_id in self._members.running_ids, "aside": aside}
            for one, aside in both
        ]  # fmt: skip

    def queue_changed(self) -> None:
        """Send the number of jobs left to all clients; several changes within a short time are sent once."""
        if not self._queue_pending:
            self._queue_pending = True
            asyncio.get_running_loop().call_later(STATUS_SECONDS, self._send_queue)

    def _send_queue(self) -> None:
        self._queue_pending = False
        self._clients.send("status", {"status": self.status})

    def workers_changed(self) -> None:
        """Send the workers and their jobs to all clients; several changes within a short time are sent once."""
        if not self._workers_pending:
            self._workers_pending = True
            asyncio.get_running_loop().call_later(STATUS_SECONDS, self._send_workers)

    def _send_workers(self) -> None:
        self._workers_pending = False
        self._clients.send("sluice.workers", {"workers": [member.account for member in self._members]})

    def paused_changed(self) -> None:
        """Send the paused jobs, and the number of jobs left, to all clients."""
        self.queue_changed()
        self._clients.send("sluice.paused", {"jobs": self.paused})

    def greet(self, client: Client) -> None:
        """Send a new client the current state, and a client whose job is running the progress of that job."""
        client.put(text("status", {"status": self.status, "sid": client.id}))
        for member in self._members.busy:
            if member.running is None or member.running.request.get("client_id") != client.id or member.node is None:
                continue
            prompt_id = member.running.prompt_id
            client.put(text("execution_start", {"prompt_id": prompt_id, "timestamp": now()}))
            client.put(text("executing", {"node": member.node, "display_node": member.node, "prompt_id": prompt_id}))
            if member.progress:
                client.put(text("progress_state", member.progress))
