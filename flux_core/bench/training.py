"""`sluice bench training`: LoRA steps of the full-size model under memory budgets, compared with the prediction.

    sluice bench training                        fp8 under 6 GiB, three steps; killed in the second and resumed
    sluice bench training --format bf16          bf16 under 8 GiB, one step
    sluice bench training --kills 20 --depth 1 2 --hidden 256 --steps 80
                                                 a small model, killed at 20 random moments, during saves too
    sluice bench training --parts --no-kill      also the parts of a step's time, measured in one more step
    sluice bench training --folder bench-models     with the files flux-fp8.safetensors and flux-bf16.safetensors there

Images of 64 x 64 pixels and 32 text tokens, all of random numbers: the transfers of the weights are measured, and these
are the same for any image. Each run is a process of its own, which can be killed and whose peak is that of the run
alone. Targets: the peak is within the budget, each step fetches as many bytes as the plan that was in force in it says,
and the resumed file is equal to the uninterrupted one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import SluiceError
from ..io.saving import TEMPORARY_PREFIX
from ..memory.budget import AUTO, Allowed, format_size
from ..models.latents import CELL
from ..runtime.published import picture_size
from . import random_model
from .child_process import end_with_parent
from .files import FORMATS, FULL, path_of, written
from .steps import manager_of
from .training_parts import table, with_parts

if TYPE_CHECKING:
    from ..training.lora.ready import Pictures
    from ..training.lora.steps import Call, Steps
    from ..training.lora.training import LoraTraining

BUDGETS = {"fp8": "6G", "bf16": "8G"}
STEPS = {"fp8": 3, "bf16": 1}
WITHIN = 0.15  # of the predicted time
NAME = "bench"
STARTED = "started"


@dataclass(frozen=True)
class Setup:
    """One measurement, the argument of its process. out: the training's folder."""

    folder: str
    file: str
    out: str
    device: str
    vram: str
    ram: str
    width: int
    height: int
    tokens: int
    steps: int
    rank: int
    parts: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench training`."""
    parser.add_argument("--format", choices=BUDGETS, default="fp8", help="number format of the weights")
    parser.add_argument("--ram", metavar="SIZE", help="RAM budget (default: 6G for fp8, 8G for bf16)")
    parser.add_argument("--vram", default=AUTO, metavar="SIZE", help="GPU memory budget (default: what is free)")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda")
    parser.add_argument("--size", default="64x64", metavar="WxH", help="size of the images")
    parser.add_argument("--tokens", type=int, default=32, help="number of text tokens")
    parser.add_argument("--steps", type=int, help="steps of training (default: 3 for fp8, 1 for bf16)")
    parser.add_argument("--rank", type=int, default=4, help="rank of the LoRA")
    parser.add_argument(
        "--kill",
        action=argparse.BooleanOptionalAction,
        help="kill the training in step 2 and continue it (default: for fp8)",
    )
    parser.add_argument("--parts", action="store_true", help="measure the parts of a step's time in a further step")
    parser.add_argument(
        "--kills",
        type=int,
        default=0,
        metavar="N",
        help="kill the training N times at random moments, every fourth time during a save",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--folder", type=Path, default=Path("bench-models"), help="folder for the model files")
    parser.add_argument("--keep", action="store_true", help="keep the model files for another run")
    parser.add_argument(
        "--depth", type=int, nargs=2, default=FULL, help="number of double and single blocks; fewer for a quick try"
    )
    parser.add_argument("--hidden", type=int, default=3072, help="width of the blocks; smaller for a quick try")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the run, and whether everything held. Raises SluiceError if a process fails."""
    width, height = picture_size(args.size)
    file, steps = f"flux-{args.format}", args.steps or STEPS[args.format]
    files = {file: (lambda: random_model.flux(args.depth[0], args.depth[1], args.hidden), FORMATS[args.format])}
    ram = args.ram or BUDGETS[args.format]
    Allowed.parse(args.vram, ram)
    with written(args.folder, files, args.keep), tempfile.TemporaryDirectory(dir=args.folder) as place:
        common = (args.device, args.vram, ram, width, height, args.tokens, steps, args.rank)
        whole = Setup(str(args.folder), file, str(Path(place, "whole")), *common, parts=args.parts)
        record = _measured(whole)
        met = record["within_budget"] and record["read_as_planned"]
        if args.kills:
            stopped = Setup(str(args.folder), file, str(Path(place, "stopped")), *common)
            kills = _Kills(stopped, random.Random(args.seed), record["seconds"][0] + 3 * record["seconds"][-1])
            record["kills"], record["kills_in_saves"] = args.kills, kills.run(args.kills)
            record["resumed_equal"] = _bytes_of(stopped) == _bytes_of(whole)
            met = met and record["resumed_equal"]
            print(
                f"  killed {args.kills} times, {record['kills_in_saves']} of them in a save: "
                f"{'equal' if record['resumed_equal'] else 'NOT EQUAL'}",
                flush=True,
            )
        elif args.kill or (args.kill is None and steps >= 3):
            stopped = Setup(str(args.folder), file, str(Path(place, "stopped")), *common)
            record["resumed_equal"] = _killed_and_resumed(stopped, record["seconds"][-1] / 2) == _bytes_of(whole)
            met = met and record["resumed_equal"]
            print(f"  killed in step 2 and gone on: {'equal' if record['resumed_equal'] else 'NOT EQUAL'}", flush=True)
    return {"training": record, "met": met}


def _measured(setup: Setup) -> dict[str, Any]:
    """All steps in a process of their own."""
    process, answers = _started(setup)
    told = _answer(answers)
    process.join()
    if "seconds" not in told:
        raise SluiceError(f"The training failed: {told.get('error', f'exit code {process.exitcode}')}")
    record = asdict(setup) | told
    steady = told["seconds"][1:] or told["seconds"]
    took = sum(steady) / len(steady)
    record["within_budget"] = told["peak_bytes"] <= told["limit_bytes"]
    record["read_as_planned"] = read_as_planned(told)
    record["within_prediction"] = abs(took / told["predicted_seconds"] - 1) <= WITHIN
    print(
        f"{setup.file} under {setup.ram}: {took:.2f} s a step (predicted {told['predicted_seconds']:.2f}), peak "
        f"{format_size(told['peak_bytes'])} of {format_size(told['limit_bytes'])}, "
        f"GB fetched in each step {_gigabytes(told['fetched_bytes'])} (planned {_gigabytes(told['planned_bytes'])}), "
        f"losses {', '.join(f'{loss:.5f}' for loss in told['losses'])}",
        flush=True,
    )
    print(table(told["predicted_parts"], told["measured_parts"]), flush=True)
    return record


def read_as_planned(told: dict[str, Any]) -> bool:
    """Whether each step fetched the bytes of its plan, and nothing was read besides except ahead of the last restarts.

    A step in which the plan changed has no number to compare with; at least one must have one.
    """
    compared = [
        fetched == planned
        for fetched, planned in zip(told["fetched_bytes"], told["planned_bytes"], strict=True)
        if planned is not None
    ]
    ahead = sum(told["read_bytes"]) - sum(told["fetched_bytes"])
    return bool(compared) and all(compared) and 0 <= ahead <= told["most_ahead_bytes"]


def _gigabytes(numbers: Sequence[int | None]) -> str:
    return ", ".join("changing" if number is None else f"{number / 1e9:.3f}" for number in numbers)


def _killed_and_resumed(setup: Setup, after: float) -> bytes:
    """Killed some seconds after the end of step 1, then run to the end."""
    process, _ = _started(setup)
    first = Path(setup.out, f"{NAME}-000001.safetensors")
    while process.is_alive() and not first.exists():
        time.sleep(0.002)
    time.sleep(after)
    process.kill()
    process.join()
    if Path(setup.out, f"{NAME}.safetensors").exists():
        raise SluiceError("The training ended before it could be killed. Take more --steps.")
    _measured(setup)
    return _bytes_of(setup)


class _Kills:
    """Kills of one training: three of four at random within the time of four steps, every fourth during a save."""

    def __init__(self, setup: Setup, chance: random.Random, seconds: float) -> None:
        """seconds: of the first step, which takes longer, and three more."""
        self.setup, self.chance, self.seconds = setup, chance, seconds
        self.state = Path(setup.out, "state")

    def run(self, count: int) -> int:
        """Kill the training `count` times, then run it to its end. Returns how many kills interrupted a save."""
        in_saves = 0
        for number in range(count):
            process, answers = _started(self.setup)
            if answers.poll(None) and answers.recv() != STARTED:
                raise SluiceError("The training ended before it had been killed often enough. Take more --steps.")
            if number % 4 == 3:
                while process.is_alive() and not self._saving():
                    pass
            else:
                time.sleep(self.chance.uniform(0, self.seconds))
            if not process.is_alive():
                raise SluiceError("The training ended before it had been killed often enough. Take more --steps.")
            process.kill()
            process.join()
            in_saves += self._saving()
        _measured(self.setup)
        return in_saves

    def _saving(self) -> bool:
        try:
            return any(path.name.startswith(TEMPORARY_PREFIX) for path in self.state.iterdir())
        except OSError:  # the folder does not exist yet, or its content changes
            return False


def _answer(answers: Any) -> dict[str, Any]:
    """The last message of the process; {} if it ended without one."""
    told: Any = STARTED
    try:
        while told == STARTED:
            told = answers.recv()
    except EOFError:
        return {}
    return dict(told)


def _bytes_of(setup: Setup) -> bytes:
    return Path(setup.out, f"{NAME}.safetensors").read_bytes()


def _started(setup: Setup) -> tuple[Any, Any]:
    """The process, and the end of the pipe from which its record is read."""
    context = multiprocessing.get_context("spawn")
    answers, tells = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(setup, tells))
    process.start()
    tells.close()
    return process, answers


# --- in the process ---------------------------------------------------------------------------------------------------


def _train(setup: Setup, tells: Any) -> None:
    end_with_parent()
    try:
        tells.send(train(setup, lambda: tells.send(STARTED)))
    except Exception as error:
        tells.send({"error": f"{type(error).__name__}: {error}"})
        raise


def train(setup: Setup, on_start: Callable[[], object]) -> dict[str, Any]:
    """Run the remaining steps; returns their times and bytes. on_start: called before the first."""
    from ..runtime import handles
    from ..runtime.runtime import Runtime
    from ..runtime.settings import Settings
    from ..training.lora.steps import Steps

    runtime = Runtime(Settings.parse(setup.device, AUTO, setup.vram, setup.ram))
    model = handles.load_flux(runtime, path_of(setup.folder, setup.file))
    training, found, given = _training(setup, model)
    steps = Steps(training, found, given)
    on_start()
    steps.run()
    measured = _parts(training, found, given, steps) if setup.parts else None
    managed = model.weights.managed(manager_of(runtime), model.dtype)
    report = managed.report
    assert report is not None
    shutil.rmtree(Path(setup.out, "cache"), ignore_errors=True)
    return {
        "seconds": [step.seconds for step in report.steps],
        "read_bytes": [step.read_bytes for step in report.steps],
        "losses": [row.loss for row in steps.curve.rows],
        "predicted_seconds": report.plan.seconds,
        "predicted_parts": report.plan.parts,
        "measured_parts": measured,
        "fetched_bytes": [step.fetched_bytes for step in report.steps],
        "planned_bytes": [step.planned_bytes for step in report.steps],
        "most_ahead_bytes": report.restarts * max(plan.ring_bytes for plan in (found.foreseen.plan, report.plan)),
        "peak_bytes": manager_of(runtime).memory.peak_bytes(),
        "limit_bytes": report.limit,
        "block_inputs": found.foreseen.place,
        "dtype": str(model.dtype),
    }


def _parts(training: LoraTraining, found: Any, given: _Random, steps: Steps) -> dict[str, float]:
    """Measured in the second of two further steps; the first one reads the weights that stay."""
    from ..training.lora.ready import ready

    place = found.foreseen.place
    with ready(training.parts.model, steps.lora, given.batch(0), place, training.out) as model:
        model.step(given.batch(0))
        return with_parts(lambda: model.step(given.batch(0)))[1]


def _training(setup: Setup, model: Any) -> tuple[LoraTraining, Any, _Random]:
    """A training whose images and captions are random numbers."""
    from ..models.flux import Flux
    from ..training.lora.adapter import chosen_layers
    from ..training.lora.folder import TrainingFolder
    from ..training.lora.phases import Task, planned
    from ..training.lora.settings import LoraSettings
    from ..training.lora.training import Found, LoraTraining, Parts

    class Numbers(LoraTraining):
        """Makes no samples."""

        def heaviest(self, found: Found) -> Pictures:
            return given.batch(0)

    given = _Random(setup, model.weights.config)
    settings = LoraSettings(
        NAME, steps=setup.steps, rank=setup.rank, save_every=1, sample_every=setup.steps, validate=0, warm_up=0
    )
    nothing: Any = None
    training = Numbers(settings, Parts(model, nothing, nothing), Path(setup.out), Path(setup.out), _Printed())
    training.out.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        layers = chosen_layers(Flux(model.weights.config), settings.layers)
    found = Found(TrainingFolder(Path(NAME), (), 0), [], [], 0, nothing, nothing, layers)
    task = Task(settings, layers, given.batch(0), training.loss)
    found.phases, found.foreseen = planned(training.parts, task)
    if found.foreseen is None:
        raise SluiceError("Nothing is managed: name a budget with --ram or --vram.")
    return training, found, given


class _Printed:
    """Prints a line on stderr at the end of each step."""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        self.done, self.began = done, time.perf_counter()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        print(f"  step {self.done} after {time.perf_counter() - self.began:.1f} s, {note}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)


class _Random:
    """Batches of random numbers, which depend only on the number of the batch."""

    def __init__(self, setup: Setup, config: Any) -> None:
        self.setup, self.config = setup, config

    def batch(self, number: int) -> Pictures:
        from ..training.lora.ready import Pictures

        setup, config = self.setup, self.config
        generator = torch.Generator().manual_seed(1000 + number)
        shape = 1, config.in_channels, setup.height // CELL, setup.width // CELL
        x, target = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        context = torch.randn(1, setup.tokens, config.context_dim, generator=generator)
        timesteps, pooled, guidance = self.call(number)
        return Pictures(x, timesteps, context, pooled, guidance, target)

    def call(self, number: int) -> Call:
        generator = torch.Generator().manual_seed(2000 + number)
        pooled = torch.randn(1, self.config.vec_dim, generator=generator)
        return torch.rand(1, generator=generator), pooled, torch.ones(1) if self.config.guidance else None

    def validation(self) -> Sequence[Pictures]:
        return []
