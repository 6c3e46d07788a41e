"""Takes jobs from the store and gives them to workers; stops, pauses and removes them when a route asks for it.

A job waits in the store, runs on a member, and ends or waits again (job_ends.py); `_wake` lets the loop look again
after each change. `assign.py` decides which job goes to which worker, `leases.py` when none may begin,
`announcements.py` sends the state of the queue, and `worker_events.py` the messages of workers.

Independent of: HTTP, nodes, torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from ..workers.process import OnMessage
from ..workers.protocol import Message
from ..workers.unfinished import forget, forget_others
from .announcements import Announcements
from .assign import assign, next_look
from .clients import Clients
from .job import Job
from .job_ends import RETRY_SECONDS, JobEnds, Run
from .leases import Lending
from .members import Connection, Member, Members
from .store import CannotWrite, Store
from .worker_events import pass_on

log = logging.getLogger(__name__)

INSIST_SECONDS = 2.0  # after which a second request to stop a job ends its process; before, it may be a double click

Start = Callable[[OnMessage], Connection]


class JobRunner:
    """`members` are the workers, each with its current job."""

    def __init__(self, store: Store, clients: Clients, start: Mapping[str, Start], user: Path) -> None:
        """start: creates the workers of this machine, by name; each is given the receiver of its messages. user: the
        folder with the evaluations of unfinished jobs.
        """
        self.store, self.clients, self.user = store, clients, user
        forget_others(user, store.unfinished_ids())
        self.members = Members()
        self.announcements = Announcements(store, self.members, clients)
        self.lending = Lending(self.members, store, clients, self._look_again)
        self._ends = JobEnds(store, clients, self.announcements, self.lending, user)
        for name, begin in start.items():
            self.join(name, begin)
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self, name: str, start: Start) -> Member:
        """Add a worker. Raises KeyError if the name is taken."""
        member: Member

        def heard(message: Message, payload: bytes) -> None:
            pass_on(member, message, payload, self.clients, self.announcements)

        member = Member(name, start(heard))
        self.members.add(member)
        return member

    def _look_again(self) -> None:
        self._wake.set()

    def look(self) -> None:
        """Called when workers were added, removed or changed: assign jobs again, and inform the clients."""
        self._wake.set()
        self.announcements.workers_changed()

    @property
    def worker(self) -> Connection:
        """The worker that answers calls."""
        return self.members.first.worker

    # -- called by routes --------------------------------------------------------------------------------------------

    def add(self, prompt_id: str, number: float, request: dict[str, Any]) -> Job:
        """Queue a job; it is on disk when this returns. Raises KeyError if the id is taken, CannotWrite."""
        job = self.store.add(prompt_id, number, request)
        self._wake.set()
        self.announcements.queue_changed()
        return job

    def interrupt(self, prompt_id: str | None = None, client_id: str | None = None) -> bool:
        """Stop running jobs after the current block: this one, all, or a client's. Returns whether there was one.

        A job that is asked again later, and runs here, is ended with its process: a block of a very large image takes
        hours, and a node of a pack may not end at all. The next job starts another process.
        """
        chosen = [
            member
            for member in self.members.busy
            if member.running is not None
            and prompt_id in (None, member.running.prompt_id)
            and client_id in (None, member.running.request["client_id"])
        ]
        for member in chosen:
            self._stop(member)
        return bool(chosen)

    def _stop(self, member: Member) -> None:
        """Stop a running job. This is stored first, so that the job does not run again after a restart."""
        assert member.running is not None
        running = member.running.prompt_id
        try:
            if self.store.is_paused(running):  # it is stopping already, and was paused
                self.clear([running])
            self.store.cancel(running)
        except CannotWrite as error:  # stop it in any case
            log.error("%s", error)
        if member.here and member.stopping and time.monotonic() - member.stopping > INSIST_SECONDS:
            log.warning("The job %s did not stop and was stopped again: its process is ended.", running)
            self._go(member.worker.stop())
            return
        member.stopping = member.stopping or time.monotonic()
        member.worker.tell("interrupt", prompt_id=running)
        self.clients.send("sluice.stopping", {"prompt_id": running})

    def cancel(self, prompt_id: str) -> bool:
        """Take a waiting job out of the queue, or stop it if it is running."""
        return bool(self.clear([prompt_id])) or self.interrupt(prompt_id)

    def pause(self, prompt_id: str | None = None) -> list[str]:
        """Pause a waiting or running job, or all running ones. Returns those that were paused. Raises CannotWrite.

        A running one stops after its current block and frees its memory; its evaluations are kept.
        """
        chosen = self.members.running_ids if prompt_id is None else [prompt_id]
        paused = [one for one in chosen if self.store.pause(one)]
        for one in paused:
            self.announcements.aside.pop(one, None)
            member = self.members.running(one)
            if member is not None:
                member.worker.tell("pause", prompt_id=one)
                self.clients.send("sluice.stopping", {"prompt_id": one})
        self.announcements.paused_changed()
        return paused

    def unpause(self, prompt_id: str | None = None) -> list[str]:
        """Resume a paused job, or all of them. Returns those that were resumed. Raises CannotWrite."""
        known = [job["prompt_id"] for job in self.announcements.paused] if prompt_id is None else [prompt_id]
        # A job that is still stopping stays paused.
        stopped = [one for one in known if one not in self.members.running_ids]
        resumed = [one for one in stopped if self.store.unpause(one)]
        self._wake.set()
        self.announcements.paused_changed()
        return resumed

    def clear(self, prompt_ids: list[str] | None = None) -> list[str]:
        """Remove waiting jobs from the queue; None means all. Returns the removed ones."""
        gone = self.store.delete_waiting(prompt_ids)
        for prompt_id in gone:
            forget(self.user, prompt_id)
            self.announcements.aside.pop(prompt_id, None)
        if gone:
            self.announcements.paused_changed()
        return gone

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run jobs until cancelled."""
        while True:
            self._wake.clear()
            try:
                again = self._start_jobs()
            except CannotWrite as error:
                log.error("%s", error)
                again = RETRY_SECONDS
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), again)

    def _start_jobs(self) -> float | None:
        """Start the jobs that can start. Returns seconds until more may start without an event. Raises CannotWrite."""
        lent = self.lending.left
        while True:
            places = [member.place for member in self.members if not (lent and member.here)]
            free = sum(place.free for place in places)
            if not free or not self.store.waiting:
                break
            others = self.store.others_wait
            for given in assign(self.store.groups(free, self._ends.seconds), places, time.time()):
                job = self.store.take(given.prompt_id)
                if job is not None:
                    self._begin(job, self.members[given.place], given.cold)
            if not others or self.store.others_wait:
                break
        self._let_others_first()
        if not free or not self.store.waiting:
            return lent or None
        again = next_look(self.store.groups(1, self._ends.seconds), time.time())
        return min((seconds for seconds in (again, lent or None) if seconds is not None), default=None)

    def _let_others_first(self) -> None:
        """While jobs wait and no worker is free: one worker's job stops after its step, if it lets others go first."""
        idle = any(member.place.free or member.stepping_aside for member in self.members)
        if idle or not self.store.others_wait:
            return
        member = next((one for one in self.members.busy if one.running and one.running.lets_others_first), None)
        if member is not None and member.running is not None:
            member.stepping_aside = True
            member.worker.tell("step_aside", prompt_id=member.running.prompt_id)
            self.announcements.aside[member.running.prompt_id] = member.running
            self.announcements.paused_changed()

    def _begin(self, job: Job, member: Member, cold: bool) -> None:
        member.begin(job, job.models, cold)
        if self.announcements.aside.pop(job.prompt_id, False):
            self.announcements.paused_changed()
        self.announcements.queue_changed()
        self.announcements.workers_changed()
        self._go(self._one(job, member, member.worker.run))

    def resume(self, member: Member, prompt_id: str, attempt: int, rest: Run) -> bool:
        """A remote worker reports that it runs a job. Returns whether it may; `rest` then waits for the result."""
        if member.running is not None:
            return (member.running.prompt_id, member.running.attempts) == (prompt_id, attempt)
        job = self.store.resume(prompt_id, attempt)
        if job is None:
            return False
        member.begin(job, job.models, cold=False)
        self.announcements.queue_changed()
        self._go(self._one(job, member, rest))
        return True

    async def _one(self, job: Job, member: Member, run: Run) -> None:
        """Run one job from its start to its end."""
        try:
            await self._ends.follow(job, member, run)
        finally:
            self._wake.set()

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Return running jobs to the queue and stop the workers. `run` must have been cancelled."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for member in self.members.busy:
            if member.running is not None:
                self.store.release(member.running.prompt_id)
        await asyncio.gather(*(member.worker.stop() for member in self.members))
