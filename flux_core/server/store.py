"""The queue and the history on disk: acknowledged jobs and results survive the death of any process.

One SQLite file (WAL) in the user directory. A job is written before its request is answered, and its result before any
client is informed. This class also has an index of the waiting jobs in memory, because `/queue` is requested constantly
and must not read the disk: a line for each job, and the full text of the first ones.

Independent of: HTTP, websockets, workers, nodes.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import SluiceError
from ..io import strict_json
from .assign import USUAL_SECONDS, Group, Models
from .history import History
from .job import CANCELLED, ENDED, FAILED, PAUSED, PENDING, RUNNING, Job, now

LONGEST_HISTORY = 10_000  # jobs that have ended; older ones are deleted when the file is opened, as in ComfyUI
LISTED_WHOLE = 100  # waiting jobs that `/queue` lists with their prompts
ATTEMPTS = 3  # a job that was running when the server died is queued again up to this number of attempts

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    prompt_id TEXT PRIMARY KEY,
    number    REAL NOT NULL,
    status    TEXT NOT NULL,
    attempts  INTEGER NOT NULL DEFAULT 0,
    created   INTEGER NOT NULL,          -- milliseconds since 1970, as all times here
    started   INTEGER,
    ended     INTEGER,
    request   TEXT NOT NULL,             -- JSON: prompt, extra_data, outputs, client_id, models
    result    TEXT                       -- JSON: outputs, meta, status, facts
);
CREATE INDEX IF NOT EXISTS by_status ON jobs (status, number);
CREATE INDEX IF NOT EXISTS by_end ON jobs (ended);
"""


_ENDED = ", ".join(f"'{status}'" for status in ENDED)

_Entry = tuple[float, int, str]  # number, created, prompt_id of a waiting job; lists of them are sorted


class CannotWrite(SluiceError):
    """Nothing can be written to the disk. Jobs acknowledged before are safe; this one was not stored."""


