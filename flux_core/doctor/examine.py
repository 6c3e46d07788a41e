"""Everything `sluice doctor` looks at, in the order in which a person would."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from ..io.folders import Folders
from .finding import Finding
from .graphics import amd_card, graphics_findings, installed_pytorch, nvidia_cards
from .model_files import model_findings
from .service import editor_finding, port_finding
from .storage import disk_findings, pinning_finding, ram_finding, room_findings


def examine(folders: Folders, port: int | None) -> Iterator[Finding]:
    """One finding after another; some take a second. port: the one to look at, None while a server is using it."""
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    pytorch = installed_pytorch()
    yield from graphics_findings(nvidia_cards(), amd_card(), pytorch)
    yield ram_finding()
    if pinning := pinning_finding(pytorch is not None and pytorch.usable):
        yield pinning
    yield from model_findings(folders)
    if pytorch is not None:
        yield from disk_findings(folders)
    yield from room_findings([folders.output, folders.input])
    yield editor_finding()
    if port is not None:
        yield port_finding(port)
