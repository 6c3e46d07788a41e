"""The places of files that other programs on this machine have: ComfyUI, the Hugging Face cache, Python packages.

Only searches for folders: nothing is imported, opened or downloaded.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

# ComfyUI's own folder: below a person's home, in usual places, and where its desktop edition lies.
_BELOW_HOME = ("ComfyUI", "comfy/ComfyUI", "Documents/ComfyUI", "ComfyUI_windows_portable/ComfyUI")
_ABSOLUTE = (
    "/opt/ComfyUI",
    "/workspace/ComfyUI",
    "C:/ComfyUI",
    "C:/ComfyUI_windows_portable/ComfyUI",
    "/Applications/ComfyUI.app/Contents/Resources/ComfyUI",
)
_DESKTOP = "Programs/@comfyorgcomfyui-electron/resources/ComfyUI"


def comfyui_installations() -> Iterator[Path]:
    """Folders that hold a ComfyUI: the one named by COMFYUI_PATH first."""
    home, programs = Path.home(), os.environ.get("LOCALAPPDATA")
    places = [Path(os.environ["COMFYUI_PATH"])] if os.environ.get("COMFYUI_PATH") else []
    places += [Path.cwd() / "ComfyUI", Path.cwd().parent / "ComfyUI", *(home / below for below in _BELOW_HOME)]
    places += [Path(place) for place in _ABSOLUTE] + ([Path(programs) / _DESKTOP] if programs else [])
    yield from (place for place in dict.fromkeys(places) if (place / "comfy").is_dir())


def hugging_face_snapshots(*words: str) -> Iterator[Path]:
    """Downloaded repositories of the Hugging Face cache whose names contain one of these words, newest first."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    if not hub.is_dir():
        return
    for repository in sorted(hub.glob("models--*")):
        if any(word in repository.name.lower() for word in words):
            snapshots = [place for place in repository.glob("snapshots/*") if place.is_dir()]
            yield from sorted(snapshots, key=lambda place: -place.stat().st_mtime_ns)


def package_folder(name: str) -> Path | None:
    """The folder of a Python package, without importing it."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) if places else None
