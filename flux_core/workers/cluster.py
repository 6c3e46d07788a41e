"""Keeps workers running on a cluster engine: `sluice work`, started where there is room, and again when one is lost.

The engine only places processes. Jobs, leases and retries are the server's, because the calls of a killed node end in
an error in an engine too; so a worker that is lost costs nothing but the time until another one is there.

Uses no engine: ray_engine.py is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

WAITING, RUNNING, LOST = "waiting", "running", "lost"


@dataclass(frozen=True)
class State:
    """What an engine knows of a worker: WAITING for room, RUNNING at `node`, or LOST and not to come back."""

    what: str
    node: str = ""


class Engine(Protocol):
    """Where workers run. Numbers name them."""

    def start(self, number: int, command: Sequence[str]) -> None:
        """Ask for a worker; it runs once there is room. command: the arguments of `sluice`."""
        ...

    def state(self, number: int) -> State:
        """How it is. Takes some seconds at most."""
        ...

    def stop(self, number: int, seconds: float) -> None:
        """End it; its job has so many seconds to end."""
        ...


class Keeper:
    """So many workers of one server."""

    def __init__(self, engine: Engine, count: int, command: Sequence[str], say: Callable[[str], object]) -> None:
        """command: the arguments of `sluice work`, without --name."""
        self._engine, self._command, self._say = engine, list(command), say
        self._seen = {number: State(LOST) for number in range(1, count + 1)}
        self._started = set[int]()

    def look(self) -> None:
        """Start what is lost, and say what has changed."""
        for number, before in self._seen.items():
            state = self._engine.state(number) if number in self._started else State(LOST)
            if state != before:
                self._tell(number, before, state)
            if state.what == LOST:
                self._engine.start(number, ["work", *self._command, "--name", f"cluster-{number}"])
                self._started.add(number)
            self._seen[number] = state

    def _tell(self, number: int, before: State, state: State) -> None:
        if state.what == RUNNING:
            self._say(f"Worker {number} runs on {state.node}.")
        elif before.what == RUNNING:
            self._say(f"Worker {number} on {before.node} is lost. It is started where there is room.")
        elif state.what == WAITING:
            self._say(f"Worker {number} waits for room.")

    @property
    def running(self) -> int:
        return sum(state.what == RUNNING for state in self._seen.values())

    def stop(self, seconds: float) -> None:
        """End all workers; running jobs have so many seconds to end, and go back to the queue otherwise."""
        for number in self._started:
            self._engine.stop(number, seconds)
