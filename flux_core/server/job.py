"""One job of the queue as a record: its states, its request, what lists show of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from .assign import Models

PENDING, RUNNING, COMPLETED, FAILED, CANCELLED = "pending", "in_progress", "completed", "failed", "cancelled"
PAUSED = "paused"  # neither waits nor runs until it is resumed or cancelled
ENDED = (COMPLETED, FAILED, CANCELLED)
OTHERS_FIRST = "others_first"  # the input of a node that asks for `lets_others_first`


def plain_number(number: float) -> float:
    """A position in the queue as clients expect it: whole numbers without a fraction."""
    return int(number) if float(number).is_integer() else number


@dataclass(frozen=True)
class Job:
    """One submitted prompt and, once it has ended, its result."""

    prompt_id: str
    number: float
    status: str
    attempts: int
    created: int
    started: int | None
    ended: int | None
    request: dict[str, Any]
    result: dict[str, Any] | None

    @property
    def item(self) -> list[Any]:
        """The job as `/queue` and `/history` list it: number, id, prompt, extra data, outputs to execute."""
        r = self.request
        return [plain_number(self.number), self.prompt_id, r["prompt"], r["extra_data"], r["outputs"]]

    @property
    def line(self) -> list[Any]:
        """`item` without its large parts: enough for a client to find its own job and position."""
        return [
            plain_number(self.number),
            self.prompt_id,
            {},
            {"client_id": self.request["client_id"]},
            self.request["outputs"],
        ]

    @property
    def models(self) -> Models:
        """The model files that its prompt names."""
        return frozenset(self.request.get("models", ()))

    @property
    def lets_others_first(self) -> bool:
        """Whether other jobs go first: it begins when none waits, and stops between two steps for those that come."""
        nodes = self.request["prompt"].values() if isinstance(self.request.get("prompt"), dict) else ()
        return any(isinstance(node, dict) and node.get("inputs", {}).get(OTHERS_FIRST) is True for node in nodes)


@dataclass(frozen=True)
class Summary:
    """A job for lists, read without parsing its workflow."""

    prompt_id: str
    number: float
    status: str
    created: int
    started: int | None
    ended: int | None
    workflow_id: Any  # of the canvas, if it has one
    outputs: dict[str, Any]
    last_message: list[Any] | None  # [event, data]
    facts: dict[str, Any]  # what the worker measured


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
