"""Sample images during a LoRA training: each contains its workflow with the LoRA file of its step.

They are made by the program's own nodes, so that an image dropped into the editor, or given to `sluice run`, can be
made again. Each row of the sheet is one step, each column a prompt; seeds are the same in every row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...graph.execute import Executor
from ...graph.prompt import JsonPrompt
from ...io.saving import write_whole
from .settings import LoraSettings

if TYPE_CHECKING:
    from PIL import ImageDraw

    from .training import Watcher

LABEL = 18  # pixels above a row of the sheet
LARGEST = 320  # pixels of an image's longer side on the sheet
MOST_ROWS = 40


@dataclass(frozen=True)
class ModelNames:
    """File names for loaders. checkpoint: `model` is an all-in-one file that contains the others."""

    model: str
    text: tuple[str, str] = ("", "")
    vae: str = ""
    checkpoint: bool = False
    guidance: bool = True  # whether it has a guidance input, as dev has and schnell has not


def workflow(names: ModelNames, settings: LoraSettings, lora: str | None, prefix: str, number: int) -> dict[str, Any]:
    """The workflow of one of the prompts. lora: its name for LoraLoaderModelOnly. prefix: of the image's file."""
    size = settings.size
    if names.checkpoint:
        nodes = {"base": _node("CheckpointLoaderSimple", ckpt_name=names.model)}
        model, clip, vae = ["base", 0], ["base", 1], ["base", 2]
    else:
        first, second = names.text
        nodes = {
            "base": _node("UNETLoader", unet_name=names.model, weight_dtype="default"),
            "clip": _node("DualCLIPLoader", clip_name1=first, clip_name2=second, type="flux"),
            "vae": _node("VAELoader", vae_name=names.vae),
        }
        model, clip, vae = ["base", 0], ["clip", 0], ["vae", 0]
    if lora is not None:
        nodes["lora"] = _node("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
        model = ["lora", 0]
    if names.guidance:
        nodes["shift"] = _node(
            "ModelSamplingFlux", model=model, max_shift=1.15, base_shift=0.5, width=size, height=size
        )
        model = ["shift", 0]
    nodes |= {
        "solver": _node("KSamplerSelect", sampler_name="euler"),
        "sigmas": _node("BasicScheduler", model=model, scheduler="simple", steps=settings.sample_steps, denoise=1.0),
        "empty": _node("EmptySD3LatentImage", width=size, height=size, batch_size=1),
    }
    conditioning = ["text", 0]
    nodes["text"] = _node("CLIPTextEncode", text=settings.prompts[number], clip=clip)
    if names.guidance:
        nodes["guidance"] = _node("FluxGuidance", conditioning=conditioning, guidance=settings.sample_guidance)
        conditioning = ["guidance", 0]
    return nodes | {
        "guider": _node("BasicGuider", model=model, conditioning=conditioning),
        "noise": _node("RandomNoise", noise_seed=settings.seed + number),
        "latent": _node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["solver", 0],
            sigmas=["sigmas", 0], latent_image=["empty", 0],
        ),
        "pixels": _node("VAEDecode", samples=["latent", 0], vae=vae),
        "file": _node("SaveImage", images=["pixels", 0], filename_prefix=prefix),
    }  # fmt: skip


class WorkflowSampler:
    """Makes the samples of a training with executors whose output folder is `folder`."""

    def __init__(
        self,
        make_executor: Callable[[], Executor],
        names: ModelNames,
        settings: LoraSettings,
        folder: Path,
        loras: Path,
        watcher: Callable[[], Watcher],
    ) -> None:
        """lora names are relative to the folder `loras`. watcher: returns the one of the training."""
        self.make_executor, self.names, self.settings = make_executor, names, settings
        self.folder, self.loras, self.watcher = folder, loras, watcher
        self._done = 0  # steps of all samples of this row

    def __call__(self, lora: Path | None, step: int) -> None:
        """Make the samples of one step. Raises the error that stopped a workflow, Interrupted among them."""
        each, self._done = self.settings.sample_steps, 0
        self.watcher().phase(f"samples of step {step}", each * len(self.settings.prompts))
        self.folder.mkdir(parents=True, exist_ok=True)
        prefix = _prefix(step)
        for old in self.folder.glob(f"{prefix}-*.png"):
            old.unlink()
        name = None if lora is None else lora.relative_to(self.loras).as_posix()
        executor = self.make_executor()  # a new one each time, so that the models it caches are freed for the training
        for number in range(len(self.settings.prompts)):
            prompt: JsonPrompt = workflow(self.names, self.settings, name, f"{prefix}-{number}", number)
            result = executor.execute(prompt, prefix, {}, ["file"])
            if result.exception is not None:
                raise result.exception
            self._advance(each * (number + 1))
        self.watcher().note(f"Sample pictures of step {step}: {write_sheet(self.folder, self.settings.prompts)}")

    def made(self, step: int) -> bool:
        """Whether all samples of a step exist: the training may have been stopped while they were made."""
        return len(list(self.folder.glob(f"{_prefix(step)}-*.png"))) == len(self.settings.prompts)

    def report(self, done: int, total: int) -> None:
        """For the host of the executors: `done` of `total` steps of the current sample are done."""
        each = self.settings.sample_steps
        self._advance(self._done // each * each + min(done, each - 1))  # the last one when the image is written

    def _advance(self, done: int) -> None:
        if done > self._done:
            self.watcher().advance(done - self._done)
            self._done = done


def _prefix(step: int) -> str:
    return f"step-{step:06}"


def write_sheet(folder: Path, prompts: Sequence[str]) -> Path:
    """All samples in one image, sheet.png next to their folder: a row for each step, a column for each prompt, whose
    beginning is above it.
    """
    from PIL import Image, ImageDraw

    rows: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.glob("step-*.png")):
        match = re.match(r"step-(\d+)-(\d+)_", path.name)
        if match:
            rows.setdefault(int(match[1]), {})[int(match[2])] = path
    steps = sorted(rows)
    if len(steps) > MOST_ROWS:
        steps = [steps[round(place * (len(steps) - 1) / (MOST_ROWS - 1))] for place in range(MOST_ROWS)]
    with Image.open(next(iter(rows[steps[0]].values()))) as first:
        scale = min(1.0, LARGEST / max(first.size))
        width, height = (max(1, round(side * scale)) for side in first.size)
    sheet = Image.new("RGB", (width * len(prompts), LABEL + (height + LABEL) * len(steps)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(prompts):
        draw.text((column * width + 4, 3), _shortened(" ".join(prompt.split()), width - 8, draw), fill="black")
    for row, step in enumerate(steps):
        top = LABEL + row * (height + LABEL)
        draw.text((4, top + 3), f"step {step}", fill="black")
        for column, path in rows[step].items():
            with Image.open(path) as picture:
                sheet.paste(picture.convert("RGB").resize((width, height)), (column * width, top + LABEL))
    path = folder.parent / "sheet.png"
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    write_whole(path, buffer.getvalue())
    return path


def _shortened(text: str, width: int, draw: ImageDraw.ImageDraw) -> str:
    """The text, or its beginning and dots, in at most `width` pixels."""
    if draw.textlength(text) <= width:
        return text
    while text and draw.textlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
