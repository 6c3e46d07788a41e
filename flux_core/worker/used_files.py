"""Which model files and input images an image was made with, and whether the ones here are the same.

A saved image contains the list as a separate text, "sluice_files", which ComfyUI does not read:

    [{"category": "diffusion_models", "name": "flux1-dev.safetensors", "bytes": 23802932552, "sha256": "..."}, ...]

sha256 is left out while a large file has not been hashed yet. An image that several devices computed together says so
in "sluice_devices": "cpu:0 and cpu:1 as sp2 ulysses". Its numbers differ in the last digits from one device's. Options
of the program that were chosen although they change images are in "sluice_settings": "--cache fast --attention sage";
what a node chose is in its workflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..graph.interface import Classes
from ..io.exif import FILES_FIELD
from ..io.file_hashes import FileHashes
from ..io.folders import TINY_INPUT, Folders, annotated, confined
from ..memory.budget import AUTO
from ..runtime.settings import PYTORCH
from .required_models import wanted_files

SAME, OTHER, MISSING, UNKNOWN = "same", "other", "missing", "unknown"
DEVICES_FIELD, SETTINGS_FIELD = "sluice_devices", "sluice_settings"
EXACT = {"cache": "off", "compute": AUTO, "attention": PYTORCH}  # the defaults of options that change images
IMAGES = "input"  # the category of input images
_IMAGE_NODES = ("LoadImage", "LoadImageMask", "LoadImageOutput")


@dataclass(frozen=True)
class Compared:
    """A file with which an image was made, compared with the file here. `state`: SAME, OTHER, MISSING or UNKNOWN."""

    category: str
    name: str
    state: str
    text: str
    here: str = ""  # the name under which a missing file is here


def used_paths(prompt: Mapping[str, Any], classes: Classes, folders: Folders) -> dict[tuple[str, str], Path]:
    """(category, name) -> file, for the model files and input images of a prompt that exist here."""
    found = {
        (wanted.category, wanted.name): wanted.path
        for wanted in wanted_files(prompt, classes, folders)
        if wanted.path is not None
    }
    for node in prompt.values():
        name = node.get("inputs", {}).get("image")
        if node.get("class_type", "").removeprefix("Sluice") in _IMAGE_NODES and isinstance(name, str):
            path = _image(name, folders)
            if path is not None:
                found[IMAGES, name] = path
    return found


def used_files(paths: Mapping[tuple[str, str], Path], hashes: FileHashes) -> list[dict[str, Any]]:
    """The list for a saved image."""
    entries = []
    for (category, name), path in paths.items():
        if path.is_file():
            known = hashes.known(path)
            entries.append(
                {
                    "category": category,
                    "name": name,
                    "bytes": path.stat().st_size,
                    **({"sha256": known} if known else {}),
                }
            )
    return entries


def chosen_settings(options: Mapping[str, Any], exact: bool) -> str:
    """The options that change images and were chosen, as on a command line. exact: whether they have no effect."""
    chosen = {} if exact else {name: options.get(name) or usual for name, usual in EXACT.items()}
    return " ".join(f"--{name} {word}" for name, word in chosen.items() if word != EXACT[name])


def with_files(
    extra_data: Mapping[str, Any], files: list[dict[str, Any]], devices: str | None = None, settings: str = ""
) -> dict[str, Any]:
    """The extra data of a job, with the list, the devices if there are several, and the settings, among what its images
    carry.
    """
    carried = extra_data.get("extra_pnginfo")
    named = {FILES_FIELD: files, DEVICES_FIELD: devices, SETTINGS_FIELD: settings}
    more = {name: value for name, value in named.items() if value}
    if not more or not isinstance(carried, (dict, type(None))):
        return dict(extra_data)
    return {**extra_data, "extra_pnginfo": {**(carried or {}), **more}}


def compared(recorded: Any, folders: Folders, hashes: FileHashes) -> list[Compared]:
    """Each recorded file compared with the one of its name here. Anything that is not such a list gives an empty
    result.
    """
    if not isinstance(recorded, list):
        return []
    return [_compared(one, folders, hashes) for one in recorded if _is_entry(one)]


def _is_entry(one: Any) -> bool:
    kinds = {"category": str, "name": str, "bytes": int}
    return isinstance(one, dict) and all(isinstance(one.get(key), kind) for key, kind in kinds.items())


def _compared(one: Mapping[str, Any], folders: Folders, hashes: FileHashes) -> Compared:
    category, name = one["category"][:100], one["name"][:300]
    path = _image(name, folders) if category == IMAGES else folders.find(category, name)
    if path is None or not path.is_file():
        return _missing(one, category, name, folders, hashes)
    if path.stat().st_size != one["bytes"]:
        here = f"{path.stat().st_size:,} bytes here, {one['bytes']:,} then"
        return Compared(category, name, OTHER, f"{name} is another file of this name ({here}): the image will differ.")
    known = hashes.known(path)
    if "sha256" not in one or known is None:
        return Compared(category, name, UNKNOWN, f"{name} has the same size; its content has not been compared.")
    if known != one["sha256"]:
        return Compared(
            category,
            name,
            OTHER,
            f"{name} is another file of this name (its content differs): the image will differ.",
        )
    return Compared(category, name, SAME, f"{name} is the same file.")


def _missing(one: Mapping[str, Any], category: str, name: str, folders: Folders, hashes: FileHashes) -> Compared:
    """Looks for the same content under another name."""
    for other in folders.filenames(category) if category != IMAGES else ():
        path = folders.find(category, other)
        if path is not None and path.is_file() and path.stat().st_size == one["bytes"] and "sha256" in one:
            if hashes.known(path) == one["sha256"]:
                return Compared(category, name, MISSING, f"{name} is here under another name: choose {other}.", other)
    if category == IMAGES:
        return Compared(category, name, MISSING, f"The input image {name} ({one['bytes']:,} bytes) is missing.")
    size = f"It has {one['bytes'] / 1e9:.2f} GB. " if one["bytes"] > 1e8 else ""
    return Compared(category, name, MISSING, f"{name} is missing. {size}{folders.explain_missing(category, name)}")


def _image(name: str, folders: Folders) -> Path | None:
    name, kind = annotated(name)
    places = {"input": [folders.input, TINY_INPUT], "output": [folders.output], "temp": [folders.temp]}[kind]
    for place in places:
        try:
            path = confined(place, name)
        except InputError:
            return None
        if path.is_file():
            return path
    return None


def states(found: Iterable[Compared]) -> list[dict[str, str]]:
    """The results as JSON."""
    return [
        {"category": one.category, "name": one.name, "state": one.state, "text": one.text, "here": one.here}
        for one in found
    ]
