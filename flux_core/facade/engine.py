"""The engine that ComfyUI's modules for packs use: set once by the program that loads packs.

    use(Engine(folders=..., ...))   called by the worker or the command line
    current()                       called by flux_core/facade/offered/, whose functions are module-level

Independent of: packs, torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import SluiceError
from ..graph.execute import Executor
from ..io.folders import Folders

if TYPE_CHECKING:
    from ...nodes.host import Host
    from ..runtime.runtime import Runtime

NodeTable = dict[str, Any]


@dataclass
class Engine:
    """classes, titles: the tables to which packs add their nodes; own: the ids in them that do not come from packs.

    tell(event, data, client_id): sends a message to the pages; client_id None: to all. free: frees models and results.
    """

    host: Host
    folders: Folders
    classes: NodeTable
    titles: dict[str, str]
    executor: Executor
    tell: Callable[[Any, Any, str | None], None] = lambda event, data, client_id: None
    preview: Callable[[Callable[[], Any]], Any] = lambda make: None  # an image encoded for a progress event
    free: Callable[[], None] = lambda: None
    pack_folders: tuple[str, ...] = ()  # the folders that contain the packs
    own: frozenset[str] = field(default_factory=frozenset)
    absent: Callable[[str], Any] = lambda name: None  # the substitute for a part of ComfyUI that is not offered
    kept: dict[str, Any] = field(default_factory=dict)  # values that the offered modules keep

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """The value that an offered module keeps under this name, created at the first use."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    @property
    def runtime(self) -> Runtime:
        """The runtime that models are loaded into. Raises InputError if the chosen device does not exist."""
        return self.host.runtime

    @property
    def prompt_id(self) -> str | None:
        """The id of the running prompt."""
        return self.executor.running

    @property
    def prompt(self) -> Any:
        """The running prompt, {} without one."""
        return self.executor.running_prompt

    @property
    def client_id(self) -> str | None:
        """The client that queued the running prompt."""
        return self.executor.running_extra.get("client_id")

    def progress(self, value: float, total: float, image: Callable[[], Any] | None = None) -> None:
        """Report progress of a node. Raises Interrupted if it must stop."""
        self.executor.progress(value, total, None if image is None else self.preview(image))

    def stop(self) -> None:
        """Stop the running prompt at its next step."""
        self.executor.cancel()

    def check_interrupted(self) -> None:
        """Raise Interrupted if the running prompt must stop."""
        self.executor.check_interrupted()


_current: list[Engine] = []


def use(engine: Engine) -> None:
    """Set the engine for the packs of this process."""
    _current[:] = [engine]


def forget() -> None:
    """Remove the engine."""
    _current.clear()


def current() -> Engine:
    """The engine. Raises SluiceError without packs."""
    if not _current:
        raise SluiceError("ComfyUI's modules are offered to node packs only, and none are loaded in this process.")
    return _current[0]
