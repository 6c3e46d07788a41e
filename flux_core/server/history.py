"""Jobs that have ended, as `/history` and lists of jobs show them: read from the store's database, never from memory.

Independent of: HTTP, workers, nodes, the queue.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from .job import COMPLETED, ENDED, Summary

_ENDED = ", ".join(f"'{status}'" for status in ENDED)


class History:
    """The read side of a store. Use it from the store's thread."""

    def __init__(self, db: sqlite3.Connection, writing: Callable[[], AbstractContextManager[None]]) -> None:
        """writing: a transaction, which raises CannotWrite."""
        self._db, self._writing = db, writing

    def summaries(
        self, statuses: Iterable[str], limit: int = -1, offset: int = 0, oldest_first: bool = False
    ) -> tuple[list[Summary], int]:
        """Jobs of these states: waiting ones in order, then ended ones, newest first; and their number."""
        wanted = list(statuses)
        marks = ", ".join("?" * len(wanted))
        total = self._db.execute(f"SELECT COUNT(*) FROM jobs WHERE status IN ({marks})", wanted).fetchone()[0]
        order = "created, number" if oldest_first else "ended IS NOT NULL, ended DESC, number, created"
        where = f"WHERE status IN ({marks}) ORDER BY {order} LIMIT ? OFFSET ?"
        return self._summaries(where, *wanted, limit, offset), total

    def summary(self, prompt_id: str) -> Summary | None:
        return next(iter(self._summaries("WHERE prompt_id = ?", prompt_id)), None)

    def finished_about(self, time: int, tolerance: int = 2000) -> list[Summary]:
        """Completed jobs that were running at a time, within a tolerance (milliseconds), earliest end first."""
        where = "WHERE status = ? AND ended >= ? AND started <= ? ORDER BY ended LIMIT 20"
        return self._summaries(where, COMPLETED, time - tolerance, time + tolerance)

    def exact_runs(self, filename: str, subfolder: str) -> list[Summary]:
        """Jobs, whatever their state, that compute this image again exactly (exact.py), newest first."""
        named = "json_extract(request, '$.extra_data.sluice.exact_of.{}') = ?"
        where = f"WHERE {named.format('filename')} AND {named.format('subfolder')} ORDER BY created DESC LIMIT 20"
        return self._summaries(where, filename, subfolder)

    def _summaries(self, where: str, *values: object) -> list[Summary]:
        rows = self._db.execute(
            "SELECT prompt_id, number, status, created, started, ended, "
            "json_extract(request, '$.extra_data.extra_pnginfo.workflow.id'), json_extract(result, '$.outputs'), "
            f"json_extract(result, '$.status.messages[#-1]'), json_extract(result, '$.facts') FROM jobs {where}",
            values,
        )
        return [_summary(row) for row in rows]

    def as_json(self, max_items: int | None, offset: int = -1) -> str:
        """The answer to `/history`: the newest `max_items` ended jobs, or those from `offset` (of the oldest) on."""
        limit = -1 if max_items is None else max_items
        window = f"WHERE status IN ({_ENDED}) ORDER BY ended LIMIT ? OFFSET ?"
        if offset < 0 and max_items is not None:
            count = self._db.execute(f"SELECT COUNT(*) FROM jobs WHERE status IN ({_ENDED})").fetchone()[0]
            offset = count - max_items
        return self._entries(window, limit, max(offset, 0))

    def entry_json(self, prompt_id: str) -> str:
        """The answer to `/history/{id}`: empty for a job that has not ended."""
        return self._entries(f"WHERE prompt_id = ? AND status IN ({_ENDED})", prompt_id)

    def _entries(self, where: str, *values: object) -> str:
        """History entries, built by SQLite from the stored texts."""
        rows = self._db.execute(
            "SELECT json_object(prompt_id, json_object('prompt', json_array("
            "CASE WHEN number = CAST(number AS INTEGER) THEN CAST(number AS INTEGER) ELSE number END, prompt_id, "
            "json_extract(request, '$.prompt'), json_extract(request, '$.extra_data'), "
            "json_extract(request, '$.outputs')), 'outputs', json_extract(result, '$.outputs'), "
            "'status', json_extract(result, '$.status'), 'meta', json_extract(result, '$.meta'))) "
            f"FROM jobs {where}",
            values,
        )
        return "{" + ", ".join(row[0][1:-1] for row in rows) + "}"

    def delete(self, prompt_ids: Iterable[str] | None = None) -> None:
        """Delete ended jobs; None means all. Images stay."""
        with self._writing():
            if prompt_ids is None:
                self._db.execute(f"DELETE FROM jobs WHERE status IN ({_ENDED})")
            else:
                ids = [(prompt_id,) for prompt_id in prompt_ids]
                self._db.executemany(f"DELETE FROM jobs WHERE prompt_id = ? AND status IN ({_ENDED})", ids)


def _summary(row: tuple[Any, ...]) -> Summary:
    prompt_id, number, status, created, started, ended, workflow_id, outputs, last, facts = row
    unpacked = _loaded(outputs, {}), _loaded(last, None), _loaded(facts, {})
    return Summary(prompt_id, number, status, created, started, ended, workflow_id, *unpacked)


def _loaded(text: str | None, otherwise: Any) -> Any:
    return otherwise if text is None else json.loads(text)
