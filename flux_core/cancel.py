"""Whether to go on: asked between two products of matrices or two tensors of a file, answered by who runs the job.

The question belongs to the context of one run (contextvars), so that two runs in one process are asked apart. Where
nobody answers, work goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ask: ContextVar[Callable[[], object] | None] = ContextVar("ask", default=None)


@contextmanager
def cancellable(ask: Callable[[], object]) -> Iterator[None]:
    """Within this block `ask` is called by `check_cancelled`; it raises Interrupted if the run is to end."""
    token = _ask.set(ask)
    try:
        yield
    finally:
        _ask.reset(token)


def check_cancelled() -> None:
    """Raises Interrupted if the person has asked the run to stop."""
    ask = _ask.get()
    if ask is not None:
        ask()
