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
_PACK_FOLDERS = ("example_workflows", "workflows", "workflow", "templates", "examples")


async def index(request: web.Request) -> web.Response:
    """The list of templates: one group with our workflows, in the form that the editor expects from ComfyUI."""
    names = await asyncio.to_thread(_names, WORKFLOWS)
    names.sort(key=lambda name: (name != FIRST, name))
    group: Json = {"moduleName": "default", "category": "Sluice", "title": "FLUX.1", "type": "image"}
    group["templates"] = [_template(name) for name in names]
    return web.json_response([group] if names else [])


def _template(name: str) -> Json:
    title = name.replace("_", " ").capitalize()
    return {"name": name, "title": title, "description": title, "mediaType": "image", "mediaSubtype": "png", "tags": []}


async def template_file(request: web.Request) -> web.StreamResponse:
    """NAME.json, or NAME-1.png, the image that it makes."""
    name = request.match_info["name"]
    stem, _, ending = name.rpartition(".")
    if ending == "json":
        return web.json_response(await asyncio.to_thread(_canvas, stem))
    return _file(WORKFLOWS, f"{stem.removesuffix('-1')}.{ending}")


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
    return web.json_response(await asyncio.to_thread(_canvas, FIRST))


async def nothing(request: web.Request) -> web.Response:
    """An empty answer, for lists that the editor requests and that have no entries here."""
    return web.json_response({})


def _canvas(name: str) -> Any:
    """The canvas of one of our workflows: from its image, where nodes have ComfyUI's names, or else its JSON file."""
    picture = confined(WORKFLOWS, f"{name}.png")
    if picture.is_file() and (workflow := read_workflow(picture).workflow) is not None:
        return workflow
    file = confined(WORKFLOWS, f"{name}.json")
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
    if not path.is_file() or path.suffix not in (".json", ".png", ".jpg", ".webp"):
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
