"""The worker process: runs prompts for the server, with models and caches kept in memory between them.

    main thread        worker.py   takes jobs one after another and runs them with the graph engine
    reading thread     calls.py    reads messages: queues jobs and calls, passes on interrupts at once
    answering thread   calls.py    answers calls: which nodes exist, whether a prompt can run

A front door like the command line: it may import everything. When the server closes the connection, the process ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading

from ..workers.protocol import Channel
from .calls import Calls
from .worker import Worker


def main(options: str) -> None:
    """Serve until the server closes the connection. `options`, as JSON:

    {"base", "models": [], "extra": [], "input", "output", "node_packs": [], the words of SETTINGS in worker.py, and
     "threads": how many a CPU computes with, by default as many as PyTorch chooses}
    """
    channel = _private_pipes()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    worker = Worker(channel, json.loads(options))
    calls = Calls(worker)
    for thread in (calls.read, calls.answer):
        threading.Thread(target=thread, daemon=True).start()
    channel.send({"ready": True})
    worker.work()


def _private_pipes() -> Channel:
    """Reserve standard input and output for the frames: what code prints goes to standard error; it reads nothing."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    os.close(empty)
    sys.stdout = sys.stderr
    return Channel(source, sink)
