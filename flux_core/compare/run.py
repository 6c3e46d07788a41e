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
    for number, setting in enumerate(settings):
        left = [
            (prompt, seed)
            for prompt in range(len(results.prompts))
            for seed in results.seeds
            if results.find(number, prompt, seed) is None
        ]
        if left:
            _one_setting(number, setting, left, results, folder, models, input, tell)
        gc.collect()  # the models of this setting go before those of the next are loaded


def _one_setting(
    number: int,
    setting: Setting,
    left: Sequence[tuple[int, int]],
    results: Results,
    folder: Path,
    models: Sequence[Path],
    input: Path | None,
    tell: Tell,
) -> None:
    program = Program(setting.settings, models, input)
    flow = Workflow(program, workflows.read(setting.workflow, program.classes))
    peaks: list[int] = []

    def hear(event: dict[str, Any]) -> None:
        if event["type"] == "memory.job":
            peaks.append(int(event["peak_bytes"]))

    program.runtime.events.listen(hear)
    for prompt, seed in left:
        peaks.clear()
        began = time.monotonic()
        images = flow(results.prompts[prompt], seed=seed, values=setting.values, progress=False)
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
