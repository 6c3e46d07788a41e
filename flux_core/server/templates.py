"""Routes for workflow templates: ours in the editor's gallery, and those of node packs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import MissingFileError
from ..io import strict_json
from ..io.embedded import read_workflow
from ..io.folders import confined
from .services import Json, Route, Services, services

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
FIRST = "text_to_image"  # the workflow that a first visit shows
FULL_SIZE = "flux1_"  # begins the names of templates of FLUX.1 itself, which lie in a folder of their own
SMALL = {  # what each workflow of the small model shows
    "text_to_image": "A prompt, twelve steps, an image: ready to run without a download.",
    "four_steps": "As short as FLUX.1 schnell runs: four steps, no guidance, no shift.",
    "image_to_image": "A sketch instead of an empty latent, and only the last part of the steps.",
    "two_prompts": "CLIP and T5 read different texts.",
    "seeds_and_guidance": "Four strengths of guidance from left to right, two seeds from top to bottom.",
}
_PACK_FOLDERS = ("example_workflows", "workflows", "workflow", "templates", "examples")


async def index(request: web.Request) -> web.Response:
    """The list of templates in the form that the editor expects from ComfyUI: FLUX.1 itself, and the small model."""
    return web.json_response(await asyncio.to_thread(groups))


def groups() -> list[Json]:
    """The templates in their groups."""
    names = sorted(_names(WORKFLOWS), key=lambda name: (name != FIRST, name))
    small = [_template(name, name.replace("_", " ").capitalize(), SMALL.get(name, ""), "png") for name in names]
    found = [_group("Small model", small)] if small else []
    full = [_full_size(one) for one in _full_size_index()]
    return found + ([_group("FLUX.1", full)] if full else [])


def _group(title: str, templates: list[Json]) -> Json:
    return {"moduleName": "default", "category": "Sluice", "title": title, "type": "image", "templates": templates}


def _template(name: str, title: str, description: str, picture: str) -> Json:
    return {
        "name": name, "title": title, "description": description or title, "mediaType": "image",
        "mediaSubtype": picture, "tags": [],
    }  # fmt: skip


def _full_size(entry: Json) -> Json:
    """A template of FLUX.1 itself: its thumbnail is a sketch of the graph; `files` has what it needs.

    The editor replaces every - and _ of a description by a space, so the names of files stand in the workflow's note.
    """
    total, count = sum(one["gigabytes"] or 0 for one in entry["files"]), len(entry["files"])
    listed = f"{count} files, listed in its note" if count > 1 else "1 file, named in its note"
    about = f"{entry['description']} Needs {total:.1f} GB ({listed})."
    template = _template(FULL_SIZE + entry["name"], entry["title"], about, "svg")
    return {**template, "size": round(total * 1e9), "files": entry["files"]}


def _full_size_index() -> list[Json]:
    """See commands/flux1_workflows.py, which writes it."""
    file = WORKFLOWS / "flux1" / "index.json"
    found: list[Json] = strict_json.loads(file.read_bytes(), file.name) if file.is_file() else []
    return found


async def template_file(request: web.Request) -> web.StreamResponse:
    """NAME.json, or NAME-1.png or .svg: the image that it makes, or a sketch of its graph."""
    name = request.match_info["name"]
    stem, _, ending = name.rpartition(".")
    if ending == "json":
        return web.json_response(await asyncio.to_thread(canvas_of, stem))
    place, file = _place(stem.removesuffix("-1"))
    return _file(place, f"{file}.{ending}")


def _place(name: str) -> tuple[Path, str]:
    """The folder and the stem of the files of one of our templates."""
    if name.startswith(FULL_SIZE):
        return WORKFLOWS / "flux1", name.removeprefix(FULL_SIZE)
    return WORKFLOWS, name


async def of_packs(request: web.Request) -> web.Response:
    """Pack -> the names of its workflows."""
    here = services(request)
    found = {name: await asyncio.to_thread(_names, place) for name, place in _places(here).items()}
    return web.json_response({name: names for name, names in found.items() if names})


async def pack_file(request: web.Request) -> web.StreamResponse:
    """NAME.json or an image beside it."""
    place = _places(services(request)).get(request.match_info["pack"])
    if place is None:
        raise MissingFileError(f"There is no pack {request.match_info['pack'][:100]!r} with workflows.")
    return _file(place, request.match_info["name"])


async def default_workflow(request: web.Request) -> web.Response:
    """The canvas that a first visit shows, ready to run."""
    return web.json_response(await asyncio.to_thread(canvas_of, FIRST))


async def nothing(request: web.Request) -> web.Response:
    """An empty answer, for lists that the editor requests and that have no entries here."""
    return web.json_response({})


def canvas_of(name: str) -> Any:
    """The canvas of one of our workflows: from its image, where nodes have ComfyUI's names, or else its JSON file."""
    place, name = _place(name)
    picture = confined(place, f"{name}.png")
    if picture.is_file() and (workflow := read_workflow(picture).workflow) is not None:
        return workflow
    file = confined(place, f"{name}.json")
    if not file.is_file():
        raise MissingFileError(f"There is no workflow {name!r}.")
    return strict_json.loads(file.read_bytes(), name)


def _names(place: Path) -> list[str]:
    return sorted(file.stem for file in place.glob("*.json"))


def _places(here: Services) -> dict[str, Path]:
    places = {}
    for pack in here.packs:
        folders = [Path(pack["path"]) / name for name in _PACK_FOLDERS]
        found = next((folder for folder in folders if folder.is_dir()), None)
        if found is not None:
            places[pack["name"]] = found
    return places


def _file(place: Path, name: str) -> web.StreamResponse:
    path = confined(place, name)
    if not path.is_file() or path.suffix not in (".json", ".png", ".jpg", ".webp", ".svg"):
        raise MissingFileError(f"There is no workflow file {name!r}.")
    if path.suffix == ".json":
        return web.json_response(strict_json.loads(path.read_bytes(), path.name))
    return web.FileResponse(path, headers={"Cache-Control": "no-cache"})


ROUTES: tuple[Route, ...] = (
    ("GET", "/templates/index.json", index),
    ("GET", "/templates/{name}", template_file),
    ("GET", "/workflow_templates", of_packs),
    ("GET", "/workflow_templates/{pack}/{name}", pack_file),
    ("GET", "/sluice/default_workflow", default_workflow),
    ("GET", "/global_subgraphs", nothing),
    ("GET", "/node_replacements", nothing),
    ("GET", "/i18n", nothing),
)
