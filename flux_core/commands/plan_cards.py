"""`sluice plan MODEL --card A --card B`: every way to use several cards, with seconds, memory and advice.

    alone      one card, the others idle
    jobs       each card makes images of its own
    tokens     one image, its tokens divided by the cards' speeds
    rows       one image, the rows of all matrices divided evenly
    cfg        one image whose steps have a negative prompt too (--cfg): half of the cards evaluates each prompt

Uses the planner of single cards for each card's part of the work, and the arithmetic of parallel/predict.py.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BudgetTooSmall, InputError
from ..memory.budget import format_size
from ..memory.cards import find_card
from ..memory.plan import Plan, plan
from ..memory.workload import DISK_BOUND
from ..parallel.predict import Exchange, Step, of_rows, of_tokens, part_of, shares_by_speed, step_of
from .plan_images import IMAGE_STEPS, passes_of
from .plan_model import Beside, Model, as_computed, beside_of, folders_of, open_model
from .plan_step import budget_of, job_of, plan_for, workload_for
from .plan_target import Target, target_of

WORTH = 1.05  # times as fast as the fastest card alone: below that, several cards for one image are not worth it
MOST = 8  # cards


@dataclass(frozen=True)
class Cards:
    """Cards of one machine. exchange: bytes/s between them, through the host's memory."""

    targets: tuple[Target, ...]
    exchange: float

    @property
    def names(self) -> str:
        return " + ".join(target.label for target in self.targets)


@dataclass(frozen=True)
class Way:
    """One way to use the cards. seconds: of a step of an image, or the mean time between steps of all images.

    times: as fast as the fastest card alone. steps: an evaluation by each card that is used, by its number.
    evaluations: that each of them makes in a step of an image. refused: why not.
    """

    name: str
    command: str
    seconds: float
    times: float
    steps: dict[int, Step]
    evaluations: int = 1
    refused: str | None = None

    def record(self) -> dict[str, Any]:
        count = self.evaluations
        cards = [
            {
                "card": number, "peak_bytes": step.plan.peak_bytes, "seconds_per_step": count * step.seconds,
                "streamed_bytes_per_step": count * step.plan.streamed_bytes,
                "exchanged_bytes_per_step": count * step.exchange.nbytes, "bound": step.bound,
            }
            for number, step in self.steps.items()
        ]  # fmt: skip
        return {
            "way": self.name, "command": self.command, "seconds_per_step": self.seconds, "times": self.times,
            "refused": self.refused, "cards": cards,
        }  # fmt: skip


def run(args: Namespace) -> int:
    """Print the ways. Raises InputError for cards that cannot be used together at all."""
    model, cards = open_model(args.model, folders_of(args)), cards_of(args)
    beside = beside_of(args, model)
    jobs = [job_of(args, target) for target in cards.targets]
    passes = passes_of(args.cfg)
    ways = ways_of(model, cards, jobs, beside, passes)
    steps = args.steps or IMAGE_STEPS
    if args.json:
        record = {"cards": [target.label for target in cards.targets], "exchange": cards.exchange}
        print(
            json.dumps(
                {
                    "model": model.name,
                    **record,
                    "evaluations_per_step": passes,
                    "ways": [way.record() for way in ways],
                    "advice": advice(ways),
                }
            )
        )
        return 0
    title = f"{model.name} · {jobs[0].width}x{jobs[0].height} · {cards.names}"
    title += "" if passes == 1 else f" · cfg {args.cfg:g}: {passes} evaluations a step"
    print("\n".join([title, "", *table(ways, cards, steps), "", *advice(ways)]))
    print(
        f"\nPredicted. Exchange at {cards.exchange / 1e9:g} GB/s through the machine's memory is an estimate for these "
        "slots; set what you have measured with --exchange GB/s."
    )
    return 0


def cards_of(args: Namespace) -> Cards:
    """The cards of a command line, each with its own --vram. Raises InputError."""
    if len(args.cards) > MOST:
        raise InputError(f"A plan is for at most {MOST} cards.")
    sizes = args.vram.split(",")
    if len(sizes) not in (1, len(args.cards)):
        raise InputError(f"--vram {args.vram} gives {len(sizes)} sizes for {len(args.cards)} cards.")
    if any(name.strip().lower() == "cpu" for name in args.cards):
        raise InputError("A plan for several devices is for graphics cards. For a processor give --card cpu alone.")
    sizes = sizes * len(args.cards) if len(sizes) == 1 else sizes
    targets = [
        target_of(Namespace(**{**vars(args), "card": name, "vram": size}))
        for name, size in zip(args.cards, sizes, strict=True)
    ]
    slowest = min(find_card(name).exchange for name in args.cards)
    return Cards(tuple(targets), (args.exchange or slowest) * 1e9)


