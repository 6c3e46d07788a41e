"""Devices that are threads of one process, in place of processes that talk by gloo."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from sluice.flux_core.parallel.wire import Shape
from torch import Tensor

Value = TypeVar("Value")
PATIENCE = 60.0  # seconds after which a device that does not come has failed


class Board:
    """Where the devices of a group meet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)


class ThreadWire:
    """One device's end; see parallel/wire.py."""

    def __init__(self, board: Board, rank: int) -> None:
        self.board, self.rank, self.size = board, rank, board.size
        self.sent: dict[str, int] = {}
        self.seconds = 0.0

    def _meet(self, mine: Any) -> list[Any]:
        self.board.slots[self.rank] = mine
        self.board.barrier.wait(PATIENCE)
        got = list(self.board.slots)
        self.board.barrier.wait(PATIENCE)
        return got

    def _count(self, verb: str, nbytes: int) -> None:
        self.sent[verb] = self.sent.get(verb, 0) + nbytes

    def exchange(self, out: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        self._count("exchange", sum(part.nbytes for rank, part in enumerate(out) if rank != self.rank))
        got = [theirs[self.rank].clone() for theirs in self._meet([part.contiguous() for part in out])]
        assert [tuple(part.shape) for part in got] == [tuple(shape) for shape in shapes]
        return got

    def gather(self, own: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        self._count("gather", own.nbytes * (self.size - 1))
        got = [part.clone() for part in self._meet(own.clone())]
        assert [tuple(part.shape) for part in got] == [tuple(shape) for shape in shapes]
        return got

    def reduce(self, x: Tensor) -> Tensor:
        self._count("reduce", 2 * x.nbytes * (self.size - 1) // self.size)
        total: Tensor = torch.stack(self._meet(x.clone())).sum(0)
        return total

    def shift(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Callable[[], list[Tensor]]:
        self._count("shift", sum(part.nbytes for part in parts))
        got = self._meet([part.clone() for part in parts])[(self.rank - 1) % self.size]
        assert [tuple(part.shape) for part in got] == [tuple(shape) for shape in shapes]
        return lambda: [part.clone() for part in got]


def on_threads(size: int, task: Callable[[int], Value]) -> list[Value]:
    """The results of task(rank) on so many threads. Raises the first error of a thread."""
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            with torch.inference_mode():
                results[rank] = task(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
