"""Make the images of a comparison: every setting, every prompt, every seed; what is there already is kept."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api.files import save
from ..api.program import Program
from ..api.workflow import Workflow
from ..commands import workflows
from ..errors import InputError
from ..images.similarity import psnr, ssim
from ..memory import meter
from .results import Made, Results
from .setting import Setting

if TYPE_CHECKING:
    from PIL import Image

Tell = Callable[[Setting, Made], None]
OWN_PROMPT = "(the prompt of the workflow)"


def make(
    settings: Sequence[Setting],
    results: Results,
    folder: Path,
    models: Sequence[Path] = (),
    input: Path | None = None,
    tell: Tell = lambda setting, made: None,
) -> None:
    """Fill `results` and `folder`. The results are saved after every image, so that a stopped run goes on.

    Raises what reading and running the workflows raises.
    """
    loaded: _Loaded | None = None
    for number, setting in enumerate(settings):
        left = [
            (prompt, seed)
            for prompt in range(len(results.prompts))
            for seed in results.seeds
            if results.find(number, prompt, seed) is None
        ]
        if left and (loaded is None or loaded.options != (setting.settings, setting.workflow)):
            loaded = None
            gc.collect()  # the models of the setting before go before those of this one are loaded
            loaded = _Loaded(setting, models, input)
        if left and loaded is not None:
            _one_setting(number, setting, left, results, folder, loaded, tell)


class _Loaded:
    """A workflow with its models, for all settings that differ in values only. peaks: bytes of the newest runs."""

    def __init__(self, setting: Setting, models: Sequence[Path], input: Path | None) -> None:
        self.options = setting.settings, setting.workflow
        program = Program(setting.settings, models, input)
        self.flow = Workflow(program, workflows.read(setting.workflow, program.classes))
        self.peaks: list[int] = []
        program.runtime.events.listen(self._hear)

    def _hear(self, event: dict[str, Any]) -> None:
        if event["type"] == "memory.job":
            self.peaks.append(int(event["peak_bytes"]))


def _one_setting(
    number: int,
    setting: Setting,
    left: Sequence[tuple[int, int]],
    results: Results,
    folder: Path,
    loaded: _Loaded,
    tell: Tell,
) -> None:
    flow, peaks = loaded.flow, loaded.peaks
    for prompt, seed in left:
        peaks.clear()
        began = time.monotonic()
        text = None if results.prompts[prompt] == OWN_PROMPT else results.prompts[prompt]
        images = flow(text, seed=seed, values=setting.values, progress=False)
        seconds = time.monotonic() - began
        if not images:
            raise InputError(f"{setting.workflow.name} shows no image: it needs a Save Image node.")
        file = f"{number}/{prompt:03}-{seed}.png"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save(images[0], folder / file)
        likeness = _likeness(images[0], results.find(0, prompt, seed), folder)
        made = Made(number, prompt, seed, file, seconds, max(peaks, default=meter.resident_bytes()), *likeness)
        results.images.append(made)
        results.save(folder)
        tell(setting, made)


def _likeness(image: Image.Image, first: Made | None, folder: Path) -> tuple[float | str | None, float | None]:
    """PSNR and SSIM to the image of the first setting; (None, None) for that one itself."""
    from PIL import Image as Images

    if first is None:
        return None, None
    with Images.open(folder / first.file) as opened:
        ratio, structure = psnr(image, opened), ssim(image, opened)
    return "equal" if ratio == math.inf else ratio, structure