def ways_of(model: Model, cards: Cards, jobs: Sequence[Any], beside: Beside, passes: int = 1) -> list[Way]:
    """Each card alone, jobs side by side, then one image by tokens, by rows and, with two passes, by prompts.

    passes: evaluations in a step. Raises BudgetTooSmall if no card has room for the model.
    """
    count = len(cards.targets)
    ways, failed = list[Way](), list[BudgetTooSmall]()
    for number, (target, job) in enumerate(zip(cards.targets, jobs, strict=True)):
        try:
            made = plan_for(as_computed(model, target), target, job, beside)
        except BudgetTooSmall as error:
            failed.append(error)
            continue
        step = _alone(made)
        name, command = f"card {number} alone", f"--device cuda:{number}"
        ways.append(Way(name, command, passes * step.seconds, 0.0, {number: step}, passes))
    if not ways:
        raise failed[0]
    fastest = min(way.seconds for way in ways)
    ways = [replace(way, times=fastest / way.seconds) for way in ways]
    planned = _Planned(model, cards, jobs, beside, fastest, passes)
    if len(ways) == count:
        ways.append(planned.jobs_at_once(ways))
    kinds = {target.itemsize for target in cards.targets}
    if len(kinds) > 1:
        return ways  # one image needs one number type: see `advice`
    return [*ways, *filter(None, (planned.by_tokens(), planned.by_rows(), planned.by_prompts()))]


@dataclass(frozen=True)
class _Planned:
    """Makes the ways in which all cards work. fastest: seconds of a step of the fastest card alone. passes: evaluations
    in a step."""

    model: Model
    cards: Cards
    jobs: Sequence[Any]
    beside: Beside
    fastest: float
    passes: int

    @property
    def devices(self) -> list[str]:
        return [f"cuda:{number}" for number in range(len(self.cards.targets))]

    def jobs_at_once(self, alone: Sequence[Way]) -> Way:
        """The processes divide the RAM, so that each card may have to read more from disk than alone."""
        steps = {number: _alone(made) for number, made in enumerate(self._plans([(1.0, 1.0)] * len(self.devices)))}
        seconds = self.passes / sum(1 / step.seconds for step in steps.values())
        times = self.fastest / seconds
        refused = None
        if times < 1:
            refused = (
                f"{times:.2f} times as many as one card: the processes divide the RAM, so that they read "
                f"{sum(step.plan.disk_bytes for step in steps.values()) / 1e9:.1f} GB from the disk in a step."
            )
        name = f"{_COUNTED[len(steps)]} jobs at once"
        return Way(name, f"serve --devices {','.join(self.devices)}", seconds, times, steps, self.passes, refused)

    def by_tokens(self) -> Way | None:
        job, config, count = self.jobs[0], self.model.config, len(self.devices)
        try:
            whole = [made.compute_seconds for made in self._plans([(1.0, 1.0)] * count)]
            shares = tuple(round(share, 2) for share in shares_by_speed(whole))
            plans = self._plans([(share / sum(shares), 1.0) for share in shares])
        except BudgetTooSmall:
            return None
        given = "" if len(set(shares)) == 1 else f" --shares {','.join(f'{share:g}' for share in shares)}"
        sent = of_tokens(shares, config, job.batch, _tokens(job), job.itemsize)
        return self._together("one image, tokens divided", f"--split sp{given}", plans, sent)

    def by_rows(self) -> Way | None:
        job, config, count = self.jobs[0], self.model.config, len(self.devices)
        try:
            plans = self._plans([(1.0, 1 / count)] * count)
        except BudgetTooSmall:
            return None
        sent = of_rows(count, config, job.batch, _tokens(job), job.itemsize)
        return self._together("one image, rows divided", "--split tp", plans, sent)

    def by_prompts(self) -> Way | None:
        """The prompt on half of the cards and the negative prompt on the other half, each with the whole model."""
        job, config, (each, rest) = self.jobs[0], self.model.config, divmod(len(self.devices), self.passes)
        if self.passes == 1 or rest:
            return None
        try:
            plans = self._plans([(1 / each, 1.0)] * len(self.devices))
        except BudgetTooSmall:
            return None
        if each == 1:  # only the velocity is exchanged, once
            sent = _velocity_bytes(job), 1
            return self._together("one image, a prompt each", "--split cfg", plans, sent, 1)
        sent = of_tokens([1 / each] * each, config, job.batch, _tokens(job), job.itemsize)
        split = f"--split cfg{self.passes}sp{each}"
        return self._together("one image, prompts and tokens divided", split, plans, sent, 1)

    def _plans(self, parts: Sequence[tuple[float, float]]) -> list[Plan]:
        """Each card's plan for its share of tokens and rows. Processes that read from the disk divide its rate."""
        plans = self._plans_with(parts, 1)
        readers = sum(made.disk_bytes > 0 for made in plans)
        return self._plans_with(parts, readers) if readers > 1 else plans

    def _plans_with(self, parts: Sequence[tuple[float, float]], readers: int) -> list[Plan]:
        """readers: processes that divide the rate of the disk."""
        found = []
        for target, job, (tokens, rows) in zip(self.cards.targets, self.jobs, parts, strict=True):
            model = as_computed(self.model, target)
            workload = part_of(workload_for(model, target, job, self.beside), tokens, rows)
            machine = replace(target.machine, disk=target.machine.disk / readers)
            found.append(plan(workload, budget_of(target, len(parts)), machine))
        return found

    def _together(
        self, name: str, split: str, plans: Sequence[Plan], sent: tuple[float, int], evaluations: int | None = None
    ) -> Way:
        """evaluations: of each card in a step; None: all of them."""
        count = evaluations or self.passes
        exchange = Exchange(*sent, self.cards.exchange)
        steps = {number: step_of(made, exchange) for number, made in enumerate(plans)}
        slowest = max(steps.values(), key=lambda step: step.seconds)
        seconds = count * slowest.seconds
        times = self.fastest / seconds
        refused = None
        if times < WORTH:
            refused = (
                f"{times:.2f} times as fast as one card: of a step, {count * slowest.plan.compute_seconds:.2f} s are "
                f"work, {count * exchange.seconds:.2f} s the exchange of {count * sent[0] / 1e9:.1f} GB, and "
            )
            refused += (
                f"each process reads {count * slowest.plan.disk_bytes / 1e9:.1f} GB of weights from the same disk."
                if slowest.bound == DISK_BOUND
                else f"{count * slowest.plan.streamed_bytes / 1e9:.1f} GB of weights come over the same link."
            )
        command = f"--devices {'+'.join(self.devices)} {split}"
        return Way(name, command, seconds, times, steps, count, refused)


