"""The program without a command line or a server: folders, node classes, engine and runtime in this process."""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cancel import cancellable
from ..commands.run import with_place
from ..errors import Interrupted, PromptError
from ..graph.execute import Executor
from ..graph.partial import only_unconnected
from ..graph.prompt import JsonPrompt, title_of
from ..io.folders import Folders, standard_folders
from ..limits import advice_after
from ..runtime.settings import Settings
from ..worker.prompt_check import check_prompt
from ..worker.too_large import too_large

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from ...nodes.host import Host
    from ..runtime.runtime import Runtime

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Step:
    """One step of a node that takes long: `done` of `total` steps, and a preview of the image."""

    title: str
    done: int
    total: int
    _preview: Callable[[], Image.Image] | None = field(default=None, repr=False)

    def preview(self) -> Image.Image | None:
        """A small RGB image of the unfinished result, computed at each call; None if the node has none."""
        return self._preview() if self._preview else None


OnStep = Callable[[Step], None]


class Program:
    """Runs prompts one after another, with models and encoded prompts kept loaded between them.

    Its methods may be called from any thread; a second call waits until the first is done.
    """

    def __init__(
        self,
        settings: Settings,
        models: Iterable[PathLike] = (),
        input: PathLike | None = None,
        extra: Mapping[str, Iterable[Path]] | None = None,
    ) -> None:
        """models: ComfyUI-like models folders, beside ./models. extra: category -> folders that are searched first.

        Raises MissingFileError for a folder that does not exist, InputError for a device that does not exist.
        """
        from ...nodes.host import Host
        from ..worker.registry import standalone_tables

        self._temporary = tempfile.TemporaryDirectory(prefix="sluice-")
        made = Path(self._temporary.name)
        found = standard_folders(
            Path.cwd(), map(Path, models), input=Path(input) if input else None, output=made / "output"
        )
        searched = dict(found.models)
        for category, places in (extra or {}).items():
            searched[category] = (*places, *searched.get(category, ()))
        self.folders = Folders(searched, input=found.input, output=found.output, temp=made / "temp", user=made / "user")
        self._settings = settings
        self._lock = threading.Lock()
        self._on_step: OnStep | None = None
        self._titles: Mapping[str, str] = {}
        self._node = ""
        self.host: Host = Host(self.folders, report=self._reported, make_runtime=self._new_runtime)
        self.classes, self.titles = standalone_tables(self.host)
        self._executor = Executor(
            self.classes, emit=self._heard, around=self._around, after_failure=advice_after,
            refused=lambda prompt: too_large(prompt, self.classes, self.folders, self.runtime),
        )  # fmt: skip

    @property
    def runtime(self) -> Runtime:
        """Device, number types, memory budget and loaded weights of this program."""
        return self.host.runtime

    def cancel(self) -> None:
        """Stop the running prompt within one block of the model; its call raises Interrupted."""
        self._executor.cancel()

    def checked(self, prompt: JsonPrompt, what: str) -> tuple[JsonPrompt, tuple[str, ...]]:
        """The prompt with its files as they are listed, and its output nodes. Raises PromptError with every problem.

        Outputs that lack only a link are left out if there are others, as in ComfyUI, with a warning.
        """
        found = check_prompt(prompt, self.classes, self.folders).found
        if found.outputs and only_unconnected(found.problems, found.prompt, self.classes):
            for sentence in found.sentences:
                warnings.warn(f"{what}: {sentence} Outputs that need it are left out.", stacklevel=3)
        elif found.problems:
            raise PromptError([f"{what} cannot be run:", *(f"  {sentence}" for sentence in found.sentences)])
        return found.prompt, found.outputs

    def run(
        self,
        prompt: JsonPrompt,
        outputs: Iterable[str],
        canvas: Any | None = None,
        on_step: OnStep | None = None,
        progress: bool = True,
    ) -> list[Image.Image]:
        """The images that the output nodes of a checked prompt show, each with its workflow in `image.info`.

        on_step: called after every step. progress: draw a bar, also in a notebook. Raises Interrupted after `cancel`,
        and the error that stopped a node, with the node's name.
        """
        with self._lock, ExitStack() as stack:
            bar = stack.enter_context(_bar()) if progress else None
            self._on_step = _both(on_step, bar)
            self._titles = {node_id: title_of(node) for node_id, node in prompt.items()}
            stack.callback(self._forget_listener)
            self._executor.cache.forget_shown()  # a prompt that is run again shows its images again
            extra = {"extra_pnginfo": {"workflow": canvas}} if canvas else {}
            result = self._executor.execute(prompt, "", extra, outputs)
            if result.status == "interrupted":
                raise Interrupted("The run was stopped.")
            if result.exception is not None:
                raise with_place(result, prompt)
            shown = [image for each in result.outputs.values() for image in each.get("images", ())]
            return [self._opened(image) for image in shown]

    def _opened(self, shown: Mapping[str, str]) -> Image.Image:
        """An image file that a node has written, read into memory; the file is deleted."""
        from PIL import Image

        root = {"output": self.folders.output, "temp": self.folders.temp, "input": self.folders.input}[shown["type"]]
        path = root / shown["subfolder"] / shown["filename"]
        with Image.open(path) as image:
            image.load()
            kept: Image.Image = image.copy()
        if shown["type"] != "input":
            path.unlink()
        return kept

    def _forget_listener(self) -> None:
        self._on_step = None

    def _heard(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "executing":
            self._node = str(data.get("node") or "")

    def _reported(self, done: int, total: int, preview: Callable[[], Image.Image] | None) -> None:
        self._executor.progress(done, total)
        if self._on_step is not None:
            self._on_step(Step(self._titles.get(self._node, ""), done, total, preview))

    def _around(self) -> AbstractContextManager[None]:
        return _computing(self._executor)

    def _new_runtime(self) -> Runtime:
        from ..runtime.runtime import Runtime

        return Runtime(self._settings)


@contextmanager
def _computing(executor: Executor) -> Iterator[None]:
    import torch

    with torch.inference_mode(), cancellable(executor.check_interrupted):
        yield


@contextmanager
def _bar() -> Iterator[OnStep]:
    """A bar for the node that is running, in a terminal or a notebook."""
    from tqdm.auto import tqdm

    bars: dict[str, Any] = {}

    def show(step: Step) -> None:
        bar = bars.get(step.title)
        if bar is None or bar.total != step.total or step.done < bar.n:
            for other in bars.values():
                other.close()
            bars.clear()
            bar = bars[step.title] = tqdm(total=step.total, desc=step.title, unit="step")
        bar.update(step.done - bar.n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


def _both(*listeners: OnStep | None) -> OnStep:
    heard = [listener for listener in listeners if listener is not None]

    def tell(step: Step) -> None:
        for listener in heard:
            listener(step)

    return tell
