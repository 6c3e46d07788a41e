"""Checks that the values of a run are finite: a single NaN makes the whole image black a step later.

On a CPU the result is available at once. On a GPU it is copied to the host asynchronously and read when it has arrived,
a step or two later: no step waits for it, only the end of the run.

Independent of: models, files, solvers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Answer = Callable[[bool], bool | None]  # (wait for it?) -> whether all numbers are finite; None: not known yet


class Diverged(Exception):
    """The numbers of this step (counted from 1) are not all finite. Caught by the run, which reports the cause."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step}")
        self.step = step


class FiniteCheck:
    """Called for every step; raises Diverged as soon as one of them is known to be not finite."""

    def __init__(self, ask: Callable[[Tensor], Answer] | None = None) -> None:
        """ask: starts the check of a tensor; None: the check for the tensor's device."""
        self._ask = ask or are_finite
        self._asked: deque[tuple[int, Answer]] = deque()
        self.step = 0

    def __call__(self, numbers: Tensor) -> None:
        """Check the next step. Does not wait for the device."""
        self.step += 1
        self._asked.append((self.step, self._ask(numbers)))
        self._look(wait=False)

    def finish(self, numbers: Tensor) -> None:
        """Check the end of the run. Waits for all results."""
        self._asked.append((self.step, self._ask(numbers)))
        self._look(wait=True)

    def _look(self, wait: bool) -> None:
        while self._asked:
            step, answer = self._asked[0]
            finite = answer(wait)
            if finite is None:
                return
            self._asked.popleft()
            if not finite:
                raise Diverged(step)


def are_finite(numbers: Tensor) -> Answer:
    """Start to check whether all of `numbers` are finite."""
    finite = torch.isfinite(numbers).all()
    if numbers.device.type != "cuda":
        known = bool(finite)
        return lambda wait: known
    there = torch.empty((), dtype=torch.bool, pin_memory=True)
    there.copy_(finite, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(numbers.device))  # its card need not be the current one

    def answer(wait: bool) -> bool | None:
        if wait:
            arrived.synchronize()
        return bool(there) if wait or arrived.query() else None

    return answer
