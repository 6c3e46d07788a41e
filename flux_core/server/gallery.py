"""The gallery: finished images, newest first, each with its prompt, seed and steps.

It lists the output folder, so images made by `sluice run` or ComfyUI are in it too. Prompt, seed and steps come from
the workflow inside the image; time and memory come from the job that made it, if that is in the history. Prompts are
read by the names of inputs, not by node classes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import SluiceError
from ..io.embedded import read_workflow
from ..io.folders import confined
from . import images
from .gallery_changes import starred
from .services import Json, Route, Services, flag, services, whole
from .store import Store

MOST_PICTURES = 20_000  # only the newest are listed
_ENDINGS = (".png", ".webp", ".jpg", ".jpeg", ".avif")
_TEXTS = ("t5xxl", "text", "prompt", "clip_l", "value", "string")  # inputs with a prompt's text, best first


@dataclass(frozen=True)
class Picture:
    """One file and the facts read from it."""

    path: Path
    written: int  # milliseconds since 1970
    nbytes: int
    width: int
    height: int
    text: str
    seed: int | None
    steps: int | None
    has_workflow: bool


# The orders of the list: functions of a list whose newest image is first.
SORTS: Mapping[str, Callable[[list[Picture]], list[Picture]]] = {
    "newest": lambda found: found,
    "oldest": lambda found: found[::-1],
    "name": lambda found: sorted(found, key=lambda picture: str(picture.path).casefold()),
    "seed": lambda found: sorted(found, key=lambda picture: (picture.seed is None, picture.seed or 0)),
    "largest": lambda found: sorted(found, key=lambda picture: -picture.width * picture.height),
}
KNOWN: web.AppKey[dict[Path, Picture]] = web.AppKey("pictures", dict)


async def gallery(request: web.Request) -> web.Response:
    """?text= words that must all occur in prompt or file name, &sort= one of SORTS, &starred=true, &offset= &limit="""
    here = services(request)
    words = request.query.get("text", "").casefold().split()
    offset, limit = max(0, whole(request, "offset", 0) or 0), min(max(1, whole(request, "limit", 50) or 50), 500)
    async with here.looking:
        found = await asyncio.to_thread(_matching, here.folders.output, request.app[KNOWN], words)
    stars = starred(here.folders)
    if flag(request, "starred"):
        found = [picture for picture in found if _below(picture, here) in stars]
    found = SORTS.get(request.query.get("sort", ""), SORTS["newest"])(found)
    shown = [_told(picture, here, stars) for picture in found[offset : offset + limit]]
    pagination = {"offset": offset, "limit": limit, "total": len(found), "has_more": offset + limit < len(found)}
    return web.json_response({"pictures": shown, "pagination": pagination})


async def canvas(request: web.Request) -> web.Response:
    """?filename&subfolder -> {"workflow", "prompt"}: the metadata of an image in the output folder."""
    name = f"{request.query.get('subfolder', '')}/{request.query.get('filename', '')}".lstrip("/")
    path = confined(services(request).folders.output, name)
    embedded = await asyncio.to_thread(read_workflow, path)
    return web.json_response({"workflow": embedded.workflow, "prompt": embedded.prompt})


def _below(picture: Picture, here: Services) -> str:
    return picture.path.relative_to(here.folders.output).as_posix()


def _told(picture: Picture, here: Services, stars: Collection[str]) -> Json:
    below = picture.path.relative_to(here.folders.output)
    subfolder = "" if below.parent == Path() else below.parent.as_posix()
    entry: Json = {
        "filename": below.name,
        "subfolder": subfolder,
        "type": "output",
        "time": picture.written,
        "bytes": picture.nbytes,
        "width": picture.width,
        "height": picture.height,
        "text": picture.text,
        "seed": picture.seed,
        "steps": picture.steps,
        "has_workflow": picture.has_workflow,
        "starred": _below(picture, here) in stars,
        "batch": None,
        "prompt_id": None,
        "seconds": None,
        "peak_vram": None,
        "peak_ram": None,
    }
    return entry | _made_by(here.store, picture, below.name, subfolder)


def _made_by(store: Store, picture: Picture, name: str, subfolder: str) -> Json:
    """The job in the history that made this file."""
    for job in store.history.finished_about(picture.written):
        for output in job.outputs.values():
            listed = list(output.get("images", ())) if isinstance(output, dict) else []
            for number, image in enumerate(listed, 1):
                if image.get("filename") == name and image.get("subfolder", "") == subfolder:
                    facts = {key: job.facts.get(key) for key in ("seconds", "peak_vram", "peak_ram")}
                    batch = [number, len(listed)] if len(listed) > 1 else None
                    return {"prompt_id": job.prompt_id, "batch": batch, **facts}
    return {}


# -- the folder --------------------------------------------------------------------------------------------------------


def _matching(folder: Path, known: dict[Path, Picture], words: list[str]) -> list[Picture]:
    """Matching images, newest first. Updates `known`: only files that are new or changed are opened."""
    stats = sorted(_files(folder), key=lambda found: (-found[1].st_mtime_ns, found[0]))[:MOST_PICTURES]
    current = {}
    for path, stat in stats:
        picture = known.get(path)
        if picture is None or (picture.written, picture.nbytes) != (stat.st_mtime_ns // 10**6, stat.st_size):
            picture = _read(path, stat)
        current[path] = picture
    known.clear()
    known.update(current)
    return [picture for picture in current.values() if _has(picture, words)]


def _has(picture: Picture, words: list[str]) -> bool:
    text = f"{picture.text} {picture.path.name} {picture.seed}".casefold()
    return all(word in text for word in words)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(_ENDINGS) and not name.startswith("."):
                path = Path(place, name)
                try:
                    yield path, path.lstat()
                except OSError:
                    continue  # it has just been removed


def _read(path: Path, stat: os.stat_result) -> Picture:
    """Read the facts from a file; a file that is damaged or has no workflow is listed without prompt."""
    try:
        prompt = read_workflow(path).prompt
        has_workflow = True
    except (SluiceError, OSError):
        prompt, has_workflow = None, False
    try:
        width, height = images.size(path)
    except SluiceError:
        width, height = 0, 0
    prompt = prompt or {}
    seed, steps = _number(prompt, ("noise_seed", "seed")), _number(prompt, ("steps",))
    written = stat.st_mtime_ns // 10**6
    return Picture(path, written, stat.st_size, width, height, _words(prompt), seed, steps, has_workflow)


# -- the prompt --------------------------------------------------------------------------------------------------------


def _words(prompt: Mapping[str, Any]) -> str:
    """The text that leads to the first `positive` or `conditioning` input, or else the first text of the prompt."""
    starts: list[Any] = []
    for name in ("positive", "conditioning"):
        starts += [node["inputs"][name] for node in prompt.values() if name in node["inputs"]]
    for start in starts:
        text = _first(prompt, start, _texts_of)
        if isinstance(text, str):
            return text
    return next((text for node in prompt.values() for text in _texts_of(node) if isinstance(text, str) and text), "")


def _number(prompt: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first input with one of these names, also if a primitive node provides it."""
    for name in names:
        for node in prompt.values():
            value = node["inputs"].get(name)
            if isinstance(value, list):
                value = _first(prompt, value, lambda source: [source["inputs"].get("value")])
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return int(value)
    return None


def _first(prompt: Mapping[str, Any], link: Any, values_of: Callable[[Any], list[Any]]) -> Any:
    """The first constant found upstream of a link, nearest node first."""
    waiting, seen = [link], set()
    while waiting:
        link = waiting.pop(0)
        node_id = link[0] if isinstance(link, list) and link and isinstance(link[0], str) else None
        if node_id is None or node_id in seen or node_id not in prompt:
            continue
        seen.add(node_id)
        for value in values_of(prompt[node_id]):
            if isinstance(value, list):
                waiting.insert(0, value)
            elif value not in (None, ""):
                return value
        waiting += [value for value in prompt[node_id]["inputs"].values() if isinstance(value, list)]
    return None


def _texts_of(node: Mapping[str, Any]) -> list[Any]:
    values = [node["inputs"].get(name) for name in _TEXTS]
    return [value for value in values if isinstance(value, (str, list))]


ROUTES: tuple[Route, ...] = (("GET", "/sluice/gallery", gallery), ("GET", "/sluice/canvas", canvas))
