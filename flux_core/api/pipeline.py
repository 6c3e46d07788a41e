"""A FLUX.1 model as a Python object: it makes images from a text, and predicts time and memory beforehand."""

from __future__ import annotations

import secrets
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.kinds import Detected
from ..commands.plan import add_arguments as add_plan_arguments
from ..commands.plan_model import Beside, open_model
from ..commands.plan_page import page
from ..commands.plan_step import job_of, plan_for
from ..commands.plan_target import Target, target_of
from ..errors import InputError, MissingFileError
from ..io.folders import WEIGHT_FILES
from ..memory.budget import AUTO
from ..memory.plan import Plan
from ..models.flux_config import FluxConfig
from ..runtime.settings import Settings
from .files import found_files, is_shipped
from .program import OnStep, PathLike, Program
from .text_to_image import Files, Request, text_to_image

if TYPE_CHECKING:
    from PIL import Image

LoraChoice = str | PathLike | tuple[str | PathLike, float]

TOKEN_PIXELS = 16  # the width and height of the square of the image that is one token of the transformer


@dataclass(frozen=True)
class Defaults:
    """The values that a call uses if it does not set them."""

    steps: int
    guidance: float | None
    size: tuple[int, int]


@dataclass(frozen=True)
class Prediction:
    """The memory manager's plan for one image. Its text is the page of `sluice plan`."""

    plan: Plan
    text: str

    @property
    def seconds_per_step(self) -> float:
        return self.plan.seconds

    @property
    def peak_bytes(self) -> int:
        return self.plan.peak_bytes

    @property
    def streamed_bytes_per_step(self) -> int:
        return self.plan.streamed_bytes

    def __str__(self) -> str:
        return self.text


def load(
    model: str | PathLike = "sluice-tiny",
    *,
    vram: str = "auto",
    ram: str = "auto",
    device: str | None = None,
    dtype: str = "auto",
    cache: str = "off",
    text_encoders: tuple[str | PathLike, str | PathLike] | None = None,
    vae: str | PathLike | None = None,
    models: Sequence[PathLike] = (),
) -> Pipeline:
    """A pipeline for a model file, or for a name in the model folders (`flux1-dev-fp8`). Only headers are read here.

    vram, ram: hard memory budgets such as "8G". device: "cpu", "cuda", "cuda:1". dtype: "auto", "fp32", "bf16", "fp16".
    cache: "off", "fast" or "faster" (reuse the model's output where it changes little). text_encoders, vae: files or
    names; without them, those of the model folders that fit. models: models folders laid out as ComfyUI's, beside
    ./models. Raises MissingFileError, FileFormatError, InputError.
    """
    settings = Settings.parse(device, dtype, vram, ram, cache)
    given = {"diffusion_models": [model], "text_encoders": list(text_encoders or ()), "vae": [vae] if vae else []}
    beside = {
        category: [Path(each).absolute().parent for each in names if _is_file(each)]
        for category, names in given.items()
    }
    beside["checkpoints"] = beside["diffusion_models"]
    program = Program(settings, models, extra=beside)
    encoders = (_name(text_encoders[0]), _name(text_encoders[1])) if text_encoders else None
    files, path, found = found_files(program.folders, _name(model), encoders, _name(vae) if vae else None)
    return Pipeline(program, files, path, found)


