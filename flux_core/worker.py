"""The worker process: runs prompts for the server, with models and caches kept warm between them.

    main thread      takes jobs one after another and runs them through the graph engine
    reading thread   hears the server: queues jobs, answers questions, passes on interrupts

A door like the command line: it may import everything, and nothing imports it. When the server is gone it goes too.
"""

from __future__ import annotations

import io
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .folders import Folders, standard_folders
from .graph.execute import Executor
from .graph.object_info import object_info
from .graph.validate import validate
from .server.pipe import Channel, Message

PREVIEW_SHARE = 50  # a preview may take 1/50 of a step: 2 %
PREVIEW_SIZE = 512
JPEG_QUALITY = 95


def main(options: str) -> None:
    """Serve until the server closes the connection. `options`: JSON, see server/worker.py."""
    channel = _private_pipes()
    worker = Worker(channel, json.loads(options))
    threading.Thread(target=worker.hear, daemon=True).start()
    channel.send({"ready": True})
    worker.work()


def _private_pipes() -> Channel:
    """Take standard input and output for the frames; what code prints goes to standard error, it reads nothing."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    os.close(empty)
    sys.stdout = sys.stderr
    return Channel(source, sink)


class Worker:
    def __init__(self, channel: Channel, options: Mapping[str, Any]) -> None:
        self.channel, self.options = channel, options
        self.jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.previews = _Throttle()
        self.classes, self.titles, self.packs = self._catalogue(_folders(options))
        self.executor = Executor(self.classes, emit=self.emit, around=_inference_mode, after_failure=_free_after)
        self.prompt_id = ""

    def _catalogue(self, folders: Folders) -> tuple[dict[str, type[Any]], dict[str, str], list[dict[str, Any]]]:
        from ..nodes import host
        from .node_packs import load_packs
        from .registry import standalone_tables

        host.use(host.Host(folders, report=self.progressed, interrupted=self.interrupted))
        classes, titles = standalone_tables()
        packs = load_packs([Path(place) for place in self.options.get("node_packs", ())], classes, titles)
        return classes, titles, packs

    # -- the main thread ---------------------------------------------------------------------------------------------

    def work(self) -> None:
        self._prepare()
        while True:
            job = self.jobs.get()
            if job["op"] == "run":
                self._run(job)
            elif job["op"] == "free":
                self._free(job)

    def _prepare(self) -> None:
        """Import torch while the person is still looking at the page, and set the device up."""
        from .assemble import configure

        configure(self.options.get("device"), self.options.get("dtype"))

    def _run(self, job: Message) -> None:
        self.prompt_id = job["prompt_id"]
        try:
            result = self.executor.execute(job["prompt"], self.prompt_id, job["extra_data"], job["outputs"])
            done = {
                "status": result.status,
                "outputs": result.outputs,
                "meta": result.meta,
                "messages": result.messages,
            }
        finally:
            self.prompt_id = ""
        self.channel.send({"done": job["prompt_id"], **done})

    def _free(self, job: Message) -> None:
        if job.get("unload_models") or job.get("free_memory"):
            self.executor.forget()
            _collect()

    # -- what nodes report -------------------------------------------------------------------------------------------

    def emit(self, event: str, data: dict[str, Any]) -> None:
        if event == "preview":
            image = data.pop("image")
            buffer = io.BytesIO()
            image.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
            image.save(buffer, "JPEG", quality=JPEG_QUALITY)
            self.channel.send({"preview": data, "image_type": "image/jpeg"}, buffer.getvalue())
        else:
            self.channel.send({"event": event, "data": data, "prompt_id": self.prompt_id})

    def progressed(self, done: int, total: int, preview: Any = None) -> None:
        image = self.previews.make(preview) if preview is not None else None
        self.executor.progress(done, total, image)

    def interrupted(self) -> bool:
        self.executor.check_interrupted()
        return False

    # -- the reading thread ------------------------------------------------------------------------------------------

    def hear(self) -> None:
        try:
            while True:
                self._answer(self.channel.receive()[0])
        except (EOFError, OSError):
            os._exit(0)  # the server is gone; nothing here is worth more than what is already on disk

    def _answer(self, message: Message) -> None:
        op = message["op"]
        if op in ("run", "free"):
            self.jobs.put(message)
        elif op == "interrupt":
            self.executor.cancel(message.get("prompt_id"))
        else:
            try:
                self.channel.send({"reply": message["call"], "result": getattr(self, f"on_{op}")(message)})
            except Exception as error:
                traceback.print_exc()
                self.channel.send({"reply": message["call"], "error": f"{type(error).__name__}: {error}"})

    def on_object_info(self, message: Message) -> Any:
        return object_info(self.classes, self.titles)

    def on_packs(self, message: Message) -> Any:
        return self.packs

    def on_validate(self, message: Message) -> Any:
        found = validate(message["prompt"], self.classes, message.get("targets"), message.get("packs"))
        return {
            "prompt": found.prompt,
            "outputs": found.outputs,
            "node_errors": found.node_errors,
            "error": found.error,
            "problems": found.problems,
        }

    def on_system(self, message: Message) -> Any:
        from .assemble import device_report

        return device_report()


class _Throttle:
    """Makes previews as often as they cost less than their share of the time."""

    def __init__(self) -> None:
        self._next = 0.0

    def make(self, preview: Any) -> Any:
        began = time.monotonic()
        if began < self._next:
            return None
        image = preview()
        ended = time.monotonic()
        self._next = ended + (ended - began) * PREVIEW_SHARE
        return image


def _folders(options: Mapping[str, Any]) -> Folders:
    return standard_folders(Path(options["base"]), **{k: v for k, v in options.get("folders", {}).items()})


def _inference_mode() -> Any:
    import torch

    return torch.inference_mode()


def _free_after(error: Exception) -> str:
    """After out-of-memory everything that can be let go is let go."""
    if "out of memory" not in str(error).lower() and not isinstance(error, MemoryError):
        return ""
    _collect()
    return "The memory did not suffice. Lower --vram or --ram, or choose a smaller picture, batch or model file."


def _collect() -> None:
    import gc

    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
