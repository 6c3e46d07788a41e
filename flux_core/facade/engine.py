"""What the modules that packs see need of the program around them: its one way in, given once by whoever loads packs.

    use(Engine(folders=..., ...))   the worker, or the command line
    current()                       asked by flux_core/facade/offered/, whose functions are module-level

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
    """`classes`, `titles`: the tables that packs add their nodes to; `own` are the ids in them that are not packs'.

    tell(event, data, client_id): a message for the pages; client_id None is everybody. `free`: forget what is kept.
    """

    host: Host
    folders: Folders
    classes: NodeTable
    titles: dict[str, str]
    executor: Executor
    tell: Callable[[Any, Any, str | None], None] = lambda event, data, client_id: None
    preview: Callable[[Callable[[], Any]], Any] = lambda make: None  # an image as a progress event carries it
    free: Callable[[], None] = lambda: None
    own: frozenset[str] = field(default_factory=frozenset)
    absent: Callable[[str], Any] = lambda name: None  # what stands for a part of ComfyUI that is not offered
    kept: dict[str, Any] = field(default_factory=dict)  # what the offered modules keep for as long

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What an offered module keeps under this name, made when first asked for."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    @property
    def runtime(self) -> Runtime:
        """What models are loaded into. Raises InputError if the chosen device is not there."""
        return self.host.runtime

    @property
    def prompt_id(self) -> str | None:
        """Of the running prompt."""
        return self.executor.running

    @property
    def prompt(self) -> Any:
        """The running prompt itself, {} while there is none."""
        return self.executor.running_prompt

    @property
    def client_id(self) -> str | None:
        """Who queued the running prompt."""
        return self.executor.running_extra.get("client_id")

    def progress(self, value: float, total: float, image: Callable[[], Any] | None = None) -> None:
        """A node has done a part of its work. Raises Interrupted if it is to stop."""
        self.executor.progress(value, total, None if image is None else self.preview(image))

    def stop(self) -> None:
        """Stop the running prompt at its next step."""
        self.executor.cancel()

    def check_interrupted(self) -> None:
        """Raises Interrupted if the running prompt is to stop."""
        self.executor.check_interrupted()


_current: list[Engine] = []


def use(engine: Engine) -> None:
    """Say who is around the packs of this process."""
    _current[:] = [engine]


def forget() -> None:
    """Nobody is, from now on."""
    _current.clear()


def current() -> Engine:
    """Raises SluiceError where no packs are loaded."""
    if not _current:
        raise SluiceError("ComfyUI's modules are offered to node packs only, and none are loaded in this process.")
    return _current[0]