_ALL = {2: "Both"}
_COUNTED = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def _alone(made: Plan) -> Step:
    return Step(made, Exchange(0.0, 0, 1.0), made.seconds, made.bound)


def _tokens(job: Any) -> int:
    """Of one image: text, and patches of 16 x 16 pixels."""
    return int(job.text_tokens + -(-job.height // 16) * -(-job.width // 16))


def _velocity_bytes(job: Any) -> float:
    """Of the output of an evaluation, in float32."""
    return float(4 * 64 * job.batch * (_tokens(job) - job.text_tokens))


def advice(ways: Sequence[Way]) -> list[str]:
    """Advice for one image and for several images, as sentences."""
    alone = min((way for way in ways if len(way.steps) == 1), key=lambda way: way.seconds)
    jobs = next((way for way in ways if "jobs at once" in way.name), None)
    together = [way for way in ways if way.name.startswith("one image")]
    best = max(together, key=lambda way: way.times, default=None)
    sentences = []
    if best is None:
        sentences.append(
            f"One image: {alone.name} ({alone.command}). The cards cannot compute one image together here."
        )
    elif best.refused:
        everyone = _ALL.get(len(best.steps), "All")
        sentences.append(f"One image: {alone.name} ({alone.command}). {everyone} together would be no faster.")
    else:
        sentences.append(f"One image: {best.command} is {best.times:.2f} times as fast as one card.")
    if jobs is not None and not jobs.refused:
        sentences.append(f"Several images: `sluice {jobs.command}` makes {jobs.times:.2f} times as many as one card.")
    sentences += [f"Refused: {way.name}, {way.refused}" for way in ways if way.refused]
    return sentences


def table(ways: Sequence[Way], cards: Cards, steps: int) -> list[str]:
    """The ways as lines, and below each the memory and the transfers of every card."""
    width = max(len(way.name) for way in ways)
    lines = [f"  {'':<{width}}{'s/step':>8}{f'{steps} steps':>10}{'speed':>7}"]
    for way in ways:
        mark = "  refused" if way.refused else ""
        lines.append(f"  {way.name:<{width}}{way.seconds:>8.2f}{way.seconds * steps:>8.0f} s{way.times:>6.2f}x{mark}")
        for number, step in way.steps.items():
            target = cards.targets[number]
            peak = f"{format_size(step.plan.peak_bytes)} of {format_size(target.memory)}"
            moved = f"streams {way.evaluations * step.plan.streamed_bytes / 1e9:.1f} GB"
            leaves = way.evaluations * step.exchange.nbytes
            sent = (
                f", sends {leaves / 1e9:.1f} GB"
                if leaves >= 5e7
                else f", sends {leaves / 1e6:.1f} MB"
                if leaves
                else ""
            )
            lines.append(f"    cuda:{number} {target.label}: {peak}, {moved}{sent}; {step.bound} decides")
    return lines