class Store:
    """Jobs by id, in order of their number. Use from one thread."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises SluiceError if it cannot be used or another server uses it."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=1.0)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")  # a second server on the same directory must not start
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("COMMIT")
        except OSError as error:
            raise SluiceError(f"The folder {path.parent} cannot be made: {error.strerror}.") from error
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise SluiceError(
                    f"Another Sluice server is using {path.parent}. Stop it, or choose another --base-directory."
                ) from error
            raise SluiceError(f"The queue file {path} cannot be used: {error}.") from error
        except sqlite3.DatabaseError as error:
            raise SluiceError(
                f"The queue file {path} is damaged ({error}). Move it away to start with an empty queue."
            ) from error
        self.history = History(self._db, self._writing)
        self._waiting: list[_Entry] = []
        # the same entries by the models that the jobs need; jobs that let others go first are in the second of the two
        self._groups: tuple[dict[Models, list[_Entry]], dict[Models, list[_Entry]]] = {}, {}
        self._later: set[str] = set()  # the waiting jobs that let others go first
        self._models: dict[str, Models] = {}  # of waiting jobs, by prompt_id
        self._lines: dict[str, str] = {}  # prompt_id -> its line as JSON, of waiting jobs
        self._items: dict[str, str] = {}  # prompt_id -> its whole item as JSON, of those that were listed last
        self.put_back = self._put_back()
        self._forget_oldest()
        for job in self._select("status = ? ORDER BY number, created", PENDING):
            self._index(job)
        self._last, self._ended = self._db.execute(
            "SELECT COALESCE(MAX(ABS(number)), 0), COALESCE(MAX(ended), 0) FROM jobs"
        ).fetchone()

    def close(self) -> None:
        """Close the file. The store cannot be used afterwards."""
        self._db.close()

    # -- submitting ------------------------------------------------------------------------------------------------

    def next_number(self) -> float:
        """The next number. Numbers only increase, also for rejected prompts and across restarts."""
        self._last += 1
        return float(self._last)

    def add(self, prompt_id: str, number: float, request: dict[str, Any]) -> Job:
        """Write a new job. Raises KeyError if the id is taken, CannotWrite."""
        job = Job(prompt_id, number, PENDING, 0, now(), None, None, request, None)
        try:
            with self._writing():
                self._db.execute(
                    "INSERT INTO jobs (prompt_id, number, status, created, request) VALUES (?, ?, ?, ?, ?)",
                    (prompt_id, number, PENDING, job.created, strict_json.dumps(request)),
                )
        except sqlite3.IntegrityError:
            raise KeyError(prompt_id) from None
        self._index(job)
        return job

    # -- running ---------------------------------------------------------------------------------------------------

    def take(self, prompt_id: str | None = None) -> Job | None:
        """Mark a waiting job, by default the next one, as running. None if it is not waiting. Raises CannotWrite."""
        if prompt_id is None and self._waiting:
            prompt_id = self._waiting[0][2]
        if prompt_id is None or prompt_id not in self._models:
            return None
        with self._writing():
            self._db.execute(
                "UPDATE jobs SET status = ?, started = ?, attempts = attempts + 1 WHERE prompt_id = ?",
                (RUNNING, now(), prompt_id),
            )
        job = self.get(prompt_id)
        if job is not None:
            self._drop((job.number, job.created, prompt_id))
        return job

    def groups(self, starting: int, seconds: Mapping[Models, float]) -> list[Group]:
        """The waiting jobs by the models they need. starting: how many could start now. seconds: the time of a job.

        Jobs that let others go first are among them only if no other job waits.
        """
        first, later = self._groups
        return [
            Group(
                models,
                [entry[2] for entry in entries[:starting]],
                len(entries),
                entries[0][0],
                entries[0][1] / 1000,
                seconds.get(models, USUAL_SECONDS),
            )
            for models, entries in (first or later).items()
        ]

    @property
    def others_wait(self) -> bool:
        """Whether a job waits that does not let others go first."""
        return bool(self._groups[0])

    def finish(self, prompt_id: str, status: str, result: dict[str, Any], attempt: int | None = None) -> bool:
        """Store the result of a running job. Returns whether it counted. Raises CannotWrite.

        A result counts once: not if the job has ended, waits again, or runs in a later attempt.
        """
        ended = max(now(), self._ended + 1)  # unique, so that the history has a fixed order
        with self._writing():
            cursor = self._db.execute(
                "UPDATE jobs SET status = ?, ended = ?, result = ? "
                "WHERE prompt_id = ? AND status IN (?, ?) AND attempts + (status = ?) = COALESCE(?, attempts)",
                (status, ended, strict_json.dumps(result), prompt_id, RUNNING, PAUSED, PAUSED, attempt),
            )
        if not cursor.rowcount:
            return False
        self._ended = ended
        return True

    def cancel(self, prompt_id: str) -> None:
        """Store that a running job is being stopped, so that it never runs again."""
        interrupted = {"prompt_id": prompt_id, "node_id": "", "node_type": "", "executed": [], "timestamp": now()}
        status = {"status_str": "error", "completed": False, "messages": [["execution_interrupted", interrupted]]}
        result = {"outputs": {}, "meta": {}, "status": status, "facts": {}}
        with self._writing():
            self._db.execute(
                "UPDATE jobs SET result = ? WHERE prompt_id = ? AND status = ?",
                (json.dumps(result), prompt_id, RUNNING),
            )

    def release(self, prompt_id: str) -> None:
        """At a regular end of the server: a running job waits again, as if it had not been taken.

        One that was cancelled has ended.
        """
        with self._writing():
            self._end_cancelled()
            self._db.execute(
                "UPDATE jobs SET status = ?, started = NULL, attempts = attempts - 1 "
                "WHERE prompt_id = ? AND status = ?",
                (PENDING, prompt_id, RUNNING),
            )

    def wait_again(self, prompt_id: str, counts: bool) -> None:
        """A running job waits again because its worker has gone. counts: whether this was one of its attempts."""
        with self._writing():
            self._db.execute(
                "UPDATE jobs SET status = ?, started = NULL, attempts = attempts - ? "
                "WHERE prompt_id = ? AND status = ?",
                (PENDING, 0 if counts else 1, prompt_id, RUNNING),
            )
        job = self.get(prompt_id)
        if job is not None and job.status == PENDING:
            self._index(job)

    def resume(self, prompt_id: str, attempt: int) -> Job | None:
        """Mark a waiting job as running that a worker reports as running, if this was its last attempt."""
        job = self.get(prompt_id) if prompt_id in self._models else None
        if job is None or job.attempts != attempt:
            return None
        with self._writing():
            self._db.execute("UPDATE jobs SET status = ?, started = ? WHERE prompt_id = ?", (RUNNING, now(), prompt_id))
        self._drop((job.number, job.created, prompt_id))
        return self.get(prompt_id)

    def is_cancelled(self, prompt_id: str) -> bool:
        """Whether a running job is being stopped: see `cancel`."""
        job = self.get(prompt_id)
        return job is None or job.result is not None

    def pause(self, prompt_id: str) -> bool:
        """Pause a waiting or running job, also across restarts. Returns whether it was waiting or running. Raises
        CannotWrite.

        A running job counts as if it had not been started. If it completes before it has stopped, it has ended.
        """
        with self._writing():
            cursor = self._db.execute(
                "UPDATE jobs SET attempts = attempts - (status = ?), status = ? "
                "WHERE prompt_id = ? AND status IN (?, ?) AND result IS NULL",
                (RUNNING, PAUSED, prompt_id, PENDING, RUNNING),
            )
        if prompt_id in self._models:
            job = self.get(prompt_id)
            assert job is not None
            self._drop((job.number, job.created, prompt_id))
        return bool(cursor.rowcount)

    def unpause(self, prompt_id: str) -> bool:
        """Return a paused job to its old place in the queue. Returns whether it was paused. Raises CannotWrite."""
        with self._writing():
            cursor = self._db.execute(
                "UPDATE jobs SET status = ?, started = NULL WHERE prompt_id = ? AND status = ?",
                (PENDING, prompt_id, PAUSED),
            )
        if cursor.rowcount:
            job = self.get(prompt_id)
            assert job is not None
            self._index(job)
        return bool(cursor.rowcount)

    def is_paused(self, prompt_id: str) -> bool:
        """Whether a job is paused, or stopping to be paused."""
        found = self._db.execute("SELECT 1 FROM jobs WHERE prompt_id = ? AND status = ?", (prompt_id, PAUSED))
        return found.fetchone() is not None

    def unfinished_ids(self) -> list[str]:
        """The jobs that have not ended."""
        return [row[0] for row in self._db.execute(f"SELECT prompt_id FROM jobs WHERE status NOT IN ({_ENDED})")]

    def _end_cancelled(self) -> None:
        """Running jobs with a result were cancelled: see `cancel`."""
        self._db.execute(
            "UPDATE jobs SET status = ?, ended = ? WHERE status = ? AND result IS NOT NULL", (CANCELLED, now(), RUNNING)
        )

    def _put_back(self) -> int:
        """Jobs that were running when the last server died wait again; after too many attempts they have failed."""
        message = "This job was running each time the server died, three times. It is not tried again."
        result = {"outputs": {}, "meta": {}, "status": {"status_str": "error", "completed": False, "messages": []}}
        result["status"]["messages"] = [["execution_error", {"exception_message": message, "exception_type": "Crash"}]]
        with self._writing():
            self._end_cancelled()
            self._db.execute(
                "UPDATE jobs SET status = ?, ended = ?, result = ? WHERE status = ? AND attempts >= ?",
                (FAILED, now(), json.dumps(result), RUNNING, ATTEMPTS),
            )
            cursor = self._db.execute("UPDATE jobs SET status = ?, started = NULL WHERE status = ?", (PENDING, RUNNING))
        return cursor.rowcount

    def _forget_oldest(self) -> None:
        with self._writing():
            self._db.execute(
                "DELETE FROM jobs WHERE ended < (SELECT ended FROM jobs ORDER BY ended DESC LIMIT 1 OFFSET ?)",
                (LONGEST_HISTORY - 1,),
            )

    # -- looking ---------------------------------------------------------------------------------------------------

    def get(self, prompt_id: str) -> Job | None:
        return next(self._select("prompt_id = ?", prompt_id), None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def queue_json(self, running: Sequence[str]) -> str:
        """The answer to `/queue`: running jobs and the first waiting ones in full, the others without their prompts."""
        whole = [entry[2] for entry in self._waiting[:LISTED_WHOLE]]
        self._items = {
            prompt_id: self._items.get(prompt_id) or self._item(prompt_id) for prompt_id in [*running, *whole]
        }
        listed = [self._items[prompt_id] for prompt_id in whole]
        listed += [self._lines[entry[2]] for entry in self._waiting[LISTED_WHOLE:]]
        now_running = [self._items[prompt_id] for prompt_id in running]
        return f'{{"queue_running": [{_joined(now_running)}], "queue_pending": [{_joined(listed)}]}}'

    def _item(self, prompt_id: str) -> str:
        job = self.get(prompt_id)
        return "" if job is None else json.dumps(job.item)

    # -- deleting --------------------------------------------------------------------------------------------------

    def delete_waiting(self, prompt_ids: Iterable[str] | None = None) -> list[str]:
        """Remove jobs from the queue before they run, including paused ones; None means all waiting ones. Returns the
        removed ones.
        """
        asked = list(self._models if prompt_ids is None else dict.fromkeys(prompt_ids))
        gone = [prompt_id for prompt_id in asked if prompt_id in self._models]
        paused = [prompt_id for prompt_id in asked if prompt_id not in self._models and self.is_paused(prompt_id)]
        with self._writing():
            self._db.executemany("DELETE FROM jobs WHERE prompt_id = ?", [(p,) for p in [*gone, *paused]])
        for prompt_id in gone:
            del self._models[prompt_id], self._lines[prompt_id]
        self._waiting = [entry for entry in self._waiting if entry[2] in self._models]
        self._later.difference_update(gone)
        for groups in self._groups:
            left = {models: [e for e in entries if e[2] in self._models] for models, entries in groups.items()}
            groups.clear()
            groups.update((models, entries) for models, entries in left.items() if entries)
        return [*gone, *paused]

    # ----------------------------------------------------------------------------------------------------------------

    def _index(self, job: Job) -> None:
        entry = job.number, job.created, job.prompt_id
        self._models[job.prompt_id] = job.models
        self._lines[job.prompt_id] = json.dumps(job.line)
        insort(self._waiting, entry)
        if job.lets_others_first:
            self._later.add(job.prompt_id)
        insort(self._groups[job.prompt_id in self._later].setdefault(job.models, []), entry)

    def _drop(self, entry: _Entry) -> None:
        """Remove a job from the index of waiting jobs."""
        models = self._models.pop(entry[2])
        del self._lines[entry[2]]
        groups = self._groups[entry[2] in self._later]
        self._later.discard(entry[2])
        group = groups[models]
        for entries in (self._waiting, group):
            del entries[bisect_left(entries, entry)]
        if not group:
            del groups[models]

    def _select(self, where: str, *values: object) -> Iterator[Job]:
        for row in self._db.execute(
            "SELECT prompt_id, number, status, attempts, created, started, ended, request, result "
            f"FROM jobs WHERE {where}",
            values,
        ):
            request, result = json.loads(row[7]), None if row[8] is None else json.loads(row[8])
            yield Job(row[0], row[1], row[2], row[3], row[4], row[5], row[6], request, result)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: when the block ends, all of it is on disk, or nothing. Raises CannotWrite."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise CannotWrite(
                    f"The queue file {self._path} cannot be written ({error}). Make room on that disk, or see to its "
                    "permissions."
                ) from error
            raise


def _joined(items: Iterable[str]) -> str:
    return ", ".join(filter(None, items))
