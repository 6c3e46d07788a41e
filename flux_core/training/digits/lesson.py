"""The whole training of a FLUX in pixel space: stages, samples, evaluation, and export to files for every command.

    OUT/diffusion_models/NAME.safetensors        OUT/text_encoders/NAME-clip_l.safetensors, NAME-t5xxl.safetensors
    OUT/vae/NAME-pixels.safetensors              and a folder beside each encoder with its tokenizer
    OUT/training/NAME/                           checkpoints, sample-N.png with the prompts in sample-N.txt, judge.pt

A stopped training resumes at the last checkpoint. Uses no command line and no workflow.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError
from ...io.saving import write_whole
from ...models.flux_config import AXES
from ...models.pixel_codec import PixelCodec, PixelCodecConfig
from ..export import write_module, write_weights
from ..few_steps import Pairs, ReflowStage, Straightness, Teacher, WindowsStage, straightness, without_guidance
from ..flow import FlowStage, GuidanceStage, rng_of, sample
from ..small_networks import fast_dtype, fitting_for_small_networks, save_sheet
from ..system import Reader, System
from ..trainer import train
from .data import Digits, load
from .judge import Judge, Judged
from .pictures import WORDS, DigitPictures, digit_of, uncelled
from .recipe import DigitRecipe, Record

STAGES = ("flow", "guidance")
FEWER = ("reflow", "one_step", "windows")  # `_before` has the stage from which each begins
RECORD = "recipe.json"
SHEET = 64  # pictures of a sheet
AT_ONCE = 100  # pictures that are sampled together
# Settings that may change when a training is resumed: they affect the reports and not the result.
FREE = {"save_every", "sample_every", "guide", "sample_steps"}


class Lesson:
    """The training of one recipe."""

    def __init__(
        self, recipe: DigitRecipe, out: Path, work: Path, device: torch.device, *, fresh: bool = False,
        quiet: bool = False, config: DigitRecipe | None = None,
    ) -> None:  # fmt: skip
        """fresh: delete an earlier training in this folder. config: the settings of the configuration file, before
        those of the command line. Raises InputError if an earlier training had other settings.
        """
        self.recipe, self.out, self.work, self.device, self.quiet = recipe, out, work, device, quiet
        self.dtype = fast_dtype(device)
        work.mkdir(parents=True, exist_ok=True)
        if fresh:
            for old in work.glob("*.pt"):
                old.unlink()
        self._check_settings(config or recipe)
        folder = out / "text_encoders"
        self.reader = Reader.write(
            folder / f"{recipe.name}-clip_l", folder / f"{recipe.name}-t5xxl", WORDS, recipe.sizes.t5_length
        )

    @cached_property
    def digits(self) -> tuple[Digits, Digits]:
        """The digits for training, and those for evaluation."""
        return load(self.recipe.data)

    @cached_property
    def pictures(self) -> DigitPictures:
        return DigitPictures(self.recipe, self.reader, self.digits[0], self.device)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the recipe."""
        return STAGES if self.recipe.sizes.guidance and self.recipe.guidance.steps else STAGES[:1]

    @property
    def fewer(self) -> tuple[str, ...]:
        """Stages for fewer steps, which are trained only if they are chosen."""
        return FEWER if self.recipe.sizes.guidance else ()

    def run(self, stages: Sequence[str] = ()) -> dict[str, list[float]]:
        """Train the stages (none named: all) in order, and export. Returns the losses by stage."""
        losses: dict[str, list[float]] = {}
        system = self.new_system()
        with fitting_for_small_networks(self.device):
            for stage in self.stages:
                if stages and stage not in stages:
                    self.load(stage, system)
                else:
                    losses[stage] = self._train(stage, system)
            self.export(system)
            for stage in (stage for stage in self.fewer if stage in stages):
                losses[stage] = self._train_fewer(stage)
        return losses

    def _train_fewer(self, name: str) -> list[float]:
        """A stage for fewer steps. Raises InputError if the stage that it begins from has not been trained."""
        recipe, teacher = self.recipe, self.teacher()
        student = self.new_system()
        self.load("reflow" if name == "one_step" else self.stages[-1], student)
        for encoder in (student.clip, student.t5):  # all transformers of the model use their files
            encoder.requires_grad_(False)
        if name == "windows":
            stage: WindowsStage | ReflowStage = WindowsStage(self.pictures, student, teacher, self.dtype)
        else:
            pairs = Pairs.of(teacher, recipe, self.work / "pairs.pt", self.quiet)
            stage = ReflowStage(self.pictures, student, pairs, self.dtype, recipe.guide, name == "one_step")
        losses = train(stage, recipe, self.work, lambda step: self._sheet(name, step, student), self.quiet)
        path = self.out / f"diffusion_models/{recipe.name}-{name.replace('_', '-')}.safetensors"
        write_weights(path, without_guidance(student.transformer, recipe.guide), self._header)
        return losses

    def teacher(self) -> Teacher:
        """The guided flow that is the teacher of stages for fewer steps."""
        system = self.new_system()
        self.load(self.stages[-1], system)
        return self.guided(system.requires_grad_(False).eval(), self.stages[-1])

    def guided(self, system: System, stage: str) -> Teacher:
        """The guided velocity of a stage: one pass for stages trained for guidance, two for the plain flow."""
        return Teacher(system, self.pictures, self.recipe.guide, stage != "flow", self.dtype)

    def new_system(self) -> System:
        """A transformer with initial weights that depend only on the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            system = System(self.recipe.sizes, self.reader)
            system.init_weights()
        return system.to(self.device)

    def _train(self, name: str, system: System) -> list[float]:
        if name == "flow":
            stage: FlowStage | GuidanceStage = FlowStage(self.pictures, system, self.dtype)
        else:
            teacher = copy.deepcopy(system).requires_grad_(False)
            stage = GuidanceStage(self.pictures, system, teacher, self.dtype)
        return train(stage, self.recipe, self.work, lambda step: self._sheet(name, step, system), self.quiet)

    def load(self, stage: str, system: System) -> None:
        """Copy the averaged weights of a stage. Raises InputError if it has not been trained."""
        path = self.work / f"{stage}.pt"
        if not path.is_file():
            raise InputError(f"The stage {stage} of {self.recipe.name} has not been trained: there is no {path}.")
        state = torch.load(path, map_location=self.device, weights_only=True)
        system.load_state_dict(state["module"])
        with torch.no_grad():
            torch._foreach_copy_(list(system.parameters()), state["averages"])

    def trained(self, stage: str | None = None) -> tuple[System, str]:
        """A stage (none named: the last of `stages`) that has a checkpoint, and its name. Raises InputError if it has
        none."""
        system = self.new_system()
        last = stage or next(
            (name for name in reversed(self.stages) if (self.work / f"{name}.pt").is_file()), STAGES[0]
        )
        self.load(last, system)
        return system.eval(), last

    def sample(self, system: System, stage: str, prompts: Sequence[str], seed: int = 0, steps: int = 0) -> Tensor:
        """Images [N, channels, side, side] in -1..1 with guidance, by one pass or by two, according to the stage."""
        recipe = self.recipe
        settings = {"guidance": recipe.guide} if stage != "flow" else {"guidance": 1.0, "cfg": recipe.guide}
        parts = [prompts[start : start + AT_ONCE] for start in range(0, len(prompts), AT_ONCE)]
        latents = [
            sample(
                system, self.reader, part, side=recipe.cells, seed=seed + number, dtype=self.dtype,
                steps=steps or recipe.sample_steps, shift=1.0, **settings,
            ).cpu()
            for number, part in enumerate(parts)
        ]  # fmt: skip
        return uncelled(torch.cat(latents), recipe.cell)

    def sheet(self, path: Path, system: System, stage: str, prompts: Sequence[str], seed: int = 0) -> Tensor:
        """Pictures of prompts as PATH.png and the prompts as PATH.txt, eight a row. Returns the pictures."""
        pictures = self.sample(system, stage, prompts, seed)
        save_sheet(path.with_suffix(".png"), pictures)
        rows = [" ".join(prompts[start : start + 8]) for start in range(0, len(prompts), 8)]
        write_whole(path.with_suffix(".txt"), ("\n".join(rows) + "\n").encode())
        return pictures

    def _sheet(self, stage: str, step: int, system: System) -> None:
        system.eval()
        self.sheet(self.work / f"sample-{stage}-{step}", system, stage, chance_prompts(SHEET))
        system.train()

    def evaluate(self, system: System, stage: str, count: int, steps: int = 0) -> Judged:
        """Accuracy and Fréchet distance over `count` images, as many of each digit; prompts: digits and words."""
        judge = self.judge
        prompts = [WORDS[number % len(WORDS)] for number in range(count)]
        pictures = self.sample(system, stage, prompts, seed=1000, steps=steps)
        return judge.judge(pictures, [digit_of(prompt) for prompt in prompts])

    @cached_property
    def judge(self) -> Judge:
        return Judge.trained(self.digits[1], self.work / f"judge-{Path(self.recipe.data).name}.pt")

    def export(self, system: System) -> None:
        """Write the files of the models folder."""
        recipe = self.recipe
        codec = PixelCodec(PixelCodecConfig(recipe.channels, recipe.cell))
        codec.init_weights()
        write_module(self.out / f"diffusion_models/{recipe.name}.safetensors", system.transformer, self._header)
        write_module(self.out / f"text_encoders/{recipe.name}-clip_l.safetensors", system.clip)
        write_module(self.out / f"text_encoders/{recipe.name}-t5xxl.safetensors", system.t5)
        write_module(self.out / f"vae/{recipe.name}-pixels.safetensors", codec)

    @property
    def _header(self) -> dict[str, str]:
        axes = self.recipe.sizes.axes
        return {AXES: ",".join(map(str, axes))} if any(axes) else {}

    def straightness(self, system: System, stage: str, count: int = 200) -> Straightness:
        """The straightness of `count` guided paths with fixed noise and prompts."""
        generator, recipe = torch.Generator().manual_seed(77), self.recipe
        noise = torch.randn((count, recipe.sizes.channels, recipe.cells, recipe.cells), generator=generator)
        prompts = [WORDS[number % len(WORDS)] for number in range(count)]
        return straightness(self.guided(system, stage), noise.to(self.device), self.pictures.tokens(prompts))

    def _check_settings(self, config: DigitRecipe) -> None:
        record, now = Record(self.work / RECORD), json.loads(json.dumps(asdict(self.recipe)))
        if is_trained(self.work):
            before = record.read()
            free = FREE | {stage for stage in (*STAGES, *FEWER) if not (self.work / f"{stage}.pt").is_file()}
            different = [name for name in now if name in before.keys() - free and before[name] != now[name]]
            if different:
                raise InputError(
                    f"The training in {self.work} was started with other settings: {', '.join(different)}. Leave these "
                    "out to continue it; --fresh starts again, and another --work begins another training."
                )
        record.write(self.recipe, config)


def is_trained(work: Path) -> bool:
    """Whether the folder has a checkpoint of a stage."""
    return any((work / f"{stage}.pt").is_file() for stage in (*STAGES, *FEWER))


def chance_prompts(count: int, seed: int = 0) -> list[str]:
    """Random digits and words, as in xdiffusion's samples."""
    rng = rng_of(seed, "prompts", 0)
    return [WORDS[int(number)] for number in rng.integers(len(WORDS), size=count)]