class Pipeline:
    """A loaded model: call it with a text. Made by `load`."""

    def __init__(self, program: Program, files: Files, path: Path, found: Detected) -> None:
        self._program, self._files, self._path = program, files, path
        tensors = found.parts["flux"]
        self._config = config = FluxConfig.from_shapes({name: stored.shape for name, stored in tensors.items()})
        shipped = is_shipped(path)
        self._defaults = Defaults(
            steps=12 if shipped else 20 if config.guidance else 4,
            guidance=3.5 if config.guidance else None,
            size=(128, 128) if shipped else (1024, 1024),
        )

    def __call__(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        count: int = 1,
        guidance: float | None = None,
        loras: Sequence[LoraChoice] = (),
        sampler: str = "euler",
        scheduler: str = "simple",
        on_step: OnStep | None = None,
        progress: bool = True,
    ) -> list[Image.Image]:
        """RGB images for a prompt, each with the workflow that makes it again in `image.info` (see `sluice.save`).

        seed: a new one for each call if it is not given. size: (width, height) in pixels, multiples of 16. count:
        images at a time, from one noise. guidance: FLUX.1 dev's distilled guidance. loras: files or names, or pairs
        with their strength. on_step: called after every step with a `Step`. progress: draw a bar.

        Raises PromptError with every value that does not fit, InputError for a size or guidance that the model cannot
        have, BudgetTooSmall, and Interrupted after `cancel`.
        """
        width, height = self._size(size)
        if guidance is not None and self._defaults.guidance is None:
            raise InputError(f"{self._path.name} takes no guidance (it is a schnell model): leave it out.")
        request = Request(
            text=prompt,
            seed=secrets.randbelow(2**48) if seed is None else seed,
            steps=self._defaults.steps if steps is None else steps,
            width=width,
            height=height,
            count=count,
            guidance=self._defaults.guidance if guidance is None else guidance,
            sampler=sampler,
            scheduler=scheduler,
            loras=[self._lora(each) for each in loras],
        )
        checked, outputs = self._program.checked(text_to_image(self._files, request), "The request")
        return self._program.run(checked, outputs, on_step=on_step, progress=progress)

    def plan(self, size: tuple[int, int] | None = None, count: int = 1) -> Prediction:
        """The memory and time that a step will need under the budgets of this pipeline; computes no image.

        Raises BudgetTooSmall if the model cannot run under them.
        """
        width, height = self._size(size)
        from ..runtime.device import total_bytes

        runtime = self._program.runtime
        parser = ArgumentParser()
        add_plan_arguments(parser)
        words = [str(self._path), "--size", f"{width}x{height}", "--batch", str(count)]
        budget = runtime.budget.words
        if runtime.device.type == "cpu":
            words += ["--card", "cpu"]
            budget["ram"] = f"{total_bytes(runtime.device)}B" if budget["ram"] == AUTO else budget["ram"]
        words += ["--vram", budget["vram"], "--ram", budget["ram"]]
        args = parser.parse_args(words)
        args.card = args.cards[0] if args.cards else None
        model, target = open_model(args.model), target_of(args)
        if runtime.device.type == "cpu":
            target = self._measured(target, width * height // TOKEN_PIXELS**2)
        job = job_of(args, target)
        made = plan_for(model, target, job, Beside())
        return Prediction(made, "\n".join(page(made, target, job, [])))

    def _measured(self, target: Target, tokens: int) -> Target:
        """The target with the rates of this processor for products and heads as wide as this model's.

        Processors differ by a factor of ten, so that an assumed one says little about this one.
        """
        from ..memory import rates

        runtime = self._program.runtime
        device, dtype = runtime.device, runtime.model_dtype
        measured = rates.measured_tokens(device, tokens)
        machine = replace(
            target.machine,
            gemm=rates.gemm_rate(device, dtype, measured, min(rates.HIDDEN, self._config.hidden)),
            attention=rates.attention_rate(device, dtype, max(256, measured), self._config.head_dim),
        )
        label = f"this processor with {machine.gemm / 1e12:.2g} TFLOP/s"
        return replace(target, machine=machine, label=label, measured=True)

    def cancel(self) -> None:
        """Stop the running call within one block of the model; may be called from any thread."""
        self._program.cancel()

    def __repr__(self) -> str:
        width, height = self._defaults.size
        return f"<Pipeline {self._path.name}: {self._defaults.steps} steps, {width}x{height} unless said otherwise>"

    def _size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """The size asked for, or the usual one. Raises InputError for one that an image cannot have."""
        width, height = size or self._defaults.size
        if width % TOKEN_PIXELS or height % TOKEN_PIXELS:
            nearest = "x".join(str(max(1, round(each / TOKEN_PIXELS)) * TOKEN_PIXELS) for each in (width, height))
            raise InputError(
                f"Width and height are multiples of {TOKEN_PIXELS} pixels; {width}x{height} is not. Take {nearest}."
            )
        return width, height

    def _lora(self, choice: LoraChoice) -> tuple[str, float]:
        name, strength = choice if isinstance(choice, tuple) else (choice, 1.0)
        if _is_file(name):
            self._program.folders.search_first("loras", Path(name).absolute().parent)
        place = self._program.folders.located(_name(name), ("loras",))
        if place is None:
            raise MissingFileError(self._program.folders.explain_missing("loras", _name(name)))
        return place[1], float(strength)


def _is_file(name: str | PathLike) -> bool:
    path = Path(name)
    return path.suffix.lower() in WEIGHT_FILES and path.is_file()


def _name(name: str | PathLike) -> str:
    """The name to search for in the folders: a file's own name, or the given name."""
    return Path(name).name if _is_file(name) else str(name)
