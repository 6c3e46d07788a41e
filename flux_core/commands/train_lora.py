"""`sluice train lora FOLDER`: a LoRA of a FLUX.1 transformer, trained within --vram and --ram.

    sluice train lora photos/ --model flux1-dev-fp8 --trigger "anna person" --vram 8G --ram 16G
    sluice train lora photos/ ... --plan      memory, seconds a step, hours and files; writes nothing
    sluice train lora photos/ ...             the same command resumes a stopped training

Before the first step one page lists the images, the memory and the time. Ctrl-C ends the training at the next block and
keeps all finished steps; after a kill the steps since the last checkpoint are lost.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cancel import cancellable
from ..errors import InputError, Interrupted
from ..io.folders import Folders, standard_folders
from ..memory.budget import add_budget_arguments, format_seconds, format_size
from ..runtime.settings import Settings
from ..training.lora.settings import KEYS, LOSSES, OPTIMISERS, SCHEDULES, TIMES, LoraSettings
from .arguments import add_device_arguments, add_model_arguments
from .plan_page import phase_lines
from .run import first_import

if TYPE_CHECKING:
    from ..runtime.runtime import Runtime
    from ..training.lora.samples import ModelNames
    from ..training.lora.training import Found, LoraTraining, Parts

TINY = "sluice-tiny.safetensors"
DEFAULTS = LoraSettings()
METAVARS = {str: "TEXT", int: "N", float: "X"}
CHOICES = {"schedule": SCHEDULES, "optimiser": OPTIMISERS, "time": TIMES, "loss": LOSSES, "keys": KEYS}
HELP = {
    "name": "name of the LoRA and its files (default: the folder's name)",
    "trigger": "a word that stands for what is trained; added before captions that do not contain it",
    "steps": "number of updates", "rank": "rank of the LoRA",
    "alpha": "the LoRA is scaled by alpha / rank (default: rank)",
    "size": "pictures are scaled to about the area of a square of this side", "batch": "pictures per step",
    "accumulate": "number of batches averaged for one update", "rate": "learning rate",
    "schedule": "how the learning rate changes", "warm_up": "number of steps in which the learning rate rises",
    "optimiser": "the optimiser; adamw8bit needs bitsandbytes", "weight_decay": "weight decay of the optimiser",
    "clip": "largest norm of the gradients; 0 for no limit",
    "layers": "layers that get a LoRA: blocks, attention, single, all (with modulation), or a file of patterns",
    "seed": "seed of all random choices", "time": "distribution of the noise levels",
    "shift": "shift of the noise levels: a number, or `size` for the one that fits the size of the pictures",
    "guidance": "guidance value given to the model", "dropout": "share of captions that are left out",
    "loss": "loss of the predicted velocity", "repeats": "how often every picture is used in an epoch",
    "keys": "names of the tensors in the file", "save_every": "number of steps between two checkpoints and LoRA files",
    "sample_every": "number of steps between two rows of sample pictures", "sample_steps": "sampling steps of a sample",
    "sample_guidance": "guidance of the samples", "validate": "number of pictures in the validation set; 0 for none",
    "validate_every": "number of steps between two validations",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice train lora`."""
    parser.add_argument(
        "folder", type=Path, help="a folder of pictures, each with its caption in a .txt file of the same name"
    )
    parser.add_argument(
        "--model", default=TINY, metavar="NAME", help="the transformer or checkpoint to train on (default: %(default)s)"
    )
    parser.add_argument(
        "--text-encoders", nargs=2, metavar="NAME", help="files of CLIP-L and T5 (default: the first found)"
    )
    parser.add_argument("--vae", metavar="NAME", help="file of the autoencoder (default: the first found)")
    parser.add_argument(
        "--out", type=Path, default=Path("models/loras"), help="folder for the LoRA files (default: %(default)s)"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the memory and time that training will take, and stop"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start from the beginning; deletes what was trained under this name"
    )
    parser.add_argument(
        "--prompt", action="append", default=[], dest="prompts", help="prompt of a sample image; may be repeated"
    )
    group = parser.add_argument_group("training")
    for field in fields(LoraSettings):
        if field.name == "prompts":
            continue
        default = getattr(DEFAULTS, field.name)
        shown = HELP[field.name] + ("" if field.name in ("name", "trigger", "alpha") else f" (default: {default})")
        group.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(default), default=None, choices=CHOICES.get(field.name),
            help=shown, metavar=None if field.name in CHOICES else METAVARS[type(default)],
        )  # fmt: skip
    add_model_arguments(parser)
    add_device_arguments(parser)
    add_budget_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train, or plan. Returns the exit status."""
    settings = settings_of(args)
    folders = _with_loras(
        standard_folders(Path.cwd(), args.models, extra=args.extra_model_paths), args.out, settings.name
    )
    names = model_names(folders, args)
    with first_import():
        from ..runtime.runtime import Runtime
    runtime = Runtime(Settings.parse(args.device, args.dtype, args.vram, args.ram))
    training, names = training_of(args, settings, folders, names, runtime)
    found = training.look()
    print("\n".join(screen(training, found)), flush=True)
    if args.plan:
        return 0
    training.sampler = sampler_of(training, names, folders, runtime)
    with stopping() as bars:
        training.watcher = bars
        try:
            path = training.run(found)
        except (Interrupted, KeyboardInterrupt):
            bars.close()
            done = training.checkpoints.newest()
            after = f"after step {done.step}" if done else "before the first step"
            print(f"\nStopped {after}. Give the same command to go on.", file=sys.stderr)
            return 130
    print(path)
    return 0


def settings_of(args: argparse.Namespace) -> LoraSettings:
    """Raises InputError for settings that do not work together."""
    given = {field.name: getattr(args, field.name) for field in fields(LoraSettings) if field.name != "prompts"}
    given = {name: value for name, value in given.items() if value is not None}
    given.setdefault("name", args.folder.resolve().name or DEFAULTS.name)
    return LoraSettings(**given, prompts=tuple(args.prompts))


def training_of(
    args: argparse.Namespace, settings: LoraSettings, folders: Folders, names: ModelNames, runtime: Runtime
) -> tuple[LoraTraining, ModelNames]:
    """The training, and its models by name."""
    from ..training.lora.training import LoraTraining

    parts = open_parts(runtime, folders, names)
    training = LoraTraining(settings, parts, args.folder, args.out / settings.name)
    training.going_on = not args.fresh
    return training, replace(names, guidance=parts.model.weights.config.guidance)


def open_parts(runtime: Runtime, folders: Folders, names: ModelNames) -> Parts:
    """The models; only headers are read."""
    from ..runtime.handles import load_autoencoder, load_checkpoint, load_flux, load_text
    from ..training.lora.training import Parts

    tokenizers = folders.directories("tokenizers")
    if names.checkpoint:
        return Parts(*load_checkpoint(runtime, folders.path("checkpoints", names.model), tokenizers))
    text = [folders.path("text_encoders", name) for name in names.text]
    return Parts(
        load_flux(runtime, folders.path("diffusion_models", names.model)),
        load_text(runtime, text, tokenizers=tokenizers),
        load_autoencoder(runtime, folders.path("vae", names.vae)),
    )


def model_names(folders: Folders, args: argparse.Namespace) -> ModelNames:
    """The files of the names on the command line. Raises MissingFileError and InputError."""
    from ..training.lora.samples import ModelNames

    place = folders.located(args.model, ("diffusion_models", "checkpoints"))
    if place is None:
        raise InputError(folders.explain_missing("diffusion_models", args.model))
    category, name = place
    if category == "checkpoints":
        return ModelNames(name, checkpoint=True)
    tiny = name == TINY
    clip, t5 = args.text_encoders or (
        _first(folders, "text_encoders", "clip_l", tiny), _first(folders, "text_encoders", "t5", tiny)
    )  # fmt: skip
    return ModelNames(name, (clip, t5), args.vae or _first(folders, "vae", "ae", tiny))


def _first(folders: Folders, category: str, part: str, tiny: bool) -> str:
    """The first file whose name has this part in it; of the small model or not. Raises InputError."""
    names = [name for name in folders.filenames(category) if part in name.lower()]
    found = next((name for name in names if name.startswith("sluice-tiny") == tiny), None)
    if found is None:
        option = "--vae" if category == "vae" else "--text-encoders"
        raise InputError(f"There is no file with {part!r} in its name among {category}; name one with {option}.")
    return found


def _with_loras(folders: Folders, out: Path, name: str) -> Folders:
    """The same folders, with `out` among those of LoRAs, and samples as output."""
    models = {category: folders.directories(category) for category in folders.models}
    place = out.absolute()
    if place not in models.get("loras", ()):
        models["loras"] = (place, *models.get("loras", ()))
    return Folders(models, input=folders.input, output=place / name / "samples", temp=folders.temp, user=folders.user)


def sampler_of(training: LoraTraining, names: ModelNames, folders: Folders, runtime: Runtime) -> Any:
    """The object that makes the sample images of a training; None without prompts."""
    from ...nodes.host import Host
    from ..graph.execute import Executor
    from ..training.lora.samples import WorkflowSampler
    from ..worker.registry import standalone_tables
    from .run import _inference_mode

    if not training.settings.prompts:
        return None
    host = Host(folders, report=lambda done, total, _: sampler.report(done, total), make_runtime=lambda: runtime)
    classes, _ = standalone_tables(host)
    loras = training.out.parent.absolute()
    training.out = loras / training.out.name
    sampler = WorkflowSampler(
        lambda: Executor(classes, around=_inference_mode),
        names,
        training.settings,
        folders.output,
        loras,
        lambda: training.watcher,
    )
    return sampler


# -- what people see ---------------------------------------------------------------------------------------------------


def screen(training: LoraTraining, found: Found) -> list[str]:
    """The page that is printed before the first step."""
    settings, count = training.settings, len(found.examples)
    captions = {caption for example in found.examples for caption in example.picture.captions}
    seen = settings.steps * settings.batch * settings.accumulate
    sizes = ", ".join(f"{size} ({number})" for size, number in found.sizes.items())
    lines = [
        f"{settings.name} · LoRA of rank {settings.rank} on {len(found.layers)} layers of "
        f"{training.parts.model.weights.path.name}",
        "",
        f"  pictures    {count} in {training.source}: {sizes}",
        f"  captions    {len(captions)}"
        + (f", {found.folder.without_caption} pictures have none" if found.folder.without_caption else "")
        + (f"; trigger {settings.trigger!r}" if settings.trigger else ""),
        f"  steps       {settings.steps}, {_pictures(settings.batch * settings.accumulate)} in each: "
        f"each is seen about {seen / max(1, found.views):.0f} times"
        + (" for each repeat" if found.views != count else ""),
        *_plan_lines(training, found),
        f"  files       {training.final} and checkpoints, every {settings.save_every} steps",
    ]
    return [*lines, *(f"  note        {note}" for note in found.notes), ""]


def _plan_lines(training: LoraTraining, found: Found) -> list[str]:
    from ..training.lora.adapter import parameter_count
    from ..training.lora.optimiser import bytes_a_number

    settings, model = training.settings, training.parts.model
    numbers = parameter_count(found.layers.values(), settings.rank)
    held = numbers * bytes_a_number(settings.optimiser, model.dtype)
    lora = f"LoRA and moments {format_size(held)}"
    if found.foreseen is None:
        return [f"  memory      the model is small and loaded whole on {model.device.type}; {lora}"]
    made, place = found.foreseen.plan, found.foreseen.place
    where = {"device": "beside the weights", "ram": "in RAM", "disk": "on disk"}[place]
    seconds = found.foreseen.seconds(settings.accumulate)
    hours = seconds * settings.steps / 3600
    return [
        *_titled("memory", phase_lines(found.phases)),
        f"              in steps: {lora}; block inputs {where} ({format_size(found.foreseen.kept_bytes)})",
        f"  weights     {made.resident_bytes / 1e9:.2f} GB stay, {made.streamed_bytes / 1e9:.2f} GB stream each step"
        + (f" through {made.slots} slots" if made.slots else "")
        + (f", {made.disk_bytes / 1e9:.2f} GB of it from disk" if made.disk_bytes else ""),
        f"  time        {format_seconds(seconds)} a step, bound by {made.bound}: {_hours(hours)} without samples",
    ]


def _titled(title: str, lines: Sequence[str]) -> list[str]:
    """The lines beside a title of the page."""
    return [f"  {title if number == 0 else '':<10}{line}" for number, line in enumerate(lines)]


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _hours(hours: float) -> str:
    if hours < 1 / 30:
        return f"{hours * 3600:.0f} seconds"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"


class Bars:
    """A progress bar for each phase, on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None

    def phase(self, name: str, total: int, done: int = 0) -> None:
        from tqdm import tqdm

        self.close()
        self._bar = tqdm(total=total, initial=done, desc=name, unit="step" if name == "train" else "", mininterval=0.5)

    def advance(self, count: int = 1, note: str = "") -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)

    def note(self, text: str) -> None:
        self.close()
        print(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@dataclass
class _Stop:
    asked: bool = False


@contextmanager
def stopping() -> Iterator[Bars]:
    """The first Ctrl-C ends the work at the next block, the second at once."""
    stop, bars = _Stop(), Bars()

    def ask() -> None:
        if stop.asked:
            raise Interrupted("The training was stopped.")

    def heard(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        print("\nStopping; the steps that are done are kept.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, heard)
    try:
        with cancellable(ask):
            yield bars
    finally:
        signal.signal(signal.SIGINT, before)
        bars.close()
