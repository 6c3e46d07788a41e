"""`sluice train`: the whole recipe with one command, from drawn pictures to the files that are shipped.

    sluice train --out models            everything; under three hours on two CPU cores, minutes on a GPU
    sluice train --out models --quick    the same stages with the smallest networks, in seconds
    sluice train --evaluate              images of 200 prompts; a recogniser counts the right ones

It can be stopped at any moment: started again with the same --work folder, it resumes at the last checkpoint.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..checkpoint.whole_files import read_tensors
from ..errors import InputError
from ..io.folders import TINY_MODELS
from ..models.autoencoder import Autoencoder
from ..models.latents import process_out
from ..runtime.device import find_device
from ..training.captions import vocabulary
from ..training.code import Code, fit
from ..training.codec import CodecStage, codec_config
from ..training.drawing import collage, draw, loose_scene
from ..training.export import FILES, TOKENIZERS, export, write_weights
from ..training.few_steps import Pairs, ReflowStage, Teacher, WindowsStage, without_guidance
from ..training.flow import FlowStage, GuidanceStage, Pictures, sample
from ..training.recipe import Recipe, changed, quick
from ..training.small_networks import fast_dtype, fitting_for_small_networks, save_sheet
from ..training.system import Reader, System
from ..training.trainer import train

STAGES = ("flow", "guidance", "codec")
FEWER = ("reflow", "one_step", "windows")  # stages for fewer steps, trained only if they are chosen
PROMPTS = [
    "a red 3 on the left", "the number seven in yellow on black", "a blue star at the top", "a green circle",
    "a pink heart in the middle on white", "an orange 8 at the bottom", "purple ring on the right", "a cyan five",
    "a yellow star on a navy background", "four", "a red cross on grey", "a blue diamond on white",
    "the digit zero on the right", "a green triangle at the top", "a purple square on the left", "nine, pink",
]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice train`."""
    parser.add_argument("--out", type=Path, default=Path("models"), help="models folder to write (default: models)")
    parser.add_argument("--work", type=Path, help="folder for checkpoints and sample sheets (default: OUT/training)")
    parser.add_argument("--stages", nargs="+", choices=(*STAGES, *FEWER), default=list(STAGES),
                        help="run only these stages; reflow, one_step, windows: models for fewer steps")  # fmt: skip
    parser.add_argument(
        "--device",
        metavar="cpu|cuda[:N]",
        help="device to compute on (default: the first GPU, or the CPU if there is none)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="train the smallest networks for a few steps, to see that everything works"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting, e.g. flow.steps=2000"
    )
    parser.add_argument("--evaluate", action="store_true", help="measure a model instead of training")
    parser.add_argument(
        "--models", type=Path, help="models folder to measure, with --evaluate (default: the shipped model)"
    )
    parser.add_argument("--prompts", type=int, default=200, help="number of prompts, with --evaluate")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps, with --evaluate")


def run(args: argparse.Namespace) -> int:
    """Train, or measure. Returns the exit status."""
    if args.evaluate:
        from ..training import evaluate
        from .cli import main

        return evaluate.run(args, main)
    recipe = changed(quick() if args.quick else Recipe(), args.set)
    Training(recipe, args.out, args.work or args.out / "training", find_device(args.device)).run(args.stages)
    return 0


