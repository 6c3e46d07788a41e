"""Memory budgets as people write them: sizes, "auto" and "off".

8G  7.5G  800M  12GiB   sizes in powers of 1024       auto  what is free      off  no memory management
8   the same as 8G      8589934592  bytes
"""

from __future__ import annotations

import re
from argparse import ArgumentParser
from dataclasses import dataclass

from ..errors import InputError
from .workload import GiB, MiB

AUTO, OFF = "auto", "off"
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """Bytes of a size like "8G". A number alone means GiB below 1024, else bytes. Raises InputError."""
    match = re.fullmatch(r"(\d+(?:[.,]\d+)?)\s*(?:([KMGT])(?:I?B)?|(B))?", text.strip().upper())
    if match:
        number = float(match[1].replace(",", "."))
        unit = match[2] or match[3] or ("G" if number < 1024 else "B")
        if match[2] or match[3] or not 1024 <= number < MiB:
            return int(number * _UNITS[unit])
    raise InputError(f"{text!r} is not a size. Write 8G, 7.5G or 800M, for example.")


def format_size(nbytes: float) -> str:
    return f"{nbytes / GiB:.2f} GiB" if abs(nbytes) >= GiB else f"{nbytes / MiB:.0f} MiB"


def format_least(nbytes: int) -> str:
    """A size that suffices for `nbytes`: rounded up, for a person to type. A budget of it holds them."""
    return f"{-(-nbytes * 100 // GiB) / 100:.2f} GiB" if nbytes >= GiB else f"{-(-nbytes // MiB)} MiB"


def format_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


@dataclass(frozen=True)
class Allowed:
    """The budgets of device memory and of RAM in bytes. None: as much as is free. `managed` False: no budget."""

    vram: int | None = None
    ram: int | None = None
    managed: bool = True

    @classmethod
    def parse(cls, vram: str = AUTO, ram: str = AUTO) -> Allowed:
        """Parse the texts of a command line or a widget. Raises InputError."""
        words = [(word or AUTO).strip() for word in (vram, ram)]
        if words[1].lower() == OFF:
            raise InputError("--ram takes a size or auto; --vram off switches memory management off.")
        device, host = (None if word.lower() in (AUTO, OFF) else parse_size(word) for word in words)
        return cls(device, host, words[0].lower() != OFF)

    @property
    def words(self) -> dict[str, str]:
        """The budgets as texts that `parse` reads."""
        vram = _word(self.vram) if self.managed else OFF
        return {"vram": vram, "ram": _word(self.ram)}

    @property
    def explicit(self) -> bool:
        return self.vram is not None or self.ram is not None


def _word(nbytes: int | None) -> str:
    if nbytes is None:
        return AUTO
    texts = [f"{nbytes / size:.6g}{unit}" for unit, size in (("G", GiB), ("M", MiB)) if nbytes >= size]
    return next((text for text in texts if parse_size(text) == nbytes), f"{nbytes}B")


def add_budget_arguments(parser: ArgumentParser) -> None:
    """Add --vram and --ram, which are the same for every command."""
    group = parser.add_argument_group("memory")
    group.add_argument("--vram", metavar="SIZE|auto|off", default=AUTO, help="GPU memory budget, e.g. 8G or 8")
    group.add_argument("--ram", metavar="SIZE|auto", default=AUTO, help="RAM budget, e.g. 16G")
