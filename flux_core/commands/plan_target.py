"""The device that `sluice plan` plans for: a card of the table, the card of this machine, or a CPU."""

from __future__ import annotations

import subprocess
from argparse import Namespace
from dataclasses import dataclass, replace

from ..errors import InputError
from ..memory.budget import AUTO, OFF, parse_size
from ..memory.cards import Card, find_card
from ..memory.workload import GiB, Machine, MiB
from ..runtime.settings import HALF_SUMS

UNKNOWN = "rtx4060"  # the card to plan for if none is named and none is found
BLOCK = 4096  # of a disk, for a CPU


@dataclass(frozen=True)
class Target:
    """The device to plan for. `cpu`: RAM is its memory. `guessed`: no card was named and none was found here.

    card: of the table, if its rates are used; None if the command line gave the rates.
    """

    label: str
    machine: Machine
    memory: int
    ram: int
    itemsize: int
    cpu: bool
    guessed: bool = False
    compute: str = AUTO  # a word of settings.COMPUTES
    card: Card | None = None
    measured: bool = False  # whether the rates were measured on this machine

    def basis(self, integers: bool) -> list[str]:
        """What the rates rest on. integers: whether a step has products of integers."""
        if self.measured:
            return ["rates measured on this processor"]
        if self.card is None:
            return ["an assumed processor; --compute sets its rate"] if self.cpu else ["the rates of the command line"]
        return self.card.basis(integers, self.compute == HALF_SUMS)


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
    return Target(card.label, machine, memory, ram, card.itemsize, False, found is None, word, None if rate else card)
