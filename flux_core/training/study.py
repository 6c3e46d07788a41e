"""A family of sizes trained alike: does performance grow as a log N + b, or as a power law?

Every size and seed is trained on the same digits for the same number of steps. The rate falls with the square root of
the width, and the decay of the average follows the number of steps, so that the average has no effect on the
comparison. Performance is minus the flow loss on fixed triples of digit, noise and time that are in no training. Both
laws are fitted by least squares, and the residuals are printed with the spread over the seeds. Each run is a line of a
table; runs in the table are not repeated.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..io.saving import write_whole
from .digits.lesson import Lesson
from .digits.pictures import DigitPictures
from .digits.recipe import DigitRecipe, checked
from .flow import FlowStage
from .lora.curve import png, svg
from .small_networks import fitting_for_small_networks
from .trainer import train

TRIPLES, AT_ONCE = 4096, 512
HEAD = 32
EXPONENTS = np.linspace(0.02, 3.0, 150)


@dataclass(frozen=True)
class Run:
    """One network of one seed. parameters: all of the transformer; inside: only those of its blocks' matrices."""

    hidden: int
    seed: int
    steps: int
    batch: int
    parameters: int
    inside: int
    flops: float
    seconds: float
    loss: float


@dataclass(frozen=True)
class Fit:
    """A law with its coefficients, its share of explained variance, and its residuals, all in units of the loss."""

    law: str
    coefficients: tuple[float, ...]
    explained: float
    residuals: tuple[float, ...]

    def at(self, parameters: float) -> float:
        """The predicted performance."""
        if self.law == "log":
            a, b = self.coefficients
            return a * math.log(parameters) + b
        least, factor, exponent = self.coefficients
        performance: float = -(least + factor * parameters**-exponent)
        return performance


def study(
    recipe: DigitRecipe, widths: Sequence[int], seeds: Sequence[int], folder: Path, device: torch.device,
    quiet: bool = False,
) -> list[Run]:  # fmt: skip
    """All runs; those in the table of the folder are read from it."""
    table = folder / "study.csv"
    runs = read(table)
    done = {(run.hidden, run.seed, run.steps, run.batch) for run in runs}
    for hidden in widths:
        for seed in seeds:
            if (hidden, seed, recipe.flow.steps, recipe.flow.batch) not in done:
                runs.append(_run(recipe, hidden, seed, folder, device, quiet))
                write_whole(table, _csv(runs))
    return [run for run in runs if run.hidden in widths and run.seed in seeds and run.steps == recipe.flow.steps]


