"""Measures how often the model draws what the prompt describes: fixed prompts and seeds, run by the program, recognised
and counted.

All prompts are branches of one workflow with the nodes and settings of the shipped text-to-image workflow. It is run by
`sluice run`, and `recognise` reads the saved images. A prompt counts as right in an attribute that it names if exactly
that attribute is recognised; an image in which nothing is recognised is wrong in all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import SluiceError
from .captions import describe
from .drawing import DIGITS, SHAPES, SIDE, Scene, random_scene
from .export import FILES
from .flow import rng_of
from .recognise import recognise

SEED = 2024

CommandLine = Callable[[Sequence[str]], int]  # runs `sluice` with these arguments and returns its exit code


@dataclass(frozen=True)
class Prompt:
    """A text, its meaning, and the seed of the noise."""

    text: str
    scene: Scene
    said: frozenset[str]
    seed: int


def prompts(count: int) -> list[Prompt]:
    """Fixed prompts: digits and shapes in turn; figure and colour are always named, position and background often."""
    made = []
    for number in range(count):
        rng = rng_of(SEED, "evaluate", number)
        scene = random_scene(rng)
        while scene.figure not in (DIGITS, SHAPES)[number % 2]:
            scene = random_scene(rng)
        said = {"figure", "colour"} | {part for part in ("position", "background") if rng.random() < 0.75}
        made.append(Prompt(describe(scene, said, rng), scene, frozenset(said), SEED + number))
    return made


def workflow(asked: Iterable[Prompt], steps: int, guidance: float = 3.5, lora: str | None = None) -> dict[str, Any]:
    """One API prompt with a branch for each. lora: the name of one that the model gets."""
    files = {part: path.partition("/")[2] for part, path in FILES.items()}
    nodes: dict[str, Any] = {
        "model": _node("UNETLoader", unet_name=files["transformer"], weight_dtype="default"),
        "clip": _node("DualCLIPLoader", clip_name1=files["t5"], clip_name2=files["clip"], type="flux"),
        "vae": _node("VAELoader", vae_name=files["codec"]),
        "shift": _node(
            "ModelSamplingFlux",
            model=["lora" if lora else "model", 0],
            max_shift=1.15,
            base_shift=0.5,
            width=SIDE,
            height=SIDE,
        ),
        "solver": _node("KSamplerSelect", sampler_name="euler"),
        "sigmas": _node("BasicScheduler", model=["shift", 0], scheduler="simple", steps=steps, denoise=1.0),
        "empty": _node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1),
    }
    if lora:
        nodes["lora"] = _node("LoraLoaderModelOnly", model=["model", 0], lora_name=lora, strength_model=1.0)
    for number, prompt in enumerate(asked):
        nodes |= {
            f"{number}.text": _node("CLIPTextEncode", text=prompt.text, clip=["clip", 0]),
            f"{number}.guidance": _node("FluxGuidance", conditioning=[f"{number}.text", 0], guidance=guidance),
            f"{number}.guider": _node("BasicGuider", model=["shift", 0], conditioning=[f"{number}.guidance", 0]),
            f"{number}.noise": _node("RandomNoise", noise_seed=prompt.seed),
            f"{number}.latent": _node(
                "SamplerCustomAdvanced", noise=[f"{number}.noise", 0], guider=[f"{number}.guider", 0],
                sampler=["solver", 0], sigmas=["sigmas", 0], latent_image=["empty", 0],
            ),
            f"{number}.pixels": _node("VAEDecode", samples=[f"{number}.latent", 0], vae=["vae", 0]),
            f"{number}.file": _node("SaveImage", images=[f"{number}.pixels", 0], filename_prefix=f"{number:04}"),
        }  # fmt: skip
    return nodes


def measure(asked: list[Prompt], pictures: Iterable[np.ndarray]) -> dict[str, tuple[int, int]]:
    """(right, asked) by attribute; "all" counts prompts with all attributes right."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for prompt, picture in zip(asked, pictures, strict=True):
        seen = recognise(picture)
        right = {part: getattr(seen, part) == getattr(prompt.scene, part) for part in prompt.said}
        counts["digit" if prompt.scene.figure in DIGITS else "shape"].append(right["figure"])
        for part in sorted(prompt.said - {"figure"}):
            counts[part].append(right[part])
        counts["figure and colour"].append(right["figure"] and right["colour"])
        counts["all"].append(all(right.values()))
        counts[f"all, of {len(right)} said"].append(all(right.values()))  # short captions and long ones
    return {part: (sum(answers), len(answers)) for part, answers in counts.items()}


def run(args: argparse.Namespace, sluice: CommandLine) -> int:
    """`sluice train --evaluate`: print the table, last line JSON."""
    asked = prompts(args.prompts)
    with tempfile.TemporaryDirectory() as folder:
        pictures = make(sluice, asked, Path(folder), args.steps, args.models, args.device)
    table = measure(asked, pictures)
    for part, (right, of) in table.items():
        print(f"{part:18} {right:4} of {of:4}  {right / of:6.1%}")
    print(json.dumps({"steps": args.steps, "right": {part: right / of for part, (right, of) in table.items()}}))
    return 0


def make(
    sluice: CommandLine, asked: list[Prompt], folder: Path, steps: int, models: Path | None, device: str | None,
    lora: str | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Run the prompts with `sluice run`, with the LoRA of this name. Returns the images [SIDE, SIDE, 3] in 0..1, in
    order."""
    graph = folder / "prompts.json"
    graph.write_text(json.dumps(workflow(asked, steps, lora=lora)), "utf-8")
    out = folder / "pictures"
    command = ["run", str(graph), "--out", str(out), *(["--device", device] if device else [])]
    if models is not None:
        command += ["--models", str(models)]
    if sluice(command) != 0:
        raise SluiceError("The prompts could not be run; the reason is above.")
    files = sorted(out.rglob("*.png"))
    return [np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files]


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
