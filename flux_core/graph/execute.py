"""Run a prompt: each node once, after its inputs; cached nodes do not run.

    Events: execution_start, execution_cached, per node: progress_state, executing, [progress, preview]*, [executed],
    progress_state, at the end: execution_success | execution_error | execution_interrupted

The final `executing {"node": null}` is sent by the owner of the queue, because it must come after the entry in the
history. Independent of node classes, images, networks and torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..errors import Interrupted, PromptError
from .cache import Cache, CachedOutput, CacheKeys
from .calls import (
    Arguments,
    ExecutionBlocker,
    Gathered,
    Outputs,
    Returned,
    Row,
    arguments,
    blocker_in,
    finished,
    gather,
    merge,
    read_returns,
    wants_lists,
)
from .dynamic import nested
from .events import Emit, Events, Message
from .interface import Classes, Interface, Interfaces
from .live import LivePrompt
from .order import DependencyCycle, Waiting
from .prompt import JsonPrompt, Link, Node, is_link
from .tasks import Tasks

# (node id, number of the call) of the node function that runs in this thread or task.
current_call: ContextVar[tuple[str, int] | None] = ContextVar("current_call", default=None)


@dataclass(frozen=True)
class Result:
    """How a prompt ended. The first two fields are its entry in the history."""

    outputs: dict[str, Any]  # node id -> data it shows: {"images": [{"filename", "subfolder", "type"}]}
    meta: dict[str, Any]  # node id -> {"node_id", "display_node", "parent_node", "real_node_id"}
    status: str  # "success", "error" or "interrupted"
    messages: tuple[Message, ...]  # the execution_* events
    executed: tuple[str, ...]  # nodes that ran, in order; cached ones are not among them
    exception: Exception | None = (
        None  # the exception that stopped it, without its traceback, which would keep tensors alive
    )


class Executor:
    """Runs prompts one after another and caches the results of their nodes.

    `emit(event, data)` is called in the running thread. The context `around` is entered for the duration of each prompt
    (for example torch.inference_mode). `after_failure` is called with the exception of a failed node; it may free
    memory, and the text it returns is added to the message. `prepare(node class, arguments)` returns the arguments in
    the form that the node class expects. `refused` returns nodes of a prompt that cannot succeed, each with the reason;
    if one of them is to run, no node runs. `cancel` may be called from any thread, everything else only from the
    running one.
    """

    def __init__(
        self,
        classes: Classes,
        emit: Emit = lambda event, data: None,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
        after_failure: Callable[[Exception], str] = lambda error: "",
        prepare: Callable[[type[Any], Arguments], Arguments] = lambda node_class, call: call,
        refused: Callable[[JsonPrompt], Iterable[tuple[str, Exception]]] = lambda prompt: (),
    ) -> None:
        self.classes = classes
        self.emit = emit
        self.around = around
        self.after_failure = after_failure
        self.prepare = prepare
        self.refused = refused
        self.cache = Cache()
        self._run: _Run | None = None
        self._cancelled: set[str] = set()

    def execute(
        self,
        prompt: JsonPrompt,
        prompt_id: str = "",
        extra_data: Mapping[str, Any] | None = None,
        outputs: Iterable[str] = (),
    ) -> Result:
        """Run the output nodes `outputs` of a validated prompt (both come from `validate`) and all nodes they need.

        `extra_data["extra_pnginfo"]` is passed to nodes as EXTRA_PNGINFO. Errors of nodes become part of the result;
        only a BaseException that is not an Exception (KeyboardInterrupt) is raised.
        """
        run = self._run = _Run(self, prompt, prompt_id, extra_data or {})
        run.cancelled = prompt_id in self._cancelled
        try:
            with self.around():
                return run.all(outputs)
        finally:
            self._run = None
            self._cancelled.discard(prompt_id)
            run.tasks.close()

    @property
    def running(self) -> str | None:
        """The id of the running prompt."""
        return None if self._run is None else self._run.prompt_id

    @property
    def running_prompt(self) -> JsonPrompt:
        """The running prompt in its original form; {} while none runs."""
        return {} if self._run is None else self._run.live.original

    @property
    def running_extra(self) -> Mapping[str, Any]:
        """The extra data of the running prompt."""
        return {} if self._run is None else self._run.extra_data

    def cancel(self, prompt_id: str | None = None) -> None:
        """Stop the running prompt at its next step; or the prompt with this id, now or when it begins."""
        if prompt_id is not None:
            self._cancelled.add(prompt_id)
        run = self._run
        if run is not None and prompt_id in (None, run.prompt_id):
            run.cancelled = True

    def check_interrupted(self) -> None:
        """For nodes to call between steps. Raises Interrupted if the running prompt was cancelled."""
        if self._run is not None and self._run.cancelled:
            raise Interrupted("Stopped on request.")

    def progress(self, value: float, maximum: float, preview: Any = None) -> None:
        """For nodes to call after each step: `value` of `maximum` steps are done. Raises Interrupted.

        `preview` is passed on unchanged in a `preview` event: {"image", "prompt_id"} and the ids of the node.
        """
        self.check_interrupted()
        if self._run is not None:
            call = current_call.get()
            self._run.events.progressed(call[0] if call else self._run.node_id, value, maximum, preview)

    def preview(self, image: Any) -> None:
        """For nodes that show an image between steps; the event is the one of `progress`."""
        if self._run is not None:
            call = current_call.get()
            self._run.events.previewed(call[0] if call else self._run.node_id, image)

    def forget(self) -> None:
        """Drop everything that is kept from earlier prompts."""
        self.cache = Cache()


class _Run:
    """The run of one prompt."""

    def __init__(self, executor: Executor, prompt: JsonPrompt, prompt_id: str, extra_data: Mapping[str, Any]) -> None:
        self.executor = executor
        self.prompt_id = prompt_id
        self.extra_data = extra_data
        self.cancelled = False
        self.cache = executor.cache
        self.live = LivePrompt(prompt)
        self.interfaces = Interfaces(executor.classes)
        self.keys = CacheKeys(self.live, self.interfaces)
        self.waiting = Waiting(self.live, self.interfaces, lambda node_id: self.made(node_id) is not None)
        self.events = Events(executor.emit, self.live, prompt_id)
        self.tasks = Tasks()
        self.expanding: dict[str, Returned] = {}  # nodes whose graphs are being run
        self.executed: list[str] = []
        self.node_id = ""  # being run
        self.inputs: Mapping[str, list[Any]] = {}  # of that node

    def all(self, outputs: Iterable[str]) -> Result:
        self.events.message("execution_start", {})
        try:
            self.cache.begin(self.live, self.keys)
            cached = [node_id for node_id in self.live.nodes if self.made(node_id) is not None]
            self.events.message("execution_cached", {"nodes": cached})
            for node_id in outputs:
                self.waiting.add(node_id)
            self._refuse()
            while self.waiting:
                self._next()
        except Exception as error:
            advice = "" if isinstance(error, Interrupted) else self.executor.after_failure(error)
            self.events.stopped(self._blamed(error), list(self.executed), error, self.inputs, advice)
            status = "interrupted" if isinstance(error, Interrupted) else "error"
            return self._result(status, error.with_traceback(None))
        self.events.message("execution_success", {})
        return self._result("success", None)

    def _refuse(self) -> None:
        """Raises the reason why a node that is to run cannot succeed."""
        for node_id, error in self.executor.refused(self.live.original):
            if node_id in self.waiting and self.made(node_id) is None:
                self.node_id = node_id
                raise error

    def made(self, node_id: str) -> CachedOutput | None:
        return self.cache.get(self.keys[node_id])

    def outputs_of(self, node_id: str) -> Outputs | None:
        made = self.made(node_id)
        return None if made is None else made.outputs

    # One node ------------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Advance one node, or wait until one is ready."""
        self.node_id, self.inputs = "", {}
        self.executor.check_interrupted()
        node_id = self.waiting.pick()
        if node_id is None:
            for done in self.tasks.wait():
                self.waiting.release(done)
            return
        self.node_id = node_id
        made = self.made(node_id)
        if made is not None:
            self.events.executed(node_id, made.ui or None)
        elif self._step(self.live.nodes[node_id]):
            self.executed.append(node_id)
        else:
            return
        self.events.finished(node_id)
        self.waiting.remove(node_id)

    def _step(self, node: Node) -> bool:
        """Begin or continue a node. Returns whether it is done; otherwise it waits for other nodes or tasks."""
        interface = self.interfaces[node.class_type]
        if node.id in self.expanding:
            returned = self.expanding.pop(node.id)
            rows = [Row(self._resolved(row)) for row in returned.rows]
            return self._keep(node, interface, Returned(tuple(rows), returned.ui))
        if node.id in self.tasks:
            returns = self.tasks.take(node.id)
        else:
            gathered = self._begin(node, interface)
            thing = self.cache.object(node, interface.node_class)
            if self._needs_more_inputs(node, thing, gathered):
                return False
            returns = self._call(node, getattr(thing, interface.function), wants_lists(thing), gathered)
            if any(map(inspect.isawaitable, returns)):
                self.waiting.hold(node.id)
                return False
        returned = read_returns(returns, interface)
        if returned.ui:
            self.events.executed(node.id, returned.ui)
        if any(row.graph is not None for row in returned.rows):
            self._expand(node, returned)
            return False
        return self._keep(node, interface, returned)

    def _keep(self, node: Node, interface: Interface, returned: Returned) -> bool:
        outputs = merge([row.result for row in returned.rows], interface.node_class)
        self.cache.put(self.keys[node.id], CachedOutput(outputs, returned.ui))
        return True

    def _begin(self, node: Node, interface: Interface) -> Gathered:
        self.events.started(node.id)
        hidden = {
            "PROMPT": self.live.original,
            "DYNPROMPT": self.live,
            "EXTRA_PNGINFO": self.extra_data.get("extra_pnginfo"),
            "UNIQUE_ID": node.id,
        }
        gathered = gather(node, interface, hidden, self.outputs_of)
        self.inputs = gathered.values
        self.events.executing(node.id)
        return gathered

    def _needs_more_inputs(self, node: Node, thing: Any, gathered: Gathered) -> bool:
        """Call check_lazy_status of a node with lazy inputs. Returns whether some of the inputs have to run first."""
        if not hasattr(thing, "check_lazy_status"):
            return False
        wanted: dict[str, None] = {}
        for call in arguments(gathered.values, wants_lists(thing)):
            if blocker_in(call, wants_lists(thing)) is None:
                answer = finished(thing.check_lazy_status(**self._prepared(node, call)))
                wanted |= dict.fromkeys(answer if isinstance(answer, (list, tuple)) else ())
        needed = [name for name in wanted if name in gathered.missing or name not in gathered.values]
        for name in needed:
            link = node.inputs.get(name)
            if not isinstance(link, Link):
                raise PromptError([f"Node {node.id} needs its input {name}, but nothing is linked to it."])
            self.waiting.need(link.node_id, node.id)
        return bool(needed)

    def _prepared(self, node: Node, call: Arguments) -> Arguments:
        """The arguments of a call in the form that the node class expects."""
        interface = self.interfaces[node.class_type]
        return nested(interface, self.executor.prepare(interface.node_class, call))

    def _call(self, node: Node, function: Callable[..., Any], whole_lists: bool, gathered: Gathered) -> list[Any]:
        """Call a node for each set of its inputs. Coroutines are started here."""
        returns: list[Any] = []
        for number, call in enumerate(arguments(gathered.values, whole_lists)):
            self.executor.check_interrupted()
            blocker = blocker_in(call, whole_lists)
            if blocker is not None:
                returns.append(self._blocked(node, blocker))
                continue
            token = current_call.set((node.id, number))
            try:
                returns.append(function(**self._prepared(node, call)))
                if inspect.isawaitable(returns[-1]):
                    returns[-1] = self.tasks.begin(returns[-1])
            finally:
                current_call.reset(token)
        if any(map(inspect.isawaitable, returns)):
            self.tasks.start(node.id, returns)
        return returns

    def _blocked(self, node: Node, blocker: ExecutionBlocker) -> ExecutionBlocker:
        """The result of a call that an ExecutionBlocker prevents. The blocker's message is shown once, not for every
        node that depends on it.
        """
        if blocker.message is not None:
            self.events.blocked(node.id, list(self.executed), blocker.message)
        return ExecutionBlocker(None)

    # Nodes that expand into graphs ---------------------------------------------------------------------------------

    def _expand(self, node: Node, returned: Returned) -> None:
        """Add the graphs that a node returned; the node is done when they are."""
        root = self.live.nodes[self.live.get_real_node_id(node.id)]
        if root is node:
            self.cache.regrow(root)
        for graph in [row.graph for row in returned.rows if row.graph is not None]:
            for node_id, data in graph.items():
                if data["class_type"] not in self.interfaces:
                    problem = (
                        f"Node {node.id} expands into a {data['class_type']}, but there is no such node class here."
                    )
                    raise PromptError([problem])
                self.live.grow(node_id, data, parent=node.id)
        for node_id in [node_id for row in returned.rows for node_id in row.graph or ()]:
            grown = self.live.nodes[node_id]
            self.cache.grown(root, grown, self.keys[node_id])
            if self.interfaces[grown.class_type].is_output:
                self.waiting.add(node_id)
        for row in returned.rows:
            for link in [item for item in row.result if row.graph is not None and is_link(item)]:
                self.waiting.need(link[0], node.id)
        self.expanding[node.id] = returned

    def _resolved(self, row: Row) -> list[Any]:
        """A result with the links into its graph replaced by their values."""
        values: list[Any] = []
        for item in row.result:
            outputs = self.outputs_of(item[0]) if row.graph is not None and is_link(item) else None
            values += [item] if outputs is None else outputs[item[1]]
        return values

    # The end -------------------------------------------------------------------------------------------------------

    def _blamed(self, error: Exception) -> str:
        """The node of the request to which an error belongs; for a cycle, a node whose expansion contains it."""
        node_id = self.node_id
        if isinstance(error, DependencyCycle):
            grown = [one for one in error.nodes if self.live.get_parent_node_id(one) is not None]
            node_id = (grown or error.nodes)[0]
        return self.live.get_real_node_id(node_id or next(iter(self.live.nodes), ""))

    def _result(self, status: str, error: Exception | None) -> Result:
        outputs, meta = {}, {}
        for node_id in self.live.nodes:
            made = self.made(node_id)
            if made is not None and made.ui:
                ids = self.live.identity(node_id)
                outputs[node_id] = dict(made.ui)
                meta[node_id] = {
                    "node_id": node_id,
                    "display_node": ids["display_node_id"],
                    "parent_node": ids["parent_node_id"],
                    "real_node_id": ids["real_node_id"],
                }
        return Result(outputs, meta, status, tuple(self.events.messages), tuple(self.executed), error)
