"""Follows one job on a worker to its end: what the end means, its result in the store, and what clients are told.

    the worker's answer   its result, or the job was paused, gave way to another program or lets other jobs go first
    the worker died       an error, unless the job was cancelled or paused meanwhile
    contact was lost      the job waits for another worker, unless it was cancelled or has been tried too often

A job that goes on later keeps its evaluations and its place in the queue. Clients depend on the order: a result is in
the history before `executing {node: null}` reports the end of the job.

Independent of: HTTP, which job runs when, nodes, torch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ..errors import SluiceError
from ..workers.process import LostContact, WorkerDied
from ..workers.protocol import Message
from ..workers.unfinished import forget
from . import job_results
from .announcements import Announcements
from .assign import Models
from .clients import Clients
from .job import CANCELLED, COMPLETED, FAILED, Job
from .leases import Lending
from .members import Member
from .store import ATTEMPTS, CannotWrite, Store

log = logging.getLogger(__name__)

GIVE_WAY_SECONDS = 30.0  # for which a job leaves the card to a program that took memory without asking
RETRY_SECONDS = 2.0  # between attempts to write on a full disk
_STATUS = {"success": COMPLETED, "error": FAILED, "interrupted": CANCELLED}
_NEWEST = 0.3  # weight of the newest job in the expected time of a job with the same models

Run = Callable[..., Awaitable[Message]]  # sends a job to a worker, or waits for one that it has; returns the result


class JobEnds:
    """`seconds`: the recent time of a job with these models."""

    def __init__(
        self, store: Store, clients: Clients, announcements: Announcements, lending: Lending, user: Path
    ) -> None:
        """user: the folder with the evaluations of unfinished jobs."""
        self._store, self._clients, self._announcements = store, clients, announcements
        self._lending, self._user = lending, user
        self.seconds: dict[Models, float] = {}

    async def follow(self, job: Job, member: Member, run: Run) -> None:
        """Run one job, and do what its end requires. The worker has no job then."""
        try:
            done = await self._outcome(job, member, run)
            if done is not None:
                await self._end(job, member, done)
        except Exception:  # an error of ours must not stop the queue
            log.exception("The job %s could not be finished.", job.prompt_id)
            unnoted = SluiceError("The server could not store the result of this job.")
            await self._end(job, member, self._failed(job, member, unnoted))

    async def _outcome(self, job: Job, member: Member, run: Run) -> Message | None:
        """The worker's result, or the one that an error means; None if the job waits for another worker."""
        request = job.request
        try:
            return await run(
                job.prompt_id,
                request["prompt"],
                request["extra_data"],
                request["outputs"],
                attempt=job.attempts,
                models=request.get("models", ()),
            )
        except LostContact as error:
            member.died()
            return self._lost(job, member, error)
        except WorkerDied as error:
            member.died()
            return self._died(job, member, error)
        except SluiceError as error:
            return self._failed(job, member, error)

    # -- what an error means -----------------------------------------------------------------------------------------

    def _lost(self, job: Job, member: Member, error: LostContact) -> Message | None:
        """The result of a job whose worker cannot be reached; None if the job waits again."""
        if self._store.is_cancelled(job.prompt_id):
            return self._interrupted(job)
        if error.counts and job.attempts >= ATTEMPTS:
            return self._failed(job, member, SluiceError(f"{error} The job was tried {ATTEMPTS} times."))
        log.warning("%s Its job waits for another worker.", error)
        self._store.wait_again(job.prompt_id, error.counts)
        member.running = None
        self._announcements.queue_changed()
        self._announcements.workers_changed()
        return None

    def _died(self, job: Job, member: Member, error: WorkerDied) -> Message:
        """The result of a job whose worker has died: while it was stopping, that is what was asked for."""
        if self._store.is_cancelled(job.prompt_id):
            return self._interrupted(job)
        paused = self._store.is_paused(job.prompt_id)
        return job_results.PAUSED_ALREADY if paused else self._failed(job, member, error)

    def _interrupted(self, job: Job) -> Message:
        """The result of a job that was being stopped; the client of the job is informed."""
        return self._told(job, job_results.interrupted(job))

    def _failed(self, job: Job, member: Member, error: SluiceError) -> Message:
        """The result of a job that ended with this error; the client of the job is informed."""
        return self._told(job, job_results.failed(job, member, error))

    def _told(self, job: Job, done: Message) -> Message:
        event, data = done["messages"][0]
        self._clients.send(event, data, job.request["client_id"])
        return done

    # -- what an end requires ----------------------------------------------------------------------------------------

    async def _end(self, job: Job, member: Member, done: Message) -> None:
        member.stepping_aside = False
        if not done.get("aside") and self._announcements.aside.pop(job.prompt_id, False):
            self._announcements.paused_changed()
        later = self._goes_on_later(job, done)
        if not later:
            if done.get("paused") or done.get("aside"):  # it was cancelled while it stopped for a lease
                done = self._interrupted(job)
            await self._finish(job, member, done)
        member.running = None
        if later:
            self._announcements.paused_changed()
        else:
            self._announcements.queue_changed()
        self._announcements.workers_changed()
        self._clients.send("executing", {"node": None, "prompt_id": job.prompt_id}, job.request["client_id"])

    def _goes_on_later(self, job: Job, done: Message) -> bool:
        """Whether a job has stopped for a time: it was paused, or waits again because another program has the card or
        because it lets others go first.
        """
        if not (done.get("paused") or done.get("aside")):
            return False
        if self._store.is_paused(job.prompt_id):
            return True
        if self._store.is_cancelled(job.prompt_id):
            return False
        self._store.wait_again(job.prompt_id, counts=False)
        if done.get("gave_way"):
            log.info("Another program has taken memory: the job waits for %.0f seconds.", GIVE_WAY_SECONDS)
            self._lending.add("another program", GIVE_WAY_SECONDS)
        return True

    async def _finish(self, job: Job, member: Member, done: Message) -> None:
        """Store the result of a job that has ended. The images are saved: it waits until their entry can be written."""
        if done["status"] == "error":
            log.error("%s", job_results.failure_line(job, done["messages"]))
        done["facts"]["worker"] = member.name
        self._expect(job.models, done["facts"].get("seconds"))
        result = job_results.stored(done)
        while True:
            try:
                self._store.finish(job.prompt_id, _STATUS[done["status"]], result, job.attempts)
                break
            except CannotWrite as error:
                log.error("%s", error)
                await asyncio.sleep(RETRY_SECONDS)
        forget(self._user, job.prompt_id)

    def _expect(self, models: Models, seconds: Any) -> None:
        """Update the expected time of jobs with the same models after a job has ended."""
        if isinstance(seconds, (int, float)):
            before = self.seconds.get(models, seconds)
            self.seconds[models] = before + _NEWEST * (seconds - before)
