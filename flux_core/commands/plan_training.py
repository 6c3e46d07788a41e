"""`sluice plan MODEL --train lora`: memory, seconds a step, hours, and the places of all data of a LoRA training.

Uses the same planner as the training itself. If a training does not fit, the error names what would: the largest rank
and size for this budget, the smallest budget for this rank.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from ..errors import BudgetTooSmall, InputError
from ..memory.budget import format_size
from ..memory.phases import Phase, too_large
from ..memory.plan import Plan, plan, smallest_budget
from ..memory.report import plan_record
from ..memory.workload import MiB, Workload
from ..training.lora.settings import OPTIMISERS, LoraSettings
from .plan_model import Model, folders_of, open_model
from .plan_page import memory_lines, phase_lines, residency_map, speed_lines
from .plan_step import budget_of, job_of, program_memory
from .plan_target import Target, target_of

if TYPE_CHECKING:
    from ..runtime.flux_needs import Job
    from .plan_phases import Encoders

STEPS = "training steps"
RESERVE = 1.5  # times what is predicted, before a card has been measured: element-wise work is not in the rates
PLACES = ("device", "ram", "disk")


@dataclass(frozen=True)
class Planned:
    """A plan, the place where block inputs are kept, and seconds a step with the transfers of these inputs."""

    plan: Plan
    place: str
    kept_bytes: int
    seconds: float


def add_arguments(parser: ArgumentParser) -> None:
    """The options that `sluice plan` has for trainings."""
    group = parser.add_argument_group("training")
    default = LoraSettings()
    group.add_argument("--train", choices=("lora",), help="plan the training of a LoRA instead of making images")
    group.add_argument(
        "--rank", type=int, default=default.rank, metavar="N", help="rank of the LoRA (default: %(default)s)"
    )
    group.add_argument(
        "--layers",
        default=default.layers,
        help="layers that get a LoRA, as in `sluice train lora` (default: %(default)s)",
    )
    group.add_argument("--optimiser", choices=OPTIMISERS, default=default.optimiser, help="(default: %(default)s)")


def run(args: Namespace) -> int:
    """Print the plan. Raises BudgetTooSmall, which names settings that fit."""
    model, target = open_model(args.model, folders_of(args)), target_of(args)
    if model.config.in_channels != model.config.out_channels:
        raise InputError(f"{model.name} takes more than images: LoRAs are trained on flux1-dev or flux1-schnell.")
    size = args.size if "x" in args.size.lower() else f"{args.size}x{args.size}"
    job = job_of(Namespace(size=size, batch=args.batch, prompt_tokens=args.prompt_tokens), target)
    settings = LoraSettings(
        rank=args.rank,
        layers=args.layers,
        steps=args.steps or LoraSettings.steps,
        optimiser=args.optimiser,
        batch=args.batch,
    )
    from .plan_phases import encoders_for

    encoders = encoders_for(model, folders_of(args), job.text_tokens)
    phases = phases_of(encoders, model, target, job, settings)
    if too_large(phases, target.memory):
        raise BudgetTooSmall(_refusal(encoders, model, target, job, settings, phases))
    made = fastest(model, target, job, settings)
    phases = [replace(phase, peak=made.plan.peak_bytes) if phase.name == STEPS else phase for phase in phases]
    if args.json:
        record = plan_record(made.plan) | {"card": target.label, "block_inputs": made.place}
        record["phases"] = [{"name": each.name, "least_bytes": each.least, "peak_bytes": each.peak} for each in phases]
        print(json.dumps(record | {"seconds_per_step": made.seconds, "hours": made.seconds * settings.steps / 3600}))
        return 0
    told = "unknown: their phases are not planned" if encoders is None else encoders.told
    print("\n".join([*page(made, target, job, settings), "", *phase_lines(phases), f"  encoders are {told}"]))
    return 0


def fastest(model: Model, target: Target, job: Job, settings: LoraSettings) -> Planned:
    """The fastest plan over the places for block inputs. Raises BudgetTooSmall if there is none for any."""
    found: list[Planned] = []
    refused: BudgetTooSmall | None = None
    for place in PLACES if not target.cpu else ("device", "disk"):
        workload, kept = workload_of(model, target, job, settings, place)
        try:
            made = plan(workload, budget_of(target, kept=kept if place == "ram" else 0), target.machine)
        except BudgetTooSmall as error:
            refused = refused or error
            continue
        way = {"device": 0.0, "ram": 2 * kept / (target.machine.link or 1), "disk": 2 * kept / target.machine.disk}
        found.append(Planned(made, place, kept, made.seconds + way[place]))
    if not found:
        assert refused is not None
        raise refused
    return min(found, key=lambda each: each.seconds)


def workload_of(model: Model, target: Target, job: Job, settings: LoraSettings, place: str) -> tuple[Workload, int]:
    """One step with everything that is on the device besides weights, and the bytes of block inputs."""
    from ..training.lora.needs import training_needs
    from ..training.lora.optimiser import bytes_a_number
    from ..training.lora.phases import row_count

    found = training_needs(model.config, job, settings, place)
    needs = found.needs
    decoded = [prod(shape) for name, shape in needs.matrices.items() if model.decoded(name)]
    fixed = {
        **program_memory(target),
        "small weights": needs.small * job.itemsize,
        "LoRA and moments": found.numbers * bytes_a_number(settings.optimiser, job.dtype),
        "activations": needs.run.peak,
        "workspace": max(128 * MiB, needs.run.peak // 20),
        "decoding": max(decoded, default=0) * job.itemsize,
        "modulation table": row_count(replace(settings, batch=job.batch)) * needs.row_bytes(job) // job.batch,
    }

    def nbytes(name: str) -> int:
        return model.nbytes(name, needs.matrices[name])

    return needs.workload(model.name, nbytes, model.decoded, job.itemsize, fixed), found.kept_bytes


def phases_of(encoders: Encoders | None, model: Model, target: Target, job: Job, settings: LoraSettings) -> list[Phase]:
    """All phases of the training, the peak of the steps not yet known."""
    from ..training.lora.needs import training_needs
    from ..training.lora.phases import row_count
    from .plan_phases import other_phases

    workload, _ = workload_of(model, target, job, settings, "disk" if target.cpu else "ram")
    steps = Phase(STEPS, smallest_budget(workload, target.machine), None)
    found = training_needs(model.config, job, settings, "ram")
    kept = workload.fixed["LoRA and moments"] + workload.fixed["decoding"]
    rows = row_count(replace(settings, batch=job.batch))
    others = other_phases(encoders, model, found.needs, target, job, numbers=found.numbers, kept=kept, rows=rows)
    return [*others[:-1], steps, others[-1]]


def _refusal(
    encoders: Encoders | None, model: Model, target: Target, job: Job, settings: LoraSettings, phases: Sequence[Phase]
) -> str:
    from ..training.lora.phases import refusal

    def fits(rank: int, size: int) -> bool:
        smaller = job if size == side else replace(job, width=size, height=size)
        made = phases_of(encoders, model, target, smaller, replace(settings, rank=rank))
        return not too_large(made, target.memory)

    side = max(job.width, job.height)
    option = "--ram" if target.cpu else "--vram"
    return refusal(phases, target.memory, option, settings.rank, side, fits)


def page(made: Planned, target: Target, job: Job, settings: LoraSettings) -> list[str]:
    """The plan for people, as lines."""
    size = f"{job.width}x{job.height}" + (f", {job.batch} at a time" if job.batch > 1 else "")
    where = {"device": "beside the weights", "ram": "in RAM", "disk": "on disk"}[made.place]
    hours = made.seconds * settings.steps / 3600
    return [
        f"{made.plan.workload.name} · LoRA of rank {settings.rank} ({settings.layers}) at {size} · {target.label}, "
        f"{format_size(target.memory)}",
        "",
        *residency_map(made.plan),
        "",
        f"  {made.seconds:.2f} s a step, forward and backward: {hours:.1f} hours for {settings.steps} steps",
        f"  up to {made.seconds * RESERVE:.2f} s until a card has been measured: work on single numbers is not counted",
        *speed_lines(made.plan)[1:],
        f"  block inputs wait {where} ({format_size(made.kept_bytes)} a step)",
        "",
        *memory_lines(made.plan, target),
    ]
