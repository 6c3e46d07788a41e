"""Processes that measure, and end with the program that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Called in a process of `multiprocessing`: it ends as soon as the process that started it has ended.

    Otherwise a measurement whose program was killed would keep gigabytes of memory and the processor until it is done.
    """
    threading.Thread(target=_wait_and_end, name="ends with its parent", daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
