"""`sluice plan MODEL`: predicts the memory and time that a model needs, before anything is downloaded.

MODEL is a file, or the name of a published one: flux1-dev, flux1-dev-fp8, flux1-dev-Q8_0, flux1-dev-Q4_K_S.gguf,
flux1-schnell-fp8.safetensors and so on. Of files only headers are read. A step is observed on a model without weights,
memory, as it is for every run (runtime/dry_run.py), and so torch is imported once it is clear what to plan for.
With `--train lora` a training is planned (plan_training.py).
"""

from __future__ import annotations

import json
import re
import subprocess
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.detect import detect, refuse
from ..checkpoint.files import open_weights
from ..checkpoint.stored import Stored
from ..errors import BudgetTooSmall, InputError, MissingFileError
from ..memory.budget import AUTO, OFF, add_budget_arguments, format_size, parse_size
from ..memory.cards import Card, find_card
from ..memory.plan import Plan, plan
from ..memory.report import plan_record
from ..memory.workload import Budget, GiB, Location, Machine, MiB, Workload
from ..models.controlnet_config import ControlNetConfig, controlnet_key
from ..models.flux_config import FluxConfig
from ..quant.encoding import multiplied_as_integers
from ..runtime.published import COMPARED, MULTIPLIED_AS_STORED, Published, int8_bytes, picture_size, published
from ..runtime.settings import COMPUTES, HALF_SUMS, INT8, SIXTEEN_BIT
from .plan_images import images, lines

if TYPE_CHECKING:
    from ..runtime.flux_needs import FluxNeeds, Job

CONTEXT = 450 * MiB  # of a process on a GPU before its first tensor
HEADROOM = 256 * MiB  # left to the driver and to other programs
PROGRAM = 400 * MiB  # of this program in RAM, PyTorch included
UNKNOWN = "rtx4060"  # the card to plan for where none is named and none is found
IMAGE_STEPS = 20  # of an image, where nothing else is said
STEPS = 20  # rows of the modulation table that are planned for
_CONTROLNET = re.compile(r"(?:controlnets\.([^.]+)-[0-9a-f]{8}\.)?(.+)")
BLOCK = 4096  # of a disk, for a CPU


@dataclass(frozen=True)
class Model:
    """The model to plan for: a file's transformer, or a published one."""

    name: str
    config: FluxConfig
    nbytes: Callable[[str, tuple[int, int]], int]  # stored bytes of a matrix, by name and shape
    decoded: Callable[[str], bool]  # whether a matrix is not multiplied as stored
    integers: Callable[[str], bool] = lambda name: False  # whether it is stored as 8-bit integers to be multiplied so

    def file_bytes(self, needs: FluxNeeds) -> int:
        """Bytes of all matrices."""
        return sum(self.nbytes(name, shape) for name, shape in needs.matrices.items())


@dataclass(frozen=True)
class ControlNetFile:
    """A ControlNet that runs before the transformer at every step. key: its name in the plan."""

    key: str
    config: ControlNetConfig
    tensors: Mapping[str, Stored]


@dataclass(frozen=True)
class Beside:
    """What comes beside the transformer: bytes of LoRAs, and ControlNets."""

    loras: int = 0
    controlnets: tuple[ControlNetFile, ...] = ()


