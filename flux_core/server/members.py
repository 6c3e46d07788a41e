"""The workers as the server knows them: what each is doing, what it has in memory, what it said last.

Does not know: the queue, HTTP, how a worker is reached.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..workers.protocol import Message
from .assign import Models, Place
from .store import Job

_MEMORY, _FREED = "sluice.memory.", "sluice.memory.freed"


class Connection(Protocol):
    """A worker that can be asked: a process of this server, or one on another machine."""

    @property
    def pid(self) -> int | None:
        """Of the process, if it is one of this server's and lives."""

    @property
    def options(self) -> dict[str, Any]:
        """What the next process is started with."""

    async def call(self, op: str, **arguments: Any) -> Any:
        """Ask something and wait for the answer. Raises WorkerDied, or the SluiceError that the worker raised."""

    async def call_route(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Any:
        """Ask a node pack's route: ({"status", "headers"}, the body of the answer). Raises as `call`."""

    async def run(
        self, prompt_id: str, prompt: Any, extra_data: Any, outputs: list[str], attempt: int = 1, models: Any = ()
    ) -> Message:
        """Run a prompt to its end. Raises WorkerDied, LostContact; SluiceError if the worker cannot begin."""

    def tell(self, op: str, **arguments: Any) -> None:
        """Say something that has no answer."""

    async def stop(self) -> None:
        """End the process, or the connection."""


@dataclass(eq=False)
class Member:
    """One worker. `running`: its job; `node`, `progress`: where that is. `last_events`: the newest of each kind."""

    name: str
    worker: Connection
    running: Job | None = None
    node: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    last_events: dict[str, Any] = field(default_factory=dict)
    warm: Models = frozenset()
    changed: float = float("-inf")  # when it was last given other models; seconds since 1970
    taking: bool = True  # whether it takes further jobs
    contact: bool = True  # whether it is heard; always true of processes of this machine
    fetching: str | None = None  # the file that it fetches before its job, and how far that is

    @property
    def place(self) -> Place:
        """What matters for giving it a job."""
        return Place(self.name, self.running is None and self.taking and self.contact, self.warm, self.changed)

    def begin(self, job: Job, models: Models, cold: bool) -> None:
        """It has a job now, and then the models of that job: results of older jobs are dropped when one begins."""
        self.running, self.node, self.progress, self.warm, self.fetching = job, None, {}, models, None
        if cold:
            self.changed = time.time()

    def note(self, event: str, data: Any) -> None:
        """Remember an event about this worker."""
        if event == _FREED:  # what was told of memory before does not hold any more
            self.warm = frozenset()
            self.last_events = {kind: told for kind, told in self.last_events.items() if not kind.startswith(_MEMORY)}
        else:
            self.last_events[event] = data

    def died(self) -> None:
        """Its process has ended, and with it all that was in memory."""
        self.note(_FREED, {})

    @property
    def account(self) -> dict[str, Any]:
        """For the page; what concerns a job is None while there is none."""
        job = self.running
        return {
            "name": self.name, "job": job and job.prompt_id, "number": job and job.number,
            "client_id": job and job.request["client_id"], "models": sorted(self.warm), "taking": self.taking,
            "contact": self.contact, "fetching": self.fetching,
        }  # fmt: skip


class Members:
    """All workers by name. The first one answers questions: what nodes there are, whether a prompt is fit to run."""

    def __init__(self) -> None:
        self._by_name: dict[str, Member] = {}

    def add(self, member: Member) -> None:
        """Raises KeyError if the name is taken."""
        if member.name in self._by_name:
            raise KeyError(member.name)
        self._by_name[member.name] = member

    def remove(self, member: Member) -> None:
        """It is gone for good."""
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
        """Those with a job."""
        return [member for member in self if member.running is not None]

    def running(self, prompt_id: str) -> Member | None:
        """The one that runs this job."""
        return next((member for member in self.busy if member.running and member.running.prompt_id == prompt_id), None)
