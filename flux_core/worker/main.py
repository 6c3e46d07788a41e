"""The worker process: runs prompts for the server, with models and caches kept in memory between them.

    main thread        worker.py   takes jobs one after another and runs them with the graph engine
    reading thread     calls.py    reads messages: queues jobs and calls, passes on interrupts at once
    answering thread   calls.py    answers calls: which nodes exist, whether a prompt can run

A front door like the command line: it may import everything. When the server closes the connection, the process ends.
"""

from __future__ import annotations

import json
import logging
import sys
import threading

from ..workers.protocol import private_pipes
from .calls import Calls
from .worker import Worker


def main(options: str) -> None:
    """Serve until the server closes the connection. `options`, as JSON:

    {"base", "models": [], "extra": [], "input", "output", "node_packs": [], the words of SETTINGS in worker.py, and
     "previews": a word of runtime/settings.py,
     "threads": how many a CPU computes with, by default as many as PyTorch chooses,
     "team": the further devices that images are computed on, see runtime/team.py}
    """
    channel = private_pipes()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    worker = Worker(channel, json.loads(options))
    calls = Calls(worker)
    for thread in (calls.read, calls.answer):
        threading.Thread(target=thread, daemon=True).start()
    channel.send({"ready": True})
    worker.work()
