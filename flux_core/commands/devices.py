"""`--devices`: a worker for each device of a server, each with a budget of its own, or one worker with several devices.

    cuda:0,cuda:1   one worker for each card       auto   one for each card that PyTorch sees, or one for the CPU
    cpu:0,cpu:1     as many workers on the CPU, which share its threads
    cuda:0+cuda:1   one worker whose devices compute each image together

`--vram 6G,8G` gives each worker its own limit, in the same order, or each of the devices that are joined by +; one size
holds for each of them. `--ram 8G,16G` too, but one size of RAM is the machine's and is divided among the processes, and
so is the RAM of a worker whose devices are joined. Imports no torch.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..memory.budget import AUTO, OFF, Allowed
from ..parallel.split import Split, parsed_shares

_NAME = re.compile(r"(cpu|cuda)(?::(\d{1,3}))?|[a-z]{1,20}(?::\d{1,3})?")
_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def add_devices_argument(parser: argparse.ArgumentParser) -> None:
    """--devices, and how devices that are joined by + share an image."""
    parser.add_argument(
        "--devices",
        metavar="LIST|auto",
        help="start one worker for each of these devices, e.g. cuda:0,cuda:1; --vram and --ram accept a list, too. "
        "Devices joined by +, e.g. cuda:0+cuda:1, compute each image together",
    )
    add_split_arguments(parser)


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """How devices that are joined by + share an image."""
    parser.add_argument(
        "--split",
        default="auto",
        metavar="WAY",
        help="how devices joined by + share an image: sp divides its tokens, tp divides the matrices, sp4tp2 both; "
        "cfg gives each device another condition, such as the negative prompt; "
        "sp-gather and sp-ring are sp with other ways of exchanging keys and values (default: sp)",
    )
    parser.add_argument(
        "--mesh",
        metavar="AxB",
        help="size of the device mesh, with --split as a tuple for it: --mesh 2x4 --split '((2, 0), (4, 1))'",
    )
    parser.add_argument(
        "--shares", metavar="LIST", help="relative speeds of the devices that divide the tokens, e.g. 2,1"
    )


def workers_of(args: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of each worker -> its options (see flux_core/worker/main.py). Raises InputError."""
    _check_split(args)
    if args.devices is None:
        return {args.device or AUTO: {**common, **Allowed.parse(args.vram, args.ram).words}}
    if args.device is not None:
        raise InputError("--device names one device and --devices several; give one of the two.")
    names = device_names(args.devices, count_gpus)
    limits = budgets(names, args.vram, args.ram)
    threads = _threads(names, os.cpu_count() or 1)
    found = {}
    for name in names:
        first, *others = ({**limits[one], **threads[one], "device": _device(one)} for one in name.split("+"))
        found[name] = {**common, **first}
        if others:
            found[name]["team"] = _team(name, others, common, args)
    return found


def _check_split(args: argparse.Namespace) -> None:
    """Raise InputError for options about an image on several devices where no devices are joined."""
    given = [("--split", getattr(args, "split", AUTO) != AUTO), ("--mesh", args.mesh), ("--shares", args.shares)]
    option = next((name for name, value in given if value), None)
    if option and "+" not in (args.devices or ""):
        raise InputError(
            f"{option} says how devices joined by + share an image, and none are joined. Write for example "
            "--devices cuda:0+cuda:1."
        )


def _team(
    name: str, others: list[dict[str, Any]], common: Mapping[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """The further devices of a worker: see `Team.parse`."""
    split = Split.parse(args.split, len(others) + 1, args.mesh)
    numbers = {key: common.get(key) for key in ("dtype", "compute")}
    if args.shares is not None and split.sp == 1:
        raise InputError(
            f"--shares is for devices that divide the tokens, and with --split {split.words} none do. Leave it out, or "
            "use --split sp."
        )
    shares = parsed_shares(args.shares, split.sp)
    members = [{**numbers, **other} for other in others]
    return {"names": name.split("+"), "members": members, "split": vars(split), "shares": shares}


def count_gpus() -> int:
    """The number of GPUs that PyTorch finds, read in a process of its own."""
    asked = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True)
    return int(asked.stdout) if asked.returncode == 0 and asked.stdout.strip().isdecimal() else 0


def device_names(text: str, count: Any = count_gpus) -> tuple[str, ...]:
    """The devices that a list names, each once. count: returns the number of GPUs, for "auto". Raises InputError."""
    if text.strip().lower() == AUTO:
        return tuple(f"cuda:{number}" for number in range(count())) or ("cpu",)
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if not all(_NAME.fullmatch(one) for one in name.split("+")):
            raise InputError(f"{name!r} is no device. Write a list like cuda:0,cuda:1 or cuda:0+cuda:1, or auto.")
    plain = ["+".join("cuda:0" if one == "cuda" else one for one in name.split("+")) for name in names]
    every = ["cpu:0" if one == "cpu" else one for name in plain for one in name.split("+")]
    twice = next((one for one in every if every.count(one) > 1), None)
    if twice:
        raise InputError(f"The device {twice} is named twice. A worker has a device to itself.")
    return tuple(plain)


def budgets(names: Sequence[str], vram: str, ram: str) -> dict[str, dict[str, str]]:
    """Name of a device -> {"vram", "ram"} of its process. Raises InputError.

    Sizes of a list are those of workers, whose processes divide the RAM, or those of devices.
    """
    devices = [one for name in names for one in name.split("+")]
    sizes = ram.count(",") + 1
    dividing = [
        len(devices) if sizes == 1 else name.count("+") + 1 if sizes == len(names) else 1
        for name in names
        for _ in name.split("+")
    ]
    limits = zip(devices, _each(names, "--vram", vram), _each(names, "--ram", ram), dividing, strict=True)
    found = {}
    for device, card, memory, processes in limits:
        one = Allowed.parse(card, memory)
        found[device] = Allowed(one.vram, one.ram and one.ram // processes, one.managed).words
    return found


def _each(names: Sequence[str], option: str, text: str | None) -> list[str]:
    """The size of each device, as written."""
    words, counts = (text or AUTO).split(","), [name.count("+") + 1 for name in names]
    if len(words) == 1:
        return words * sum(counts)
    if len(words) not in (len(names), sum(counts)):
        raise InputError(
            f"{option} {text} gives {len(words)} sizes for {sum(counts)} device{'s' if sum(counts) > 1 else ''} "
            f"({', '.join(names)}). Give one size, or one for each."
        )
    if OFF in words:
        raise InputError(f"{option} takes off for all devices or for none.")
    if len(words) == sum(counts):
        return words
    return [word for word, count in zip(words, counts, strict=True) for _ in range(count)]


def _device(name: str) -> str:
    """The device for a worker's options: the CPU is one device, even if several workers share it."""
    kind = name.partition(":")[0]
    return name if kind == "cuda" else kind


def _threads(names: Sequence[str], cores: int) -> dict[str, dict[str, int]]:
    """Device -> the threads of its process, if several processes share the processor."""
    every = [one for name in names for one in name.split("+")]
    on_cpu = sum(name.startswith("cpu") for name in every)
    share = {"threads": max(1, cores // on_cpu)} if on_cpu > 1 else {}
    return {name: share if name.startswith("cpu") else {} for name in every}