def _run(recipe: DigitRecipe, hidden: int, seed: int, folder: Path, device: torch.device, quiet: bool) -> Run:
    phase = replace(
        recipe.flow, rate=recipe.flow.rate * (96 / hidden) ** 0.5, average=1 - 5 / max(10, recipe.flow.steps)
    )
    sizes = replace(recipe.sizes, hidden=hidden, heads=hidden // HEAD, head=HEAD)
    made = checked(replace(recipe, name=f"study-{hidden}-{seed}", seed=seed, sizes=sizes, flow=phase))
    lesson = Lesson(made, folder / "models", folder / f"{hidden}-{seed}", device, quiet=quiet)
    system, began = lesson.new_system(), time.perf_counter()
    with fitting_for_small_networks(device):
        train(FlowStage(lesson.pictures, system, lesson.dtype), made, lesson.work, quiet=quiet)
        seconds = time.perf_counter() - began
        loss = held_out(lesson, system)
    every = sum(weight.numel() for weight in system.transformer.parameters())
    inside = sum(weight.numel() for name, weight in system.transformer.named_parameters() if "_blocks." in name)
    tokens = (made.cells // 2) ** 2 + made.sizes.t5_length
    flops = 6.0 * inside * tokens * phase.batch * phase.steps
    return Run(hidden, seed, phase.steps, phase.batch, every, inside, flops, seconds, loss)


@torch.no_grad()
def held_out(lesson: Lesson, system: torch.nn.Module) -> float:
    """The flow loss on fixed triples with digits that are in no training; times are spread evenly over 0..1."""
    fixed = replace(lesson.recipe, seed=0, empty=0.0)
    others = DigitPictures(fixed, lesson.reader, lesson.digits[1], lesson.device)
    losses = []
    for number in range(TRIPLES // AT_ONCE):
        batch = others.batch("held out", number, AT_ONCE)
        batch = replace(batch, times=(torch.arange(AT_ONCE, device=lesson.device) + 0.5) / AT_ONCE)
        one = torch.ones_like(batch.times)
        velocity = system(batch.noisy, batch.times, batch.tokens, one, lesson.dtype)
        losses.append((velocity - (batch.noise - batch.clean)).square().mean())
    return float(torch.stack(losses).mean())


def fits(runs: Sequence[Run]) -> tuple[Fit, Fit]:
    """The logarithm, and the power law L = L0 + c N^-e, of performance over parameters."""
    count = np.array([run.parameters for run in runs], float)
    performance = -np.array([run.loss for run in runs])
    (a, b), _ = _line(np.log(count), performance)
    log = _fit("log", (a, b), count, performance)
    best = min(EXPONENTS, key=lambda exponent: _line(count**-exponent, -performance)[1])
    (factor, least), _ = _line(count**-best, -performance)
    return log, _fit("power", (least, factor, float(best)), count, performance)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[tuple[float, float], float]:
    """Slope and intercept of the line through points, and the sum of the squared residuals."""
    middle = x - x.mean()
    slope = float(middle @ (y - y.mean()) / (middle @ middle))
    height = float(y.mean() - slope * x.mean())
    return (slope, height), float(((y - slope * x - height) ** 2).sum())


def _fit(law: str, coefficients: tuple[float, ...], count: np.ndarray, performance: np.ndarray) -> Fit:
    bare = Fit(law, coefficients, 0.0, ())
    left = performance - np.array([bare.at(each) for each in count])
    explained = 1 - float((left**2).sum() / ((performance - performance.mean()) ** 2).sum())
    return Fit(law, coefficients, explained, tuple(map(float, left)))


def summary(runs: Sequence[Run]) -> list[str]:
    """The table, the laws and their residuals, as lines."""
    log, power = fits(runs)
    lines = ["hidden   parameters   seeds   loss      spread   log N     power law"]
    for hidden in sorted({run.hidden for run in runs}):
        of = [number for number, run in enumerate(runs) if run.hidden == hidden]
        losses = [runs[number].loss for number in of]
        left = [sum(fit.residuals[number] for number in of) / len(of) for fit in (log, power)]
        lines.append(
            f"{hidden:6} {runs[of[0]].parameters:12,} {len(of):7} {sum(losses) / len(of):9.4f} "
            f"{max(losses) - min(losses):9.4f} {left[0]:+9.4f} {left[1]:+9.4f}"
        )
    a, b = log.coefficients
    least, factor, exponent = power.coefficients
    lines.append(f"performance = {a:.4f} ln N {b:+.4f}, R² {log.explained:.4f}")
    lines.append(f"loss = {least:.4f} + {factor:.4g} N^-{exponent:.2f}, R² {power.explained:.4f}")
    return lines


def draw(runs: Sequence[Run], folder: Path) -> None:
    """study.svg and study.png: each seed, and both laws, over the size."""
    log, power = fits(runs)
    counts = sorted({run.parameters for run in runs})
    first = math.log10(counts[0])
    places = np.linspace(first, math.log10(counts[-1]), 60)
    lines = {f"seed {seed}": sorted((math.log10(run.parameters) - first, -run.loss) for run in runs if run.seed == seed)
             for seed in sorted({run.seed for run in runs})}  # fmt: skip
    for name, fit in (("a log N + b", log), ("power law", power)):
        lines[name] = [(float(place) - first, fit.at(10**place)) for place in places]
    across = f"log10(N / {counts[0]:,})"
    write_whole(folder / "study.svg", svg(lines, across, "performance").encode())
    write_whole(folder / "study.png", png(lines, across, "performance"))


def read(table: Path) -> list[Run]:
    """The runs of a table; none if there is no table."""
    if not table.is_file():
        return []
    kinds = {"hidden": int, "seed": int, "steps": int, "batch": int, "parameters": int, "inside": int}
    rows = csv.DictReader(io.StringIO(table.read_text("utf-8")))
    values: list[dict[str, Any]] = [
        {name: kinds.get(name, float)(value) for name, value in row.items()} for row in rows
    ]
    return [Run(**row) for row in values]


def _csv(runs: Sequence[Run]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Run)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, runs))
    return text.getvalue().encode()
