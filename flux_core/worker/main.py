"""The worker process: runs prompts for the server, with models and caches kept warm between them.

    main thread        takes jobs one after another and runs them through the graph engine
    hearing thread     hears the server: sorts jobs and questions, passes on interrupts at once
    answering thread   answers questions: what nodes there are, whether a prompt is fit to run

A door like the command line: it may import everything, and nothing imports it. When the server is gone it goes too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cancel import cancellable
from ..errors import InputError, SluiceError
from ..graph.execute import Executor, Result
from ..graph.flatten import to_prompt
from ..graph.object_info import object_info
from ..images.previews import Throttle, jpeg
from ..io import png, strict_json
from ..io.embedded import read_workflow_bytes
from ..io.folders import Folders, published, standard_folders
from ..limits import advice_after, is_out_of_memory
from ..memory.budget import Allowed
from ..runtime.settings import Settings
from ..workers.process_tree import end_own
from ..workers.protocol import Channel, Message
from .measure import Measure, release_memory
from .prompt_check import check_prompt, missing_files
from .required_tokenizers import Lacking

if TYPE_CHECKING:
    from ...nodes.host import Host
    from ..runtime.runtime import Runtime
    from .node_packs import NodePacks

NO_ROUTES: dict[str, Any] = {"routes": [], "on_prompt": False}
ROUTES_AT_ONCE = 8  # requests to packs' routes being answered
_SETTINGS = ("device", "dtype", "vram", "ram", "cache", "compute")  # of runtime/settings.py, in its order
NO_DEVICE = "none"  # for packs that need no torch, and for measuring the server: nothing of ours can compute


def main(options: str) -> None:
    """Serve until the server closes the connection. `options`, as JSON:

    {"base", "models": [], "extra": [], "input", "output", "node_packs": [], the words of _SETTINGS, and
     "threads": how many a CPU computes with, by default as many as PyTorch chooses}
    """
    channel = _private_pipes()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    worker = Worker(channel, json.loads(options))
    for thread in (worker.hear, worker.answer):
        threading.Thread(target=thread, daemon=True).start()
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
    """One worker: the tables of nodes, the engine, and what it says to the server."""

    def __init__(self, channel: Channel, options: Mapping[str, Any]) -> None:
        self.channel, self.options = channel, options
        self.jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.questions: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.prepared = threading.Event()
        self.trouble: str | None = None  # why nothing can be computed
        self.throttle = Throttle()
        self.measure = Measure()
        self.folders = _folders(options)
        self.host = self._new_host()
        self.classes, self.titles = self._catalogue()
        self.executor = Executor(self.classes, emit=self.emit, around=self._around, after_failure=advice_after)
        self.packs = self._packs()
        self.routes = self.packs.start_routes() if self.packs else NO_ROUTES
        self.asked_by_pages = ThreadPoolExecutor(ROUTES_AT_ONCE, "pack route")

    @contextmanager
    def _around(self) -> Iterator[None]:
        """Around every job: whatever takes long asks here whether it was cancelled."""
        computing = nullcontext if self.options.get("device") == NO_DEVICE else _inference_mode
        with computing(), cancellable(self.executor.check_interrupted):
            yield

    def _new_host(self) -> Host:
        from ...nodes.host import Host

        return Host(self.folders, self.progressed, self.interrupted, self.send, self._new_runtime)

    def _new_runtime(self) -> Runtime:
        """What models are loaded into. Raises InputError for options that nothing can be computed with."""
        from ..runtime.runtime import Runtime
        from ..runtime.warning_events import emit_warnings

        runtime = Runtime(Settings.parse(*(self.options.get(name) for name in _SETTINGS)))
        runtime.events.listen(lambda event: self.channel.send({"event": f"sluice.{event['type']}", "data": event}))
        emit_warnings(runtime)
        return runtime

    def _catalogue(self) -> tuple[dict[str, type[Any]], dict[str, str]]:
        from .registry import standalone_tables

        return standalone_tables(self.host)

    def _packs(self) -> NodePacks | None:
        places = [Path(place) for place in self.options.get("node_packs", ())]
        if not places:
            return None
        from ..facade.engine import Engine
        from .node_packs import load_packs

        engine = Engine(
            self.host, self.folders, self.classes, self.titles, self.executor,
            tell=self.tell, preview=self.previewed, free=self.free_soon,
        )  # fmt: skip
        return load_packs(places, engine)

    # -- the main thread ---------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Run jobs for ever."""
        try:
            self._prepare()
        except SluiceError as error:
            self.trouble = str(error)
            print(self.trouble, file=sys.stderr)
        self.prepared.set()
        while True:
            job = self.jobs.get()
            if job["op"] == "run":
                self._run(job)
            elif job["op"] == "fit":
                self._fit()
            else:
                self._free(job)

    def _prepare(self) -> None:
        """Import torch while the person is still looking at the page, and set the device up."""
        if self.options.get("device") == NO_DEVICE:
            return
        import torch
        from PIL import Image

        from ..runtime import handles  # noqa: F401
        from ..runtime.device_notice import device_notice

        Image.init()
        if self.options.get("threads"):
            torch.set_num_threads(self.options["threads"])
        notice = device_notice(self.host.runtime)
        print(*(notice[key] for key in ("text", "warning") if notice[key]), sep="\n", file=sys.stderr)
        self.channel.send({"event": "sluice.device", "data": notice})

    def _run(self, job: Message) -> None:
        self.measure = Measure()
        try:
            if self.trouble:
                raise SluiceError(self.trouble)
            result = self.executor.execute(job["prompt"], job["prompt_id"], job["extra_data"], job["outputs"])
            done = _account(result)
        except Exception as error:  # of the engine itself: those of nodes are in the result
            traceback.print_exc()
            result, done = None, self._engine_failed(job, error)
        self.channel.send({"done": job["prompt_id"], **done, "facts": self.measure.facts()})
        if result is not None and result.exception is not None and is_out_of_memory(result.exception):
            self._free({"free_memory": True})

    def _engine_failed(self, job: Message, error: Exception) -> Message:
        data = {
            "prompt_id": job["prompt_id"],
            "node_id": "",
            "node_type": "",
            "executed": [],
            "exception_message": str(error),
            "exception_type": type(error).__name__,
            "traceback": [],
            "current_inputs": {},
            "current_outputs": [],
            "timestamp": int(time.time() * 1000),
        }
        self.emit("execution_error", data)
        return {"status": "error", "outputs": {}, "meta": {}, "messages": [["execution_error", data]]}

    def _fit(self) -> None:
        """Nothing runs: what is loaded makes room at once for a budget that has become smaller."""
        self.host.runtime.shrink_to_budget()
        release_memory()

    def _free(self, wanted: Message) -> None:
        if wanted.get("unload_models") or wanted.get("free_memory"):
            self.executor.forget()
            release_memory()
            self.channel.send({"event": "sluice.memory.freed", "data": {}})

    # -- what nodes report -------------------------------------------------------------------------------------------

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Pass an event of the engine on."""
        self.measure.look()
        if event == "preview":
            kind, image = data.pop("image")
            self.channel.send({"preview": data, "image_type": kind}, image)
            return
        self.channel.send({"event": event, "data": data})
        if event == "executing":
            self.measure.began(data["node"])
        elif event == "progress" and (step := self.measure.stepped(data)) is not None:
            self.channel.send({"event": "sluice.step", "data": step})

    def progressed(self, done: int, total: int, preview: Any = None) -> None:
        """A node has done a step."""
        image = None if preview is None else self.throttle.make(preview)
        self.executor.progress(done, total, None if image is None else ("image/jpeg", image))

    def send(self, image: Any, number: int, total: int) -> None:
        """A node gives a picture to who queued the job."""
        self.executor.progress(number, total, ("image/png", png.encode(image)))

    def previewed(self, make: Any) -> Any:
        """A pack's preview as a progress event carries it; None if the last one is too recent."""
        image = self.throttle.make(make)
        return None if image is None else ("image/jpeg", image)

    def tell(self, event: Any, data: Any, client_id: str | None) -> None:
        """A pack says something to the pages. Pictures among it are shown as previews of the running node."""
        if isinstance(data, tuple) and len(data) > 1 and hasattr(data[1], "convert"):
            self.executor.preview(("image/jpeg", jpeg(data[1])))
            return
        message: Message = {"tell": event, "client_id": client_id}
        if isinstance(data, (bytes, bytearray)):
            self.channel.send(message, bytes(data))
        else:
            plain = json.loads(json.dumps(data, default=repr))
            self.channel.send({**message, "data": json.loads(strict_json.dumps(plain))})

    def free_soon(self) -> None:
        """A pack wants memory given back: what nothing uses is dropped now, what is kept after the running job."""
        self.jobs.put({"op": "free", "unload_models": True})

    def interrupted(self) -> bool:
        """Whether to stop. Raises Interrupted itself, which knows the words."""
        self.executor.check_interrupted()
        return False

    # -- the hearing thread ------------------------------------------------------------------------------------------

    def hear(self) -> None:
        """Sort what the server says, until it is gone."""
        try:
            while True:
                message, payload = self.channel.receive()
                if message["op"] == "route":
                    self.asked_by_pages.submit(self._answer_page, message, payload)
                elif message["op"] in ("run", "free"):
                    self.jobs.put(message)
                elif message["op"] == "interrupt":
                    self.executor.cancel(message.get("prompt_id"))
                else:
                    self.questions.put(message)
        except (EOFError, OSError):
            end_own()  # what matters is on the disk

    # -- the answering thread ----------------------------------------------------------------------------------------

    def answer(self) -> None:
        """Answer questions for ever."""
        while True:
            message = self.questions.get()
            try:
                result = getattr(self, f"on_{message['op']}")(message)
                self.channel.send({"reply": message["call"], "result": result})
            except (BrokenPipeError, EOFError):
                return
            except Exception as error:
                if not isinstance(error, SluiceError):
                    traceback.print_exc()
                told = str(error) if isinstance(error, SluiceError) else f"{type(error).__name__}: {error}"
                self.channel.send({"reply": message["call"], "error": told, "type": type(error).__name__})

    def _answer_page(self, message: Message, payload: bytes) -> None:
        """A request to a pack's route."""
        try:
            assert self.packs is not None
            answer = self.packs.answer(message["method"], message["path"], message["headers"], payload)
            told: Message = {"result": {"status": answer.status, "headers": answer.headers}}
        except Exception as error:
            told, answer = {"error": str(error), "type": type(error).__name__}, None
        self.channel.send({"reply": message["call"], **told}, answer.body if answer else b"")

    def on_object_info(self, message: Message) -> Any:
        """{"names"?}: node classes as the editor wants them described."""
        names = message.get("names")
        chosen = self.classes if names is None else {name: self.classes[name] for name in names if name in self.classes}
        from .registry import second_ids

        return object_info(chosen, self.titles, second_ids(self.classes))

    def on_identity(self, message: Message) -> Any:
        """{"version", "nodes"}: equal for two workers that run the same prompts to the same end."""
        from ... import __version__

        nodes = sorted(f"{name} {getattr(cls, 'RETURN_TYPES', ())}" for name, cls in self.classes.items())
        return {"version": __version__, "nodes": hashlib.sha256("\n".join(nodes).encode()).hexdigest()[:16]}

    def on_packs(self, message: Message) -> Any:
        """What became of the node packs."""
        return self.packs.packs if self.packs else []

    def on_pack_routes(self, message: Message) -> Any:
        """{"routes": [{"method", "pattern"}], "on_prompt": whether packs want to see prompts first}."""
        return self.routes

    def on_alter_prompt(self, message: Message) -> Any:
        """{"request"}: what packs make of a request to run a prompt."""
        return self.packs.alter_prompt(message["request"]) if self.packs else message["request"]

    def on_validate(self, message: Message) -> Any:
        """{"prompt", "targets"}: what may run of it, and what speaks against the rest."""
        checked = check_prompt(message["prompt"], self.classes, self.folders, message.get("targets"))
        return {**asdict(checked.found), "problems": checked.found.sentences, "models": checked.models}

    def on_missing(self, message: Message) -> Any:
        """{"workflow"}: the model files it names that are nowhere, and the tokenizers that they need."""
        embedded = read_workflow_bytes(json.dumps(message["workflow"]).encode(), "the workflow")
        prompt = to_prompt(embedded, self.classes, choose=lambda options: options[0])
        models, tokenizers = missing_files(prompt, self.classes, self.folders)
        files = [self._lacking(wanted.name, wanted.category, wanted.node_id, wanted.input) for wanted in models]
        return files + [_tokenizer(one) for one in tokenizers]

    def _lacking(self, name: str, category: str, node_id: str, input_name: str) -> dict[str, Any]:
        repository, folder = published(name), self.folders.place_for(category)
        return {
            "name": name, "category": category, "folder": str(folder or ""), "node_id": node_id, "input": input_name,
            "source": repository and f"https://huggingface.co/{repository}",
            "message": self.folders.explain_missing(category, name),
        }  # fmt: skip

    def on_budget(self, message: Message) -> Any:
        """{"vram"?, "ram"?}: what models may use from their next step on. Sizes as on the command line, or bytes."""
        if not self._can_compute():
            return {}
        from ..runtime.device_notice import budget_problem

        runtime = self.host.runtime
        given = {key: str(message[key]) for key in ("vram", "ram") if key in message}
        if given:
            allowed = Allowed.parse(**(runtime.budget.words | given))
            problem = budget_problem(runtime, allowed)
            if problem:
                raise InputError(problem)
            runtime.budget = allowed
            self.jobs.put({"op": "fit"})
        return runtime.budget.words

    def on_doctor(self, message: Message) -> Any:
        """Whether this machine is ready, line by line. Takes a second or two, while a disk is measured."""
        from ..doctor.examine import examine

        return [finding.record() for finding in examine(self.folders, port=None)]

    def _can_compute(self) -> bool:
        return self.prepared.is_set() and not self.trouble and self.options.get("device") != NO_DEVICE

    def on_system(self, message: Message) -> Any:
        """Devices, once they are known. Does not wait for them: the page asks while torch is being imported."""
        if not self._can_compute():
            return {}
        import torch

        return {"torch": torch.__version__, "devices": self.host.runtime.device_report()}


def _tokenizer(lacking: Lacking) -> dict[str, Any]:
    published = lacking.published
    return {
        "name": f"{published.title} tokenizer ({published.files})", "category": "tokenizers",
        "folder": str(lacking.folder or ""), "node_id": lacking.node_id, "input": lacking.input,
        "source": published.address, "message": lacking.text,
    }  # fmt: skip


def _account(result: Result) -> Message:
    """The end of a run as JSON, checked here so that nothing a node left in it can stop the worker."""
    done = {
        "status": result.status,
        "outputs": result.outputs,
        "meta": result.meta,
        "messages": list(result.messages),
    }
    checked: Message = json.loads(strict_json.dumps(json.loads(json.dumps(done, default=repr))))
    return checked


def _folders(options: Mapping[str, Any]) -> Folders:
    def paths(key: str) -> list[Path]:
        return [Path(place) for place in options.get(key, ())]

    def path(key: str) -> Path | None:
        return Path(options[key]) if options.get(key) else None

    base = Path(options["base"])
    return standard_folders(base, paths("models"), extra=paths("extra"), input=path("input"), output=path("output"))


def _inference_mode() -> AbstractContextManager[Any]:
    import torch

    return torch.inference_mode()
