"""Asynchronous nodes that run while other nodes run.

The event loop runs only when a task starts and when nothing else is left to do, so that it does not affect Ctrl-C and
ordinary nodes.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

_POLL_SECONDS = 0.1  # seconds after which a wait returns at the latest, so that a cancellation is noticed


class Tasks:
    """The calls of asynchronous nodes, by node id."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[str, asyncio.Task[list[Any]]] = {}

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._tasks

    def begin(self, call: Awaitable[Any]) -> asyncio.Future[Any]:
        """Start one call of a node, in the context of the caller."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        future = asyncio.ensure_future(call, loop=self._loop)
        self._loop.run_until_complete(asyncio.sleep(0))
        return future

    def start(self, node_id: str, returns: Sequence[Any]) -> None:
        """Record what the calls of a node returned; some of them are still running."""
        assert self._loop is not None
        self._tasks[node_id] = self._loop.create_task(_settled(returns))

    def wait(self) -> list[str]:
        """Run the tasks for a moment. Returns the nodes that are done."""
        assert self._loop is not None
        first = asyncio.wait(self._tasks.values(), timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        self._loop.run_until_complete(first)
        return [node_id for node_id, task in self._tasks.items() if task.done()]

    def take(self, node_id: str) -> list[Any]:
        """The return values of a finished node's calls. Raises what they raised."""
        return self._tasks.pop(node_id).result()

    def close(self) -> None:
        """Cancel the tasks that are still running."""
        if self._loop is not None:
            at_work = asyncio.all_tasks(self._loop)
            for task in at_work:
                task.cancel()
            self._loop.run_until_complete(_gone(at_work))
            self._loop.close()


async def _settled(returns: Sequence[Any]) -> list[Any]:
    async def settle(value: Any) -> Any:
        return await value if inspect.isawaitable(value) else value

    return list(await asyncio.gather(*map(settle, returns)))


async def _gone(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
