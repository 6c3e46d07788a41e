"""Takes jobs from the store, runs them on workers, stores the results, and informs the clients.

`assign.py` decides which job goes to which worker, `announcements.py` sends the state of the queue, `worker_events.py`
the messages of workers, and `job_results.py` has the forms of results.

Clients depend on the order: a result is in the history before `executing {node: null}` reports the end of the job.

Independent of: HTTP, nodes, torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from ..errors import SluiceError
from ..workers.process import LostContact, OnMessage, WorkerDied
from ..workers.protocol import Message
from ..workers.unfinished import forget, forget_others
from . import job_results
from .announcements import Announcements
from .assign import Models, assign, next_look
from .clients import Clients
from .job import CANCELLED, COMPLETED, FAILED, Job
from .leases import Lending
from .members import Connection, Member, Members
from .store import ATTEMPTS, CannotWrite, Store
from .worker_events import pass_on

log = logging.getLogger(__name__)

GIVE_WAY_SECONDS = 30.0  # for which a job leaves the card to a program that took memory without asking
INSIST_SECONDS = 2.0  # after which a second request to stop a job ends its process; before, it may be a double click
RETRY_SECONDS = 2.0  # between attempts to write a result on a full disk
_STATUS = {"success": COMPLETED, "error": FAILED, "interrupted": CANCELLED}
_NEWEST = 0.3  # weight of the newest job in the expected time of a job with the same models

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
        for name, begin in start.items():
            self.join(name, begin)
        self._wake = asyncio.Event()
        self._seconds: dict[Models, float] = {}  # recent time of a job with these models
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
            for given in assign(self.store.groups(free, self._seconds), places, time.time()):
                job = self.store.take(given.prompt_id)
                if job is not None:
                    self._begin(job, self.members[given.place], given.cold)
            if not others or self.store.others_wait:
                break
        self._let_others_first()
        if not free or not self.store.waiting:
            return lent or None
        again = next_look(self.store.groups(1, self._seconds), time.time())
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

    def resume(self, member: Member, prompt_id: str, attempt: int, rest: Callable[..., Awaitable[Message]]) -> bool:
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

    async def _one(self, job: Job, member: Member, run: Callable[..., Awaitable[Message]]) -> None:
        """Run one job from its start to its end."""
        request = job.request
        try:
            try:
                done = await run(
                    job.prompt_id,
                    request["prompt"],
                    request["extra_data"],
                    request["outputs"],
                    attempt=job.attempts,
                    models=request.get("models", ()),
                )
            except LostContact as error:
                member.died()
                lost = self._lost(job, member, error)
                if lost is None:
                    return
                done = lost
            except WorkerDied as error:
                member.died()
                done = self._paused_or_failed(job, member, error)
            except SluiceError as error:
                done = self._failed(job, member, error)
            await self._end(job, member, done)
        except Exception:  # an error of ours must not stop the queue
            log.exception("The job %s could not be finished.", job.prompt_id)
            unnoted = SluiceError("The server could not store the result of this job.")
            await self._end(job, member, self._failed(job, member, unnoted))
        finally:
            self._wake.set()

    async def _end(self, job: Job, member: Member, done: Message) -> None:
        member.stepping_aside = False
        if not done.get("aside") and self.announcements.aside.pop(job.prompt_id, False):
            self.announcements.paused_changed()
        if self._goes_on_later(job, done):
            member.running = None
            self.announcements.paused_changed()
            self.announcements.workers_changed()
            self.clients.send("executing", {"node": None, "prompt_id": job.prompt_id}, job.request["client_id"])
            return
        if done.get("paused") or done.get("aside"):  # it was cancelled while it stopped for a lease
            done = self._interrupted(job)
        if done["status"] == "error":
            log.error("%s", job_results.failure_line(job, done["messages"]))
        done["facts"]["worker"] = member.name
        self._expect(job.models, done["facts"].get("seconds"))
        await self._write_down(job, done)
        forget(self.user, job.prompt_id)
        member.running = None
        self.announcements.queue_changed()
        self.announcements.workers_changed()
        self.clients.send("executing", {"node": None, "prompt_id": job.prompt_id}, job.request["client_id"])

    def _goes_on_later(self, job: Job, done: Message) -> bool:
        """Whether a job has stopped for a time: it was paused, or waits again because another program has the card or
        because it lets others go first.
        """
        if not (done.get("paused") or done.get("aside")):
            return False
        if self.store.is_paused(job.prompt_id):
            return True
        if self.store.is_cancelled(job.prompt_id):
            return False
        self.store.wait_again(job.prompt_id, counts=False)
        if done.get("gave_way"):
            log.info("Another program has taken memory: the job waits for %.0f seconds.", GIVE_WAY_SECONDS)
            self.lending.add("another program", GIVE_WAY_SECONDS)
        return True

    def _expect(self, models: Models, seconds: Any) -> None:
        """Update the expected time of jobs with the same models after a job has ended."""
        if isinstance(seconds, (int, float)):
            before = self._seconds.get(models, seconds)
            self._seconds[models] = before + _NEWEST * (seconds - before)

    async def _write_down(self, job: Job, done: Message) -> None:
        result = job_results.stored(done)
        while True:
            try:
                self.store.finish(job.prompt_id, _STATUS[done["status"]], result, job.attempts)
                return
            except CannotWrite as error:  # the images are saved: wait until their entry can be written
                log.error("%s", error)
                await asyncio.sleep(RETRY_SECONDS)

    def _lost(self, job: Job, member: Member, error: LostContact) -> Message | None:
        """The result of a job whose worker cannot be reached; None if the job waits again."""
        if self.store.is_cancelled(job.prompt_id):
            return self._interrupted(job)
        if error.counts and job.attempts >= ATTEMPTS:
            return self._failed(job, member, SluiceError(f"{error} The job was tried {ATTEMPTS} times."))
        log.warning("%s Its job waits for another worker.", error)
        self.store.wait_again(job.prompt_id, error.counts)
        member.running = None
        self.announcements.queue_changed()
        self.announcements.workers_changed()
        return None

    def _interrupted(self, job: Job) -> Message:
        """The result of a job that was being stopped and whose worker has gone; the client of the job is informed."""
        done = job_results.interrupted(job)
        event, data = done["messages"][0]
        self.clients.send(event, data, job.request["client_id"])
        return done

    def _paused_or_failed(self, job: Job, member: Member, error: WorkerDied) -> Message:
        if self.store.is_cancelled(job.prompt_id):
            return self._interrupted(job)
        paused = self.store.is_paused(job.prompt_id)
        return job_results.PAUSED_ALREADY if paused else self._failed(job, member, error)

    def _failed(self, job: Job, member: Member, error: SluiceError) -> Message:
        """The result of a job whose worker has died; the client of the job is informed."""
        done = job_results.failed(job, member, error)
        event, data = done["messages"][0]
        self.clients.send(event, data, job.request["client_id"])
        return done
