"""What `sluice serve` needs: the editor's package and a free port."""

from __future__ import annotations

import importlib.metadata
import re
import socket

from .finding import Finding

EDITOR = "comfyui-frontend-package"


def editor_finding() -> Finding:
    try:
        version = importlib.metadata.version(EDITOR)
    except importlib.metadata.PackageNotFoundError:
        return Finding("editor", "is not installed", "Install it with: pip install 'sluice[app]'")
    least, below = _window()
    if least and not least <= _numbers(version) < below:
        wanted = ">={}.{}.{}".format(*least) + ",<{}.{}".format(*below[:2])
        return Finding("editor", version, f"This Sluice was tested with others: pip install '{EDITOR}{wanted}'")
    return Finding("editor", version)


def _window() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The versions that our own packaging allows: (from, below); empty if we are not installed as a package."""
    try:
        requirements = importlib.metadata.requires("sluice") or []
    except importlib.metadata.PackageNotFoundError:
        return (), ()
    line = next((line for line in requirements if line.startswith(EDITOR)), "")
    least, below = re.search(r">=([\d.]+)", line), re.search(r"<([\d.]+)", line)
    return (_numbers(least[1]), _numbers(below[1])) if least and below else ((), ())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def port_finding(port: int) -> Finding:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            advice = f"Another program uses it (ComfyUI, or Sluice itself?): end it, or sluice serve --port {port + 1}"
            return Finding("port", f"{port} is in use", advice)
    return Finding("port", f"{port} is free")
