"""`--devices cuda:0,cuda:1`: several workers of one server, each with a device and a budget of its own.

    cuda:0,cuda:1   one worker for each card       auto   one for each card that PyTorch sees, or one for the CPU
    cpu:0,cpu:1     as many workers on the CPU, which share its threads

`--vram 6G,8G` gives each device its own limit, in the same order; one size holds for each of them. `--ram 8G,16G` too,
but one size of RAM is the machine's and is divided among the workers. Imports no torch.
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

_NAME = re.compile(r"(cpu|cuda)(?::(\d{1,3}))?|[a-z]{1,20}(?::\d{1,3})?")
_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def add_devices_argument(parser: argparse.ArgumentParser) -> None:
    """--devices."""
    parser.add_argument(
        "--devices",
        metavar="LIST|auto",
        help="one worker for each of these devices, e.g. cuda:0,cuda:1; --vram and --ram take a list then as well",
    )


def workers_of(args: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of each worker -> its options (see flux_core/worker/main.py). Raises InputError."""
    if args.devices is None:
        return {args.device or AUTO: {**common, **Allowed.parse(args.vram, args.ram).words}}
    if args.device is not None:
        raise InputError("--device names one device and --devices several; give one of the two.")
    names = device_names(args.devices, count_gpus)
    limits = budgets(names, args.vram, args.ram)
    threads = _threads(names, os.cpu_count() or 1)
    return {name: {**common, **limits[name], "device": _device(name), **more} for name, more in threads.items()}


def count_gpus() -> int:
    """How many GPUs PyTorch sees, asked in a process of its own."""
    asked = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True)
    return int(asked.stdout) if asked.returncode == 0 and asked.stdout.strip().isdecimal() else 0


def device_names(text: str, count: Any = count_gpus) -> tuple[str, ...]:
    """The devices that a list names, each once. count: how many GPUs there are, asked for "auto". Raises InputError."""
    if text.strip().lower() == AUTO:
        return tuple(f"cuda:{number}" for number in range(count())) or ("cpu",)
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if "+" in name:
            raise InputError(
                f"{name!r} joins devices for one image, which a worker cannot do. Separate them by commas."
            )
        if not _NAME.fullmatch(name):
            raise InputError(f"{name!r} is no device. Write a list like cuda:0,cuda:1 or cpu:0,cpu:1, or auto.")
    plain = ["cuda:0" if name == "cuda" else name for name in names]
    twice = next((name for name in plain if plain.count(name) > 1), None)
    if twice:
        raise InputError(f"The device {twice} is named twice. A worker has a device to itself.")
    return tuple(plain)


def budgets(names: Sequence[str], vram: str, ram: str) -> dict[str, dict[str, str]]:
    """Device -> {"vram", "ram"} as a worker takes them. Raises InputError."""
    limits = list(zip(_each(names, "--vram", vram), _each(names, "--ram", ram), strict=True))
    allowed = [Allowed.parse(*words) for words in limits]
    if "," not in ram and len(names) > 1 and allowed[0].ram is not None:
        allowed = [Allowed(one.vram, one.ram and one.ram // len(names), one.managed) for one in allowed]
    return {name: one.words for name, one in zip(names, allowed, strict=True)}


def _each(names: Sequence[str], option: str, text: str | None) -> list[str]:
    words = (text or AUTO).split(",")
    if len(words) == 1:
        return words * len(names)
    if len(words) != len(names):
        raise InputError(
            f"{option} {text} gives {len(words)} sizes for {len(names)} device{'s' if len(names) > 1 else ''} "
            f"({', '.join(names)}). Give one size, or one for each."
        )
    if OFF in words:
        raise InputError(f"{option} takes off for all devices or for none.")
    return words


def _device(name: str) -> str:
    """What a worker is told: the CPU is one device, however many workers share it."""
    kind = name.partition(":")[0]
    return name if kind == "cuda" else kind


def _threads(names: Sequence[str], cores: int) -> dict[str, dict[str, int]]:
    """Device -> the threads that a CPU worker computes with, where several share the processor."""
    on_cpu = sum(name.startswith("cpu") for name in names)
    share = {"threads": max(1, cores // on_cpu)} if on_cpu > 1 else {}
    return {name: share if name.startswith("cpu") else {} for name in names}
