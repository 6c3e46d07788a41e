"""The graphics card, its driver, and whether the PyTorch that is installed can use them.

Facts are read first (`nvidia_cards`, `amd_card`, `installed_pytorch`) and judged afterwards by a pure function, so that
every machine can be tested. Which builds carry which cards: PyTorch's release notes (CUDA 12.8 builds left out compute
capability 5.0 to 7.0, CUDA 12.6 builds carry them; 12.0 came with CUDA 12.8) and NVIDIA's table of minor version
compatibility (every CUDA 12 runs on drivers from 525, CUDA 12.8 with Blackwell from 570).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .finding import Finding

AMD = "0x1002"  # PCI vendor
QUERY = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader,nounits"]
INDEX = "https://download.pytorch.org/whl/"
OLDEST_DRIVER, OLDEST_FOR_BLACKWELL = 525, 570


@dataclass(frozen=True)
class Card:
    """An NVIDIA card as its driver describes it. capability: (6, 1) for a GTX 1070; memory in MiB."""

    name: str
    capability: tuple[int, int]
    driver: str
    memory: int


@dataclass(frozen=True)
class PyTorch:
    """The build that is installed. cuda, hip: what it was made for, or None; architectures: "sm_86", ..."""

    version: str
    cuda: str | None
    hip: str | None
    usable: bool
    architectures: Sequence[str] = ()


def nvidia_cards() -> list[Card]:
    """As `nvidia-smi` lists them; empty without a driver."""
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=10, check=True).stdout
        return [_card(line) for line in answer.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _card(line: str) -> Card:
    name, capability, driver, memory = (word.strip() for word in line.rsplit(",", 3))
    major, minor = capability.split(".")
    return Card(name, (int(major), int(minor)), driver, int(memory))


def amd_card() -> bool:
    """Whether Linux lists a display device of AMD's."""
    vendors = Path("/sys/class/drm").glob("card*/device/vendor")
    return any(file.read_text().strip() == AMD for file in vendors)


def installed_pytorch() -> PyTorch | None:
    """None if it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    usable = torch.cuda.is_available()
    built = torch.cuda.get_arch_list() if usable else []
    return PyTorch(torch.__version__, torch.version.cuda, torch.version.hip, usable, built)


def wheel(cards: Sequence[Card], amd: bool = False) -> str:
    """The command that installs the PyTorch build for these cards."""
    if cards:
        oldest = min(card.capability for card in cards)
        build = "cu126" if oldest < (7, 5) else "cu128"
    else:
        build = "rocm6.4" if amd else "cpu"
    return f"pip install --force-reinstall torch --index-url {INDEX}{build}"


def graphics_findings(cards: Sequence[Card], amd: bool, pytorch: PyTorch | None) -> Iterator[Finding]:
    """What the facts mean."""
    for card in cards:
        yield _driver(card)
    if not cards:
        text = "an AMD card" if amd else "none that PyTorch's CUDA builds can use: models compute on the processor"
        yield Finding("graphics card", text)
    if pytorch is None:
        yield Finding("PyTorch", "is not installed", f"Install it with: {wheel(cards, amd)}", needed=True)
        return
    yield _pytorch(cards, amd, pytorch)


def _driver(card: Card) -> Finding:
    major, minor = card.capability
    about = f"{card.name}, {card.memory / 1024:.1f} GiB, compute capability {major}.{minor}, driver {card.driver}"
    number = int(card.driver.partition(".")[0] or 0)
    least = OLDEST_FOR_BLACKWELL if major >= 10 else OLDEST_DRIVER
    if number < least:
        return Finding(
            "graphics card", about, f"Update NVIDIA's driver: this card needs {least} or newer.", needed=True
        )
    if card.capability < (5, 0):
        return Finding("graphics card", about, "No build of PyTorch computes on this card any more; use the processor.")
    return Finding("graphics card", about)


def _pytorch(cards: Sequence[Card], amd: bool, pytorch: PyTorch) -> Finding:
    made_for = f"CUDA {pytorch.cuda}" if pytorch.cuda else f"ROCm {pytorch.hip}" if pytorch.hip else "the CPU alone"
    text = f"{pytorch.version}, built for {made_for}"
    able = [card for card in cards if card.capability >= (5, 0)]
    if able and not pytorch.cuda:
        return Finding("PyTorch", text, f"It cannot use the {able[0].name}. Install: {wheel(able)}", needed=True)
    if able and not pytorch.usable:
        return Finding(
            "PyTorch", text, "It finds no CUDA device: restart the machine, or update NVIDIA's driver.", True
        )
    for card in able:
        if pytorch.architectures and not _carries(pytorch.architectures, card.capability):
            return Finding(
                "PyTorch", text, f"It has no kernels for the {card.name}. Install: {wheel(able)}", needed=True
            )
    if amd and not cards and not pytorch.hip:
        return Finding("PyTorch", text, f"It cannot use the AMD card. On Linux install: {wheel((), amd=True)}")
    return Finding("PyTorch", text)


def _carries(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Kernels run on the same major version from their own minor version on; PTX (compute_*) on everything newer."""
    major, minor = capability
    for name in architectures:
        kind, _, digits = name.partition("_")
        digits = "".join(filter(str.isdigit, digits))
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == "compute" and built <= capability:
            return True
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return True
    return False