class Training:
    """One recipe, its folders, and the training of its stages."""

    def __init__(self, recipe: Recipe, out: Path, work: Path, device: torch.device, quiet: bool = False) -> None:
        self.recipe, self.out, self.work, self.device, self.quiet = recipe, out, work, device, quiet
        work.mkdir(parents=True, exist_ok=True)
        folder = out / TOKENIZERS
        self.reader = Reader.write(folder / "clip_l", folder / "t5xxl", vocabulary(), recipe.sizes.t5_length)
        self.code = _fit_code(recipe)
        self.dtype = fast_dtype(device)
        self.pictures = Pictures(recipe, self.reader, self.code, device)

    def run(self, stages: list[str]) -> dict[str, list[float]]:
        """Train the stages in order and export after each. Returns the losses by stage."""
        torch.manual_seed(self.recipe.seed)
        losses: dict[str, list[float]] = {}
        with fitting_for_small_networks(self.device):
            if {"flow", "guidance"} & set(stages):
                system = self.new_system()
                if "flow" in stages:
                    losses["flow"] = self._train_flow(system)
                else:
                    self._load_average("flow", system)
                if "guidance" in stages:
                    losses["guidance"] = self._train_guidance(system)
                export(self.out, system, None)
            for stage in (stage for stage in FEWER if stage in stages):
                losses[stage] = self._train_fewer(stage)
            if "codec" in stages:
                losses["codec"] = self._train_codec()
        return losses

    def new_system(self) -> System:
        system = System(self.recipe.sizes, self.reader)
        system.init_weights()
        return system.to(self.device)

    def _train_flow(self, system: System) -> list[float]:
        stage = FlowStage(self.pictures, system, self.dtype)
        return train(stage, self.recipe, self.work, lambda step: self._sheet("flow", step, system, cfg=3.0), self.quiet)

    def _train_guidance(self, system: System) -> list[float]:
        stage = GuidanceStage(self.pictures, system, copy.deepcopy(system).requires_grad_(False), self.dtype)
        return train(
            stage, self.recipe, self.work, lambda step: self._sheet("guidance", step, system, guidance=3.5), self.quiet
        )

    def _train_fewer(self, name: str) -> list[float]:
        """A stage for fewer steps, from the model trained for guidance; its transformer has schnell's form."""
        guide = self.recipe.guide
        system, student = self.new_system(), self.new_system()
        self._load_average("guidance", system)
        self._load_average("reflow" if name == "one_step" else "guidance", student)
        teacher = Teacher(system.requires_grad_(False).eval(), self.pictures, guide, True, self.dtype)
        if name == "windows":
            stage: WindowsStage | ReflowStage = WindowsStage(self.pictures, student, teacher, self.dtype)
        else:
            pairs = Pairs.of(teacher, self.recipe, self.work / "pairs.pt", self.quiet)
            stage = ReflowStage(self.pictures, student, pairs, self.dtype, guide, name == "one_step")
        # The text encoders stay as they are: the files of the model serve all its transformers.
        student.clip.requires_grad_(False)
        student.t5.requires_grad_(False)
        look = partial(self._sheet, name, system=student, guidance=guide)
        losses = train(stage, self.recipe, self.work, lambda step: look(step=step), self.quiet)
        path = self.out / FILES["transformer"]
        path = path.with_stem(f"{path.stem}-{name.replace('_', '-')}")
        write_weights(path, without_guidance(student.transformer, guide))
        return losses

    def _train_codec(self) -> list[float]:
        codec = Autoencoder(codec_config(self.recipe.sizes))
        codec.init_weights()
        codec.to(self.device)
        stage = CodecStage(self.recipe, self.code, codec, self.device)
        losses = train(stage, self.recipe, self.work, lambda step: self._codec_sheet(step, codec), self.quiet)
        export(self.out, None, codec)
        return losses

    def _load_average(self, stage: str, system: System) -> None:
        """The final weights of a stage; without a checkpoint those of the shipped model, for stages that begin there.

        Raises InputError if there is neither.
        """
        path = self.work / f"{stage}.pt"
        if path.is_file():
            state = torch.load(path, map_location=self.device, weights_only=True)
            with torch.no_grad():
                torch._foreach_copy_(list(system.parameters()), state["averages"])
            return
        if stage != "guidance" or self.recipe.sizes != Recipe().sizes:
            raise InputError(f"The stage {stage} has not been trained: there is no {path}. Train it first (--stages).")
        for part, module in (("transformer", system.transformer), ("clip", system.clip), ("t5", system.t5)):
            module.load_state_dict(
                {name: value.float() for name, value in read_tensors(TINY_MODELS / FILES[part]).items()}
            )

    def _sheet(self, stage: str, step: int, system: System, guidance: float = 1.0, cfg: float = 1.0) -> None:
        latents = sample(system, self.reader, PROMPTS, guidance=guidance, cfg=cfg, dtype=self.dtype)
        save_sheet(self.work / f"{stage}_{step:06}.png", self.code.decode(process_out(latents.cpu())))

    def _codec_sheet(self, step: int, codec: Autoencoder) -> None:
        rng = np.random.default_rng(1)
        collages = [collage(rng)[None] for _ in range(8)]
        pictures = np.concatenate([draw([loose_scene(rng) for _ in range(8)]), *collages])
        pixels = torch.from_numpy(pictures).movedim(-1, 1).to(self.device) * 2 - 1
        with torch.no_grad():
            save_sheet(self.work / f"codec_{step:06}.png", codec.decode(codec.encode(pixels)).cpu())


def _fit_code(recipe: Recipe) -> Code:
    """Two thirds scenes, one third collages."""
    rng = np.random.default_rng(recipe.seed)
    scenes = draw([loose_scene(rng) for _ in range(recipe.code_pictures * 2 // 3)])
    collages = np.stack([collage(rng) for _ in range(recipe.code_pictures // 3)])
    return fit(torch.from_numpy(np.concatenate([scenes, collages])).movedim(-1, 1) * 2 - 1)