@dataclass(frozen=True)
class Target:
    """The device to plan for. `cpu`: RAM is its memory. `guessed`: no card was named and none was found here."""

    label: str
    machine: Machine
    memory: int
    ram: int
    itemsize: int
    cpu: bool
    guessed: bool = False
    compute: str = AUTO  # a word of settings.COMPUTES


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="a file, or a published name like flux1-dev-fp8")
    parser.add_argument("--size", default="1024x1024", metavar="WxH", help="of the image (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time (default: %(default)s)")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE", help="count this LoRA (may be repeated)")
    parser.add_argument(
        "--controlnet", action="append", default=[], metavar="FILE", help="count this ControlNet (may be repeated)"
    )
    parser.add_argument(
        "--card",
        action="append",
        default=[],
        dest="cards",
        metavar="NAME",
        help="rtx4060, rtx3070, gtx1070, ... or cpu (default: the card of this machine); rtx4060@3.0x4 is one in that "
        "slot. Given several times: all ways to use these cards",
    )
    parser.add_argument(
        "--exchange", type=_rate, metavar="GB/s", help="between several cards, through the host's memory"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help=f"of an image (default: {IMAGE_STEPS}), or of a training"
    )
    parser.add_argument(
        "--compute",
        type=_compute,
        default=AUTO,
        metavar="WORD|TFLOPS",
        help=f"{', '.join(COMPUTES)}: as for sluice run; or a number: the rate of products, in place of the card's",
    )
    parser.add_argument("--link", type=_rate, metavar="GB/s", help="from RAM to the card")
    parser.add_argument("--disk", type=_rate, default=3.0, metavar="GB/s", help="of the disk (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    from .plan_training import add_arguments as add_training_arguments  # it builds on this file

    add_training_arguments(parser)
    add_budget_arguments(parser)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ArgumentTypeError(f"a rate is a number above 0, not {text!r}")
    return rate


def _compute(text: str) -> str | float:
    return text if text in COMPUTES else _rate(text)


def run(args: Namespace) -> int:
    if args.steps is not None and args.steps < 1:
        raise InputError("There is at least 1 step.")
    args.card = args.cards[0] if args.cards else None
    if args.train:
        if len(args.cards) > 1:
            raise InputError("A training runs on one card. Give one --card.")
        from .plan_training import run as plan_training

        return plan_training(args)
    if len(args.cards) > 1:
        from .plan_cards import run as plan_cards

        return plan_cards(args)
    model, target = open_model(args.model), target_of(args)
    job = job_of(args, target)
    beside = beside_of(args, model)
    made = plan_for(as_computed(model, target), target, job, beside)
    rows = compared(model, target, job, beside)
    ways = images(made.seconds, args.steps or IMAGE_STEPS)
    if args.json:
        told = {"card": target.label, "formats": [row.record() for row in rows], "images": [w.record() for w in ways]}
        print(json.dumps(plan_record(made) | told))
        return 0
    print("\n".join([*page(made, target, job, rows), "", *lines(ways)]))
    if not args.card and target.guessed:
        print(
            f"\nNo card of the table was found on this machine: this plan is for {target.label}. "
            "For another: --card NAME, or --card cpu."
        )
    return 0


def open_model(name: str) -> Model:
    """A file's or a published model. Raises MissingFileError or InputError for other names, FileFormatError."""
    if not Path(name).exists():
        known = published(name)
        if known is None:
            raise MissingFileError(
                f"There is no file {name}, and it is no published name like flux1-dev, flux1-dev-fp8, flux1-dev-Q8_0, "
                "flux1-dev-Q4_K_S or flux1-schnell-fp8."
            )
        return of_published(known)
    from ..convert.nunchaku_plain import open_plain

    file = open_plain(name)
    found = detect(file)
    if "flux" not in found.parts:
        refuse(file.path, found, "flux")
    tensors: dict[str, Stored] = dict(found.parts["flux"])
    return Model(
        file.path.name,
        FluxConfig.from_shapes({key: stored.shape for key, stored in tensors.items()}),
        lambda key, _: tensors[key].nbytes,
        lambda key: decodes(tensors[key]),
        lambda key: key in tensors and multiplied_as_integers(tensors[key].encoding, tensors[key].shape),
    )


def decodes(stored: Stored) -> bool:
    """Whether a matrix is not multiplied as it is stored."""
    return stored.format not in MULTIPLIED_AS_STORED or not stored.encoding.as_is


def as_computed(model: Model, target: Target) -> Model:
    """The model with its blocks quantised while it is loaded, if that is asked for."""
    if target.compute != INT8:
        return model

    def nbytes(name: str, shape: tuple[int, int]) -> int:
        return int8_bytes(shape) if in_blocks(name) and not model.integers(name) else model.nbytes(name, shape)

    return replace(model, nbytes=nbytes, integers=lambda name: model.integers(name) or in_blocks(name))


def in_blocks(name: str) -> bool:
    """Whether a matrix of this name multiplies all tokens of a step."""
    return name.startswith(("double_blocks.", "single_blocks.")) and ".lin." not in name


def of_published(known: Published) -> Model:
    integers = known.format == "INT8"
    return Model(
        known.name, known.config, lambda _, shape: known.nbytes(shape), lambda _: known.decoded, lambda _: integers
    )


def card_of_this_machine() -> Card | None:
    """The first NVIDIA card that the driver lists, with its real memory. None if there is none that the table has."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        name, _, mebibytes = answer.splitlines()[0].rpartition(",")
        card = find_card(name.strip().removeprefix("NVIDIA").removesuffix("Laptop GPU"))
        return replace(card, vram=int(mebibytes) * MiB / GiB)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError, InputError):
        return None


def lora_bytes(path: str) -> int:
    """Bytes of a LoRA on the device, with two bytes per number. Raises FileFormatError for other files."""
    file = open_weights(path)
    found = detect(file)
    if found.kind != "lora":
        refuse(file.path, found, "lora")
    return sum(2 * prod(entry.shape) for entry in file.entries.values())


def open_controlnet(path: str) -> ControlNetFile:
    """Raises MissingFileError, and FileFormatError for a file that is none."""
    file = open_weights(path)
    found = detect(file)
    if "controlnet" not in found.parts:
        refuse(file.path, found, "controlnet")
    tensors = found.parts["controlnet"]
    config = ControlNetConfig.from_shapes({name: stored.shape for name, stored in tensors.items()})
    return ControlNetFile(controlnet_key(file.path), config, tensors)


def beside_of(args: Namespace, model: Model) -> Beside:
    """The LoRAs and ControlNets of the command line. Raises InputError for a ControlNet of another width."""
    beside = Beside(sum(lora_bytes(path) for path in args.lora), tuple(map(open_controlnet, args.controlnet)))
    for net in beside.controlnets:
        if net.config.body.hidden != model.config.hidden:
            raise InputError(f"{net.key} was made for a transformer of another width than {model.name}.")
    return beside


def job_of(args: Namespace, target: Target) -> Job:
    width, height = picture_size(args.size)
    if args.batch < 1:
        raise InputError("The batch is at least 1.")
    from ..runtime.flux_needs import Job

    return Job(height, width, args.batch, itemsize=target.itemsize)


def target_of(args: Namespace) -> Target:
    disk, ram = args.disk * 1e9, 16 * GiB if args.ram == AUTO else parse_size(args.ram)
    rate, word = (None, args.compute) if isinstance(args.compute, str) else (args.compute, AUTO)
    if (args.card or "").lower() == "cpu":
        compute = (rate or 0.5) * 1e12
        machine = Machine(compute, compute / 2, 40e9, disk, alignment=BLOCK)
        return Target(f"CPU with {compute / 1e12:g} TFLOP/s", machine, ram, ram, 2, True, compute=word)
    found = find_card(args.card) if args.card else card_of_this_machine()
    card = found or find_card(UNKNOWN)
    machine = card.machine(disk)
    if rate:
        machine = replace(machine, gemm=rate * 1e12, attention=rate * 0.7e12, integers=None)
    if word == HALF_SUMS:
        machine = replace(machine, gemm=card.half_sums * 1e12, integers=None)
    if args.link:
        machine = replace(machine, link=args.link * 1e9)
    memory = int(card.vram * GiB) if args.vram in (AUTO, OFF) else parse_size(args.vram)
    return Target(card.label, machine, memory, ram, card.itemsize, False, found is None, word)


def plan_for(model: Model, target: Target, job: Job, beside: Beside) -> Plan:
    """Raises BudgetTooSmall."""
    return plan(workload_for(model, target, job, beside), budget_of(target), target.machine)


def budget_of(target: Target, processes: int = 1) -> Budget:
    """What one of so many processes may use; they share the RAM."""
    ram = target.ram // processes
    room = max(0, ram - PROGRAM)
    pinned = min(room, max(0, target.ram - max(4 * GiB, target.ram // 4)) // processes)
    return Budget(target.memory, 0 if target.cpu else room, 0 if target.cpu else pinned)


def workload_for(model: Model, target: Target, job: Job, beside: Beside) -> Workload:
    """One step, with all that must be on the device."""
    from ..runtime.flux_needs import controlnet_tensors, flux_needs

    needs = flux_needs(model.config, job, tuple((net.key, net.config) for net in beside.controlnets))
    others = controlnet_tensors({net.key: net.tensors for net in beside.controlnets})

    def is_decoded(name: str) -> bool:
        return decodes(others[name]) if name in others else model.decoded(name)

    def in_integers(name: str) -> bool:
        if name in others or name not in needs.streamed or target.compute in (SIXTEEN_BIT, HALF_SUMS):
            return False
        return model.integers(name) and (target.compute == INT8 or target.machine.integers is not None)

    decoded = [prod(shape) for name, shape in needs.matrices.items() if is_decoded(name) and not in_integers(name)]
    products = {use.name: use.products for use in needs.run.uses}
    codes = [int(products[name] / (2 * needs.matrices[name][0])) for name in needs.streamed if in_integers(name)]
    fixed = {
        "program" if target.cpu else "context and driver": PROGRAM if target.cpu else CONTEXT + HEADROOM,
        "small weights": needs.small * job.itemsize,
        "activations": needs.run.peak,
        "workspace": max(128 * MiB, needs.run.peak // 20),
        "inputs as integers": max(codes, default=0),
        "decoding": max(decoded, default=0) * job.itemsize,
        "modulation table": STEPS * needs.row_bytes(job),
        "LoRA": beside.loras,
    }

    def nbytes(name: str) -> int:
        return others[name].nbytes if name in others else model.nbytes(name, needs.matrices[name])

    return needs.workload(model.name, nbytes, is_decoded, job.itemsize, fixed, in_integers)


@dataclass(frozen=True)
class Row:
    """One published format on this card. Without a plan it does not fit."""

    name: str
    file_bytes: int
    plan: Plan | None

    def record(self) -> dict[str, object]:
        made = self.plan
        return {
            "name": self.name, "file_bytes": self.file_bytes, "fits": made is not None,
            **({} if made is None else {
                "seconds_per_step": made.seconds, "bound": made.bound, "peak_bytes": made.peak_bytes,
                "streamed_bytes_per_step": made.streamed_bytes, "host_bytes": made.host_bytes,
            }),
        }  # fmt: skip


def compared(model: Model, target: Target, job: Job, beside: Beside) -> list[Row]:
    """The published formats of the same model."""
    from ..runtime.flux_needs import flux_needs

    variant = "schnell" if not model.config.guidance else "dev"
    rows = []
    for label in COMPARED:
        known = published(f"flux1-{variant}-{label}")
        assert known is not None
        other = of_published(known)
        size = other.file_bytes(flux_needs(other.config, job))
        fitting = tuple(net for net in beside.controlnets if net.config.body.hidden == other.config.hidden)
        try:
            rows.append(Row(other.name, size, plan_for(other, target, job, replace(beside, controlnets=fitting))))
        except BudgetTooSmall:
            rows.append(Row(other.name, size, None))
    return rows


def page(made: Plan, target: Target, job: Job, rows: Sequence[Row]) -> list[str]:
    """The output for people, as lines."""
    size = f"{job.width}x{job.height}" + (f", {job.batch} at a time" if job.batch > 1 else "")
    kind = "RAM" if target.cpu else "memory"
    title = f"{made.workload.name} · {size} · {target.label}, {format_size(target.memory)} of {kind}"
    return [
        title,
        "",
        *residency_map(made),
        "",
        *speed(made),
        "",
        *memory(made, target),
        *(["", *_formats(rows)] if rows else []),
    ]


def residency_map(made: Plan) -> list[str]:
    """One letter per group, in the model's rows."""
    rows: dict[str, str] = {}
    last: dict[str, str] = {}
    for group, location in zip(made.groups, made.locations, strict=True):
        net, own = _CONTROLNET.match(made.workload.weights[group.weights[0]].name).groups()  # type: ignore[union-attr]
        family, number, *rest = own.split(".")
        label = {"double_blocks": f"double {rest[0][:3]}", "single_blocks": "single"}.get(family, family)
        label = f"{net[:24]} {label}" if net else label
        letter = location.value
        if last.get(label) == number:  # a divided group is shown by its streamed part
            letter = letter if location is not Location.DEVICE else rows[label][-1]
            rows[label] = rows[label][:-1]
        rows[label], last[label] = rows.get(label, "") + letter, number
    width = max(map(len, rows))
    named = {
        Location.DEVICE: "stays",
        Location.PINNED: "streams from pinned RAM",
        Location.PAGEABLE: "streams from RAM",
        Location.DISK: "from disk",
    }
    legend = " · ".join(f"{where.value} {text}" for where, text in named.items() if where in made.locations)
    return [*(f"  {label:<{width}}  {row}" for label, row in rows.items()), f"  {'':<{width}}  {legend}"]


def speed(made: Plan) -> list[str]:
    link = made.machine.link
    crossing = f", link {made.streamed_bytes / link:.2f} s" if link else ""
    disk = made.disk_bytes / made.machine.disk
    return [
        f"  {made.seconds:.2f} s a step, bound by {made.bound} "
        f"(compute {made.compute_seconds:.2f} s{crossing}, disk {disk:.2f} s)",
        f"  {format_size(made.resident_bytes)} stay, {format_size(made.streamed_bytes)} stream each step"
        + (f" through {made.slots} slots of {format_size(made.slot_bytes)}" if made.slots else ""),
    ]


def memory(made: Plan, target: Target) -> list[str]:
    parts = {"resident weights": made.weight_bytes - made.ring_bytes, "ring": made.ring_bytes, **made.workload.fixed}
    lines = [f"  {name:<20}{format_size(size):>12}" for name, size in parts.items() if size]
    total = f"  {'peak':<20}{format_size(made.peak_bytes):>12}  of {format_size(target.memory)}"
    host = [] if target.cpu else [f"  {'RAM for streaming':<20}{format_size(made.host_bytes):>12}"]
    return [*lines, total, *host]


def _formats(rows: Sequence[Row]) -> list[str]:
    lines = [f"  {'the same, published as':<24}{'file':>10}{'streams':>11}{'RAM':>11}{'s/step':>9}  bound"]
    for row in rows:
        made = row.plan
        if made is None:
            lines.append(f"  {row.name:<24}{row.file_bytes / GiB:>6.1f} GiB   does not fit")
        else:
            streams, ram = f"{made.streamed_bytes / GiB:.1f} GiB", f"{made.host_bytes / GiB:.1f} GiB"
            head = f"  {row.name:<24}{row.file_bytes / GiB:>6.1f} GiB"
            lines.append(f"{head}{streams:>11}{ram:>11}{made.seconds:>9.2f}  {made.bound}")
    return lines
