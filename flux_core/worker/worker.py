"""The worker's main thread: the tables of nodes, the graph engine, and the jobs that run one after another."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cancel import cancellable
from ..errors import SluiceError
from ..graph.execute import Executor, Result, current_call
from ..io import strict_json
from ..io.file_hashes import hashes_of
from ..io.folders import Folders, standard_folders
from ..limits import advice_after, is_out_of_memory
from ..parallel.split import devices_of
from ..processor.lasting_imports import lasting_imports
from ..runtime.settings import LATENT_RGB, Settings
from ..workers.protocol import Channel, Message
from ..workers.unfinished import forget, unfinished
from .measure import Measure, release_memory
from .reports import Reports
from .used_files import chosen_settings, used_files, used_paths, with_files

if TYPE_CHECKING:
    from ...nodes.host import Host
    from ..runtime.runtime import Runtime
    from .node_packs import NodePacks

NO_ROUTES: dict[str, Any] = {"routes": [], "on_prompt": False}
SETTINGS = ("device", "dtype", "vram", "ram", "cache", "compute", "attention")  # of runtime/settings.py, in its order
NO_DEVICE = "none"  # for packs that need no torch, and to measure the server: our models cannot run then


class Worker:
    """Runs jobs. Calls and messages of the server arrive in other threads (calls.py)."""

    def __init__(self, channel: Channel, options: Mapping[str, Any]) -> None:
        self.channel, self.options = channel, options
        self.jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.prepared = threading.Event()
        self.trouble: str | None = None  # why nothing can be computed
        self.pausing: set[str] = set()  # jobs that will be paused
        self.stepping_aside: set[str] = set()  # jobs that will stop after a step, for others to go first
        self.resumed = False  # whether the running job has begun before
        self.gave_way = False  # whether the running job stops because another program has taken memory
        self.reports = Reports(channel)
        self.folders = _folders(options)
        self.hashes = hashes_of(self.folders.user)
        self.host = self._new_host()
        self.host.others_wait = lambda: self.executor.running in self.stepping_aside
        self.classes, self.titles = self._tables()
        self.executor = Executor(
            self.classes, emit=self.reports.emit, around=self._around, after_failure=advice_after, refused=self._refused
        )
        self.reports.executor = self.executor
        self.packs = self._packs()
        self.routes = self.packs.start_routes() if self.packs else NO_ROUTES

    @contextmanager
    def _around(self) -> Iterator[None]:
        """The context of each job: long computations check in it whether the job was cancelled."""
        computing = nullcontext if self.options.get("device") == NO_DEVICE else _inference_mode
        with computing(), cancellable(self.executor.check_interrupted):
            yield

    def _refused(self, prompt: Mapping[str, Any]) -> Iterable[tuple[str, Exception]]:
        """Nodes for which there is too little memory."""
        if self.options.get("device") == NO_DEVICE:
            return ()
        from .too_large import too_large

        return too_large(prompt, self.classes, self.folders, self.host.runtime)

    def _new_host(self) -> Host:
        from ...nodes.host import Host

        return Host(
            self.folders, self.reports.progressed, self.reports.interrupted, self.reports.send, self._new_runtime,
            self.options.get("previews", LATENT_RGB),
        )  # fmt: skip

    def _new_runtime(self) -> Runtime:
        """The runtime into which models are loaded. Raises InputError for options that cannot be used."""
        from ..runtime.runtime import Runtime
        from ..runtime.warning_events import emit_warnings

        runtime = Runtime(Settings.parse(*(self.options.get(name) for name in SETTINGS)))
        if self.options.get("team"):
            from ..runtime.team import Team

            runtime.team = Team.parse(self.options["team"], runtime.device, runtime.events.emit)
        if self.options.get("gives_way"):
            runtime.give_way = self._give_way
        on_card = runtime.device.type != "cpu"
        runtime.events.listen(lambda event: self.reports.ran(event, on_card))
        emit_warnings(runtime)
        return runtime

    def _tables(self) -> tuple[dict[str, type[Any]], dict[str, str]]:
        from .program_nodes import program_tables

        return program_tables(self.host)

    def _packs(self) -> NodePacks | None:
        places = [Path(place) for place in self.options.get("node_packs", ())]
        if not places:
            return None
        from ..facade.engine import Engine
        from .node_packs import load_packs

        engine = Engine(
            self.host, self.folders, self.classes, self.titles, self.executor,
            tell=self.reports.tell, preview=self.reports.previewed, free=self.free_soon,
        )  # fmt: skip
        return load_packs(places, engine)

    def work(self) -> None:
        """Run jobs without end."""
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
        """Import torch and prepare the device, while the user still looks at the page."""
        if self.options.get("device") == NO_DEVICE:
            return
        with lasting_imports():
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
        self.reports.measure, self.gave_way = Measure(), False
        prompt_id = job["prompt_id"]
        self.resumed = unfinished(self.folders.user, prompt_id).is_dir()
        self._keep_evaluations(prompt_id)
        try:
            if self.trouble:
                raise SluiceError(self.trouble)
            paths = used_paths(job["prompt"], self.classes, self.folders)
            exact = is_exact(job["extra_data"])
            about = devices_of(self.options.get("team")), chosen_settings(self.options, exact)
            extra = with_files(job["extra_data"], used_files(paths, self.hashes), *about)
            with self._exactly(exact):
                result = self.executor.execute(job["prompt"], prompt_id, extra, job["outputs"])
            self._hash(paths.values())
            done = _as_json(result)
        except Exception as error:  # an error of the engine; errors of nodes are in the result
            traceback.print_exc()
            result, done = None, self._engine_failed(job, error)
        paused = prompt_id in self.pausing and done["status"] == "interrupted"
        aside = prompt_id in self.stepping_aside and done["status"] == "interrupted" and not paused
        self.pausing.discard(prompt_id)
        self.stepping_aside.discard(prompt_id)
        if paused:  # pages are told that no model is loaded; then the server ends this process
            self._free({"free_memory": True})
        elif not aside:
            forget(self.folders.user, prompt_id)
        outcome = {
            **done,
            "paused": paused,
            "aside": aside,
            "gave_way": paused and self.gave_way,
            "facts": self.reports.measure.facts(),
        }
        self.channel.send({"done": prompt_id, **outcome})
        if result is not None and result.exception is not None and is_out_of_memory(result.exception):
            self._free({"free_memory": True})
        elif done["status"] != "success":  # what a cancelled training held is not kept for a next step
            release_memory()

    def _keep_evaluations(self, prompt_id: str) -> None:
        """Keep the evaluations of the job until it ends, so that it can be paused, and continues after a crash."""
        if self.trouble or self.options.get("device") == NO_DEVICE:
            return
        from ..runtime.evaluation_log import EvaluationLog

        folder = unfinished(self.folders.user, prompt_id)
        self.host.runtime.evaluations = EvaluationLog(folder, lambda: repr(current_call.get()))

    @contextmanager
    def _exactly(self, wanted: bool) -> Iterator[None]:
        """If wanted, models compute every step from decoded numbers, and no other job sees the results."""
        if not wanted or self.options.get("device") == NO_DEVICE:
            yield
            return
        self.executor.cache.forget_all()
        self.host.runtime.exact = True
        try:
            yield
        finally:
            self.host.runtime.exact = False
            self.executor.cache.forget_all()

    def _hash(self, paths: Iterable[Path]) -> None:
        """Large files are hashed while no job runs, so that the next image can name their content."""
        threading.Thread(
            target=self.hashes.compute_missing, args=(list(paths), lambda: not self.jobs.empty()), daemon=True
        ).start()

    def pause(self, prompt_id: str) -> None:
        """Stop a job, now or when it begins, and keep its evaluations. Called by another thread."""
        self.pausing.add(prompt_id)
        self.executor.cancel(prompt_id)

    def _give_way(self, opening: bool) -> None:
        """Stop the running job and let it go on later: another program has taken memory. Raises Interrupted.

        opening: a model cannot even begin; that is another program's doing only if the job has begun before.
        """
        running = self.executor.running
        if running is not None and (self.resumed or not opening):
            self.gave_way = True
            self.pause(running)
            self.executor.check_interrupted()

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
        self.reports.emit("execution_error", data)
        return {"status": "error", "outputs": {}, "meta": {}, "messages": [["execution_error", data]]}

    def _fit(self) -> None:
        """Between jobs: free weights at once if the budget has become smaller."""
        self.host.runtime.shrink_to_budget()
        release_memory()

    def _free(self, wanted: Message) -> None:
        if wanted.get("unload_models") or wanted.get("free_memory"):
            self.executor.forget()
            release_memory()
            self.channel.send({"event": "sluice.memory.freed", "data": {}})

    def free_soon(self) -> None:
        """Free models and results after the running job, at a pack's request."""
        self.jobs.put({"op": "free", "unload_models": True})


def is_exact(extra_data: Mapping[str, Any]) -> bool:
    """Whether a job is to be computed exactly: without what `chosen_settings` names (server/exact.py)."""
    ours = extra_data.get("sluice")
    return isinstance(ours, Mapping) and "exact_of" in ours


def _as_json(result: Result) -> Message:
    """The result of a run as JSON. It is checked here so that a node's output cannot stop the worker."""
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
