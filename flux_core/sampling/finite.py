"""Whether the images of a run are still numbers: a NaN anywhere makes the whole image black a step later.

On a CPU the answer is there at once. On a GPU it is copied to the host beside the computation and looked at when it has
arrived, a step or two later: no step waits for it, only the end of the run does.

Independent of: models, files, solvers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Answer = Callable[[bool], bool | None]  # (wait for it?) -> whether all numbers were finite; None: not known yet


class Diverged(Exception):
    """The numbers of this step (counted from 1) are not all finite. Caught by the run, which tells why."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step}")
        self.step = step


class FiniteCheck:
    """Told of every step; raises Diverged as soon as it is known that one of them went wrong."""

    def __init__(self, ask: Callable[[Tensor], Answer] | None = None) -> None:
        """ask: how to find out about a tensor; by the device it is on, if None."""
        self._ask = ask or are_finite
        self._asked: deque[tuple[int, Answer]] = deque()
        self.step = 0

    def __call__(self, numbers: Tensor) -> None:
        """Of the next step. Waits for nothing that a device still computes."""
        self.step += 1
        self._asked.append((self.step, self._ask(numbers)))
        self._look(wait=False)

    def finish(self, numbers: Tensor) -> None:
        """Of the end of the run. Waits until all is known."""
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
    """Begin to find out whether all of `numbers` are finite."""
    finite = torch.isfinite(numbers).all()
    if numbers.device.type != "cuda":
        known = bool(finite)
        return lambda wait: known
    there = torch.empty((), dtype=torch.bool, pin_memory=True)
    there.copy_(finite, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def answer(wait: bool) -> bool | None:
        if wait:
            arrived.synchronize()
        return bool(there) if wait or arrived.query() else None

    return answer
