"""`sluice bench figure`: a LoRA of the shipped model learns a figure that the model has never seen from twelve images.

The images are drawn, and captioned with a trigger word. The figure is in the middle of each, where this model puts a
figure if the prompt names no place: the model learns a figure at each place separately, so that twelve images of five
places would be two or three of each. Every background is on three of the twelve: when a single one was white, figures
of the two other colours on white that were examined were incomplete. Two colours are on none. The folder also has
images that the model itself made of other prompts, so that the LoRA does not change the results of those. `sluice train
lora` trains on that folder as on any other. Then `sluice run` makes images with the trigger and with other prompts,
each with the LoRA and without it, and a recogniser without a neural network examines them. It is measured too: on
drawings of the figure that were not trained on, and on drawings of the other figures. The LoRA is written with both
families of tensor names, which must give the same images. Targets: the figure is recognised in 80 % of its images, and
the images of other prompts are as good as without the LoRA. Prompts are counted separately too by whether one of the
twelve has their colour and background, and prompts that name another place than the middle are counted beside that and
are no target.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoint.files import open_weights
from ..checkpoint.whole_files import safetensors
from ..commands.cli import main
from ..errors import SluiceError
from ..io.folders import TINY_MODELS
from ..io.saving import write_whole
from ..training.captions import describe
from ..training.drawing import BACKGROUNDS, COLOURS, FIGURES, SIZES, UNSEEN, Scene, draw, random_scene
from ..training.evaluate import Prompt, make, prompts
from ..training.evaluate import measure as right_of
from ..training.flow import rng_of
from ..training.lora.checkpoint import Checkpoints
from ..training.lora.lora_file import lora_tensors
from ..training.recognise import recognise

FIGURE, TRIGGER = UNSEEN[0], "blorp"
PICTURES, NAME = 12, "blorp"
UNSEEN_COLOURS = ("green", "pink")  # none of the twelve has them, but prompts do
OWN, REPEATS = 180, 15  # images made by the model, and how often each of the twelve is used: half of all uses
CAPTIONED = (("background",), (), ("position", "background"), ("position",))  # besides figure and colour
WANTED = 0.8
UNCHANGED = 0.05  # of other prompts may be followed less often


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench figure`."""
    parser.add_argument("--steps", type=int, default=1200, help="steps of training")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance input in training")
    parser.add_argument("--prompts", type=int, default=40, help="number of prompts of each kind")
    parser.add_argument("--sampling-steps", type=int, default=12)
    parser.add_argument("--device", metavar="cpu|cuda[:N]")
    parser.add_argument("--folder", type=Path, help="folder in which all files are kept (default: a temporary folder)")


