"""The host of nodes: it gives them files, progress and interruption. Only it and the bridges import ComfyUI.

Each front door creates one host and binds the node classes to it (binding.py). Inside ComfyUI, the host uses ComfyUI's
own modules.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..flux_core.errors import InputError, Interrupted, MissingFileError, SluiceError
from ..flux_core.images.previews import FULL_SIZE
from ..flux_core.io.folders import (
    CATEGORIES,
    PICTURE_FILES,
    TINY_INPUT,
    Folders,
    annotated,
    confined,
    standard_folders,
    with_tiny_model,
)
from ..flux_core.runtime.settings import LATENT_RGB, TAEF1
from .bridge_memory import ComfyUIMemory, tell_the_page
from .sockets import INSIDE_COMFYUI

if TYPE_CHECKING:
    from PIL import Image

    from ..flux_core.runtime.latent_previews import Taef1Previews
    from ..flux_core.runtime.runtime import Runtime

log = logging.getLogger(__name__)

Preview = Callable[[], "Image.Image"]  # called only if the preview is shown
Report = Callable[[int, int, "Preview | None"], None]  # (steps done, number of steps, preview)


class Host:
    """The host in the standalone program.

    report         called at each step
    interrupted    called at each step; returns whether to stop
    send           sends an image to the client that queued the job; the command line has no client
    make_runtime   creates the runtime of the models when the first one is loaded
    previews       one of PREVIEWS: how latents are shown during sampling
    """

    def __init__(
        self,
        folders: Folders,
        report: Report = lambda *_: None,
        interrupted: Callable[[], bool] = lambda: False,
        send: Callable[[Image.Image, int, int], None] = lambda *_: None,
        make_runtime: Callable[[], Runtime] | None = None,
        previews: str = LATENT_RGB,
    ) -> None:
        self._folders, self._report, self._interrupted, self._send = folders, report, interrupted, send
        self._previews = previews
        self._taef1: Taef1Previews | None = None
        self._without_taef1 = False  # whether its file is known to be missing
        self._make_runtime = make_runtime or _default_runtime
        self._runtime: Runtime | None = None
        self._lock = threading.Lock()
        # whether jobs wait that are to go first, for long nodes to ask between two steps; the worker sets it
        self.others_wait: Callable[[], bool] = lambda: False

    @property
    def runtime(self) -> Runtime:
        """The runtime for models: device, number types, memory budget. Created at the first use.

        Raises InputError if the chosen device does not exist.
        """
        with self._lock:
            if self._runtime is None:
                self._runtime = self._make_runtime()
            return self._runtime

    @property
    def input(self) -> Path:
        return self._folders.input

    @property
    def output(self) -> Path:
        return self._folders.output

    @property
    def temp(self) -> Path:
        return self._folders.temp

    def filenames(self, category: str) -> list[str]:
        """The names that a widget for model files offers."""
        return self._folders.filenames(category)

    def directories(self, category: str) -> tuple[Path, ...]:
        """The folders searched for a category of model files."""
        return self._folders.directories(category)

    def full_path(self, category: str, name: str) -> Path:
        """The path of a model file. Raises MissingFileError with the full explanation."""
        return self._folders.path(category, name)

    def stamp(self, category: str, name: str) -> str:
        """A text that changes when another file gets this name; "" if there is no such file."""
        try:
            path = self.full_path(category, name)
            status = path.stat()
        except (MissingFileError, OSError):
            return ""
        return f"{path} {status.st_size} {status.st_mtime_ns}"

    def images(self) -> list[str]:
        """The image files directly in the input folder, and those that are shipped with Sluice."""
        return self.inputs(PICTURE_FILES)

    def inputs(self, endings: tuple[str, ...]) -> list[str]:
        """The files with these endings directly in the input folder, and those that are shipped with Sluice."""
        files = [file for folder in (self.input, TINY_INPUT) if folder.is_dir() for file in folder.iterdir()]
        return sorted({file.name for file in files if file.suffix.lower() in endings})

    def file(self, name: str) -> Path:
        """The path of a file named in a workflow; the name may end in [input], [output] or [temp].

        Raises MissingFileError, or InputError for a name outside the folder.
        """
        name, kind = annotated(name)
        folder = {"input": self.input, "output": self.output, "temp": self.temp}[kind]
        path = confined(folder, name)
        if not path.is_file() and kind == "input":
            path = confined(TINY_INPUT, name)
        if not path.is_file():
            raise MissingFileError(f"The file {name!r} is not in the {kind} folder {folder}. Put it there.")
        return path

    def check_interrupted(self) -> None:
        """Raise Interrupted if the user has stopped the run."""
        if self._interrupted():
            raise Interrupted("The run was stopped.")

    def step(self, done: int, total: int, preview: Preview | None = None) -> None:
        """Report a step of longer work. Raises Interrupted if it must stop."""
        self.check_interrupted()
        self._report(done, total, preview)

    def preview(self, latent: Any) -> Image.Image:
        """An image of a latent [16, h, w] in the transformer's scale; only a rough one without TAEF1's file."""
        from PIL import Image

        from ..flux_core.models import latents

        small = len(latent) == latents.CHANNELS and not self._without_taef1 and self._wants_taef1()
        if small and self._taef1 is None:
            self._taef1 = self._new_taef1()
        if not small or self._taef1 is None:
            return Image.fromarray(latents.preview(latent).cpu().numpy())
        image = Image.fromarray(self._taef1.image(latent).numpy())
        image.info[FULL_SIZE] = True
        return image

    def _wants_taef1(self) -> bool:
        return self._previews == TAEF1

    def _new_taef1(self) -> Taef1Previews | None:
        from ..flux_core.runtime.latent_previews import Taef1Previews

        try:
            return Taef1Previews(self.runtime, self.full_path("vae_approx", "taef1_decoder.safetensors"))
        except SluiceError as error:
            self._without_taef1 = True
            log.warning("Previews are rough, because TAEF1 cannot be used: %s", error)
            return None

    def send(self, image: Image.Image, number: int, total: int) -> None:
        """Send a full image to the client that queued the job: number `number` (from 0) of `total`."""
        self.check_interrupted()
        self._send(image, number, total)

    def guider(self, guider: Any) -> Any:
        """The value of a GUIDER link."""
        return guider

    def model(self, model: Any) -> Any:
        """The value of a MODEL link for nodes of others."""
        return model

    def run_foreign(self, sampler: Any, guider: Any, noise: Any, sigmas: Any, latent: Any) -> tuple[Any, Any]:
        """Denoise with a sampler that is not ours. Returns (output, denoised output), as SamplerCustomAdvanced does."""
        raise InputError(f"{type(sampler).__name__} is not a sampler of Sluice. Choose one with KSamplerSelect.")


class ComfyUI(Host):
    """The host inside ComfyUI: ComfyUI's folders, progress bar and interrupt, and the tiny model."""

    def __init__(self) -> None:
        import folder_paths

        self._paths: Any = folder_paths  # its functions return the current folders; its variables may be outdated
        super().__init__(self._gathered(), make_runtime=_runtime_inside)

    @property
    def input(self) -> Path:
        return Path(self._paths.get_input_directory())

    @property
    def output(self) -> Path:
        return Path(self._paths.get_output_directory())

    @property
    def temp(self) -> Path:
        return Path(self._paths.get_temp_directory())

    def directories(self, category: str) -> tuple[Path, ...]:
        self._refresh()
        return super().directories(category)

    def filenames(self, category: str) -> list[str]:
        self._refresh()
        return super().filenames(category)

    def full_path(self, category: str, name: str) -> Path:
        self._refresh()
        return super().full_path(category, name)

    def check_interrupted(self) -> None:
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()

    def step(self, done: int, total: int, preview: Preview | None = None) -> None:
        import comfy.utils
        from comfy.cli_args import LatentPreviewMethod, args

        self.check_interrupted()
        wanted = args.preview_method != LatentPreviewMethod.NoPreviews
        shown = ("JPEG", preview(), args.preview_size) if preview and wanted else None
        comfy.utils.ProgressBar(total).update_absolute(done, total, shown)

    def _wants_taef1(self) -> bool:
        from comfy.cli_args import LatentPreviewMethod, args

        return bool(args.preview_method == LatentPreviewMethod.TAESD)

    def guider(self, guider: Any) -> Any:
        from .bridge_guider import BridgedGuider

        return BridgedGuider(guider)

    def model(self, model: Any) -> Any:
        from .bridge_model import as_comfy_model

        return as_comfy_model(model)

    def run_foreign(self, sampler: Any, guider: Any, noise: Any, sigmas: Any, latent: Any) -> tuple[Any, Any]:
        from .bridge_guider import run_sampler

        return run_sampler(self.guider(guider), sampler, noise, sigmas, latent)

    def _refresh(self) -> None:
        """Read the model folders again: other packs may add some at any time."""
        gathered = self._gathered()
        if gathered.models != self._folders.models:
            self._folders = gathered

    def _gathered(self) -> Folders:
        known = self._paths.folder_names_and_paths
        models = {c: [Path(place) for place in known[c][0]] for c in CATEGORIES if c in known}
        models["tokenizers"] = [Path(self._paths.models_dir) / "tokenizers"]
        place = Path(self._paths.get_user_directory())
        return Folders(with_tiny_model(models), input=self.input, output=self.output, temp=self.temp, user=place)


def pack_host() -> Host:
    """The host of the node pack: ComfyUI's, or one with the folders of the working directory without ComfyUI."""
    return ComfyUI() if INSIDE_COMFYUI else Host(standard_folders(Path.cwd()))


def _default_runtime() -> Runtime:
    from ..flux_core.runtime.runtime import Runtime

    return Runtime()


def _runtime_inside() -> Runtime:
    """A runtime with ComfyUI's device and the memory that ComfyUI grants; its events go to the open pages."""
    from ..flux_core.runtime.runtime import Runtime
    from ..flux_core.runtime.settings import Settings
    from ..flux_core.runtime.warning_events import emit_warnings

    memory = ComfyUIMemory()
    runtime = Runtime(Settings(memory.device), memory)
    runtime.events.listen(tell_the_page)
    emit_warnings(runtime)
    return runtime
