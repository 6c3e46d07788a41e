"""The progress of a training that is a node, for the page that shows it."""

from __future__ import annotations

from typing import Any


class NodeProgress:
    """Reports every step to the host of the node. Raises Interrupted if the job was cancelled."""

    def __init__(self, host: Any) -> None:
        self.host, self.total, self.done = host, 1, 0

    def phase(self, name: str, total: int, done: int = 0) -> None:
        self.total, self.done = max(1, total), done
        self.host.check_interrupted()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.host.step(self.done, self.total)

    def note(self, text: str) -> None:
        """Only the command line shows notes."""