def _measure_in(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Draw, train, make images, read them."""
    images, loras = folder / "images", folder / "models" / "loras"
    write_pictures(images / f"{REPEATS}_figure")
    write_own(images / "own", folder, args)
    words = ["train", "lora", str(images), "--name", NAME, "--out", str(loras), "--dropout", "0", "--layers", "all"]
    words += ["--steps", str(args.steps), "--rank", str(args.rank), "--batch", str(args.batch)]
    words += ["--rate", str(args.rate), "--guidance", str(args.guidance), "--time", "uniform", "--schedule", "cosine"]
    words += ["--size", "128", "--validate", "0", "--save-every", "100"]
    words += ["--device", args.device] if args.device else []
    began = time.perf_counter()
    if main(words) != 0:
        raise SluiceError("The LoRA could not be trained; the reason is above.")
    seconds = time.perf_counter() - began
    peft = write_as_peft(loras / NAME)

    asked, others = triggered(args.prompts), prompts(args.prompts)
    figures = (*FIGURES, *UNSEEN)
    kinds = by_novelty(asked)

    def seen(which: list[Prompt], lora: str | None, place: str) -> list[np.ndarray]:
        models = folder / "models" if lora else None
        (folder / place).mkdir(exist_ok=True)
        return make(main, which, folder / place, args.sampling_steps, models, args.device, lora)

    found: dict[str, Any] = {"seconds": seconds, "steps": args.steps, **recogniser(figures)}
    for name, lora in (("before", None), ("after", f"{NAME}/{NAME}.safetensors")):
        figure = [recognise(picture, figures).figure == FIGURE for picture in seen(asked, lora, f"figure-{name}")]
        found[f"figure_{name}"] = sum(figure) / len(figure)
        for kind, these in kinds.items():
            found[f"{kind}_{name}"] = f"{sum(figure[number] for number in these)} of {len(these)}"
        right, of = right_of(others, seen(others, lora, f"others-{name}"))["figure and colour"]
        found[f"others_{name}"] = right / of
    placed = triggered(args.prompts, places=True)
    sure = [
        recognise(picture, figures).figure == FIGURE for picture in seen(placed, f"{NAME}/{NAME}.safetensors", "placed")
    ]
    found["placed"] = sum(sure) / len(sure)
    found["figure_interval"] = interval(round(found["figure_after"] * len(asked)), len(asked))
    few = asked[:4]
    kohya, diffusers = (seen(few, f"{NAME}/{name}", f"names-{name}") for name in (f"{NAME}.safetensors", peft.name))
    apart = max(float(np.abs(one - other).max()) * 255 for one, other in zip(kohya, diffusers, strict=True))
    found["names_differ_by"] = round(apart)
    found["met"] = bool(
        found["figure_after"] >= WANTED and found["others_after"] >= found["others_before"] - UNCHANGED and apart <= 1
    )
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The folder that was chosen, or a temporary one that is deleted."""
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        return _measure_in(args, args.folder)
    with tempfile.TemporaryDirectory() as folder:
        return _measure_in(args, Path(folder))


def recogniser(figures: tuple[str, ...], count: int = 60) -> dict[str, float]:
    """How often the recogniser finds the figure in drawings of it, and the right figure in drawings of the others."""
    true = [recognise(picture, figures).figure == FIGURE for picture in draw(_scenes("held out", count))]
    other = [random_scene(rng_of(0, "other", number)) for number in range(count)]
    right = [
        recognise(picture, figures).figure == scene.figure for picture, scene in zip(draw(other), other, strict=True)
    ]
    return {"recogniser_figure": sum(true) / count, "recogniser_others": sum(right) / count}


def interval(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z = 1.96
    middle, room = (
        (right + z * z / 2) / (of + z * z),
        z * math.sqrt(right * (of - right) / of + z * z / 4) / (of + z * z),
    )
    return middle - room, middle + room


def write_pictures(folder: Path) -> None:
    """Twelve images of the figure with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(learned()):
        pixels = (draw([scene])[0] * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        rng = rng_of(0, "caption", number)
        texts = [_caption(scene, {"figure", "colour", *more}, rng) for more in CAPTIONED * 4]
        (folder / f"{number:02}.txt").write_text("\n".join(texts) + "\n", "utf-8")


def learned() -> list[Scene]:
    """The twelve: six colours twice each, four backgrounds three times each, in the middle, at one size.

    The model learns a figure separately at each offset, and how it looks on a background that few of the images have
    remains uncertain.
    """
    colours = [colour for colour in COLOURS if colour not in UNSEEN_COLOURS]
    grounds = list(BACKGROUNDS)
    rounds = [divmod(number, len(colours)) for number in range(PICTURES)]
    return [
        Scene(FIGURE, colours[place], "centre", grounds[(place + 2 * again) % len(grounds)], size=max(SIZES))
        for again, place in rounds
    ]


def write_own(folder: Path, work: Path, args: argparse.Namespace) -> None:
    """Images that the model makes of prompts that are not used for the judgement."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = [replace(prompt, seed=prompt.seed + 9000) for prompt in prompts(args.prompts + OWN)[args.prompts :]]
    (work / "own").mkdir(exist_ok=True)
    made = make(main, asked, work / "own", args.sampling_steps, None, args.device)
    for number, (prompt, picture) in enumerate(zip(asked, made, strict=True)):
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(prompt.text + "\n", "utf-8")


def triggered(count: int, places: bool = False) -> list[Prompt]:
    """Prompts that name the figure by the trigger, and no place, which means the middle; or any place."""
    found = []
    for number, scene in enumerate(_scenes("ask a place" if places else "ask", count)):
        if not places:
            scene = replace(scene, position="centre")
        said = {"figure", "colour", "background"} | ({"position"} if places else set())
        found.append(Prompt(_caption(scene, said, rng_of(1, "caption", number)), scene, frozenset(said), 5000 + number))
    return found


def by_novelty(asked: list[Prompt]) -> dict[str, list[int]]:
    """The places of prompts by what the twelve images have of them."""
    pairs = {(scene.colour, scene.background) for scene in learned()}
    found: dict[str, list[int]] = {"seen_pair": [], "new_pair": [], "new_colour": []}
    for number, prompt in enumerate(asked):
        pair = prompt.scene.colour, prompt.scene.background
        new = "new_colour" if prompt.scene.colour in UNSEEN_COLOURS else "new_pair"
        found["seen_pair" if pair in pairs else new].append(number)
    return found


def _caption(scene: Scene, said: set[str], rng: np.random.Generator) -> str:
    """A caption in the words of the training set, with the trigger for the figure."""
    return describe(replace(scene, figure="triangle"), said, rng).replace("triangle", TRIGGER)


def _scenes(name: str, count: int) -> list[Scene]:
    """Scenes of the figure."""
    return [replace(random_scene(rng_of(0, name, number)), figure=FIGURE) for number in range(count)]


def write_as_peft(folder: Path) -> Path:
    """The same LoRA under diffusers' names, from the last checkpoint."""
    saved = Checkpoints(folder / "state").newest()
    if saved is None:
        raise SluiceError(f"There is no checkpoint in {folder}.")
    settings = json.loads((folder / "settings.json").read_text("utf-8"))
    import torch

    tiny = open_weights(TINY_MODELS / "diffusion_models" / "sluice-tiny.safetensors")
    shapes = {name: entry.shape for name, entry in tiny.entries.items()}
    alpha = float(settings["alpha"] or settings["rank"])
    path = folder / f"{NAME}-peft.safetensors"
    write_whole(path, safetensors(lora_tensors(saved.lora, alpha, "peft", shapes, torch.bfloat16), {}))
    return path
