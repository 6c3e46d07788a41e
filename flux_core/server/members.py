"""The server's records of its workers: the job of each, its models in memory, its last events.

Independent of: the queue, HTTP, how a worker is reached.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..workers.protocol import Message
from .assign import Models, Place
from .job import Job

_MEMORY, _FREED = "sluice.memory.", "sluice.memory.freed"


class Connection(Protocol):
    """A worker: a process of this server, or one on another machine."""

    @property
    def pid(self) -> int | None:
        """The process's id, if it is a running process of this server."""

    @property
    def options(self) -> dict[str, Any]:
        """The options of the next process."""

    async def call(self, op: str, **arguments: Any) -> Any:
        """Send a call and wait for its answer. Raises WorkerDied, or the SluiceError that the worker raised."""

    async def call_route(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Any:
        """Send a request to a node pack's route: ({"status", "headers"}, body). Raises as `call`."""

    async def run(
        self, prompt_id: str, prompt: Any, extra_data: Any, outputs: list[str], attempt: int = 1, models: Any = ()
    ) -> Message:
        """Run a prompt to its end. Raises WorkerDied, LostContact; SluiceError if the worker cannot begin."""

    def tell(self, op: str, **arguments: Any) -> None:
        """Send a message that has no answer."""

    async def stop(self) -> None:
        """End the process, or the connection."""


@dataclass(eq=False)
class Member:
    """One worker. running: its job; node, progress: of that job. last_events: the newest event of each
    kind, the oldest one first.
    """

    name: str
    worker: Connection
    running: Job | None = None
    stopping: float = 0.0  # when that job was first asked to stop, by the monotonic clock; 0: it was not
    stepping_aside: bool = False  # whether that job was told to let others go first
    node: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    last_events: dict[str, Any] = field(default_factory=dict)
    warm: Models = frozenset()
    changed: float = float("-inf")  # when it last got other models; seconds since 1970
    taking: bool = True  # whether it takes further jobs
    here: bool = True  # whether it is a process of this machine
    contact: bool = True  # whether it can be reached; always true for processes of this machine
    fetching: str | None = None  # the file that it fetches before its job, with the progress

    @property
    def place(self) -> Place:
        """The worker as `assign` needs it."""
        return Place(self.name, self.running is None and self.taking and self.contact, self.warm, self.changed)

    def begin(self, job: Job, models: Models, cold: bool) -> None:
        """A job starts: the worker then has that job's models, because results of older jobs are dropped."""
        self.stepping_aside, self.stopping = False, 0.0
        self.running, self.node, self.progress, self.warm, self.fetching = job, None, {}, models, None
        if cold:
            self.changed = time.time()

    def note(self, event: str, data: Any) -> None:
        """Store an event of this worker, as the newest one."""
        self.last_events.pop(event, None)
        if event == _FREED:  # earlier events about memory are outdated
            self.warm = frozenset()
            self.last_events = {kind: event for kind, event in self.last_events.items() if not kind.startswith(_MEMORY)}
        else:
            self.last_events[event] = data

    def died(self) -> None:
        """The process has ended; its memory is empty."""
        self.note(_FREED, {})

    @property
    def account(self) -> dict[str, Any]:
        """The worker as JSON for the page; entries about a job are None without one."""
        job = self.running
        return {
            "name": self.name, "job": job and job.prompt_id, "number": job and job.number,
            "client_id": job and job.request["client_id"], "models": sorted(self.warm), "taking": self.taking,
            "contact": self.contact, "fetching": self.fetching,
        }  # fmt: skip


class Members:
    """All workers by name. The first one answers calls: which nodes exist, whether a prompt can run."""

    def __init__(self) -> None:
        self._by_name: dict[str, Member] = {}

    def add(self, member: Member) -> None:
        """Raises KeyError if the name is taken."""
        if member.name in self._by_name:
            raise KeyError(member.name)
        self._by_name[member.name] = member

    def remove(self, member: Member) -> None:
        """Remove a worker."""
        self._by_name.pop(member.name, None)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._by_name.values()))

    def __getitem__(self, name: str) -> Member:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def first(self) -> Member:
        return next(iter(self._by_name.values()))

    @property
    def busy(self) -> list[Member]:
        """The workers with a job."""
        return [member for member in self if member.running is not None]

    @property
    def running_ids(self) -> list[str]:
        """The jobs that run."""
        return [member.running.prompt_id for member in self.busy if member.running is not None]

    def running(self, prompt_id: str) -> Member | None:
        """The worker that runs this job."""
        return next((member for member in self.busy if member.running and member.running.prompt_id == prompt_id), None)
