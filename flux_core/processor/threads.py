"""Divides work on the CPU among threads that each use one core, for operations that PyTorch runs on one core only.

Independent of what is computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import torch

MAX_THREADS = 8  # so that scratch for each of them stays below 100 MB
FEW = 1 << 16  # values: for fewer, waking other threads takes about as long as computing them


def thread_count(values: int) -> int:
    """The number of threads for work on this many values."""
    return min(torch.get_num_threads(), MAX_THREADS) if values > FEW else 1


def run_parts(function: Callable[..., None], parts: Iterable[tuple[Any, ...]]) -> None:
    """function(*part) for each part, as many as thread_count said, at the same time. Raises what a call raises."""
    parts = list(parts)
    if len(parts) == 1:
        function(*parts[0])
        return
    for done in [_workers(len(parts), os.getpid()).submit(function, *part) for part in parts]:
        done.result()


@cache
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that compute with one core each. process: its id, because a forked process has no threads."""
    before = torch.get_num_threads()
    ready = Barrier(threads + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, f"processor {threads} {process}", begin)
    for _ in range(threads):  # each starts a thread, as those before it wait
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(before)  # the number is also the one for threads that begin later
    return pool
