"""The page for phones: a prompt box over any workflow, with the gallery and the memory panel (web/app).

GET  /sluice/app                  the page; /sluice/app/{file} its parts
GET  /sluice/app/workflows        the shipped workflows, as in the editor's template browser
POST /sluice/app/form             {"name": of a shipped workflow} or {"workflow": canvas or prompt} -> the form
POST /sluice/app/open             an image with a workflow in it -> the form
POST /sluice/app/filled           {"workflow", "values", "loras"} -> {"prompt", "workflow"}, for POST /prompt
GET  /sluice/loras?category&model the LoRA files with family, rank, trigger words, and whether they fit the model
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import InputError
from ..io.embedded import read_workflow_bytes
from ..io.folders import confined
from . import templates
from .model_routes import send_page_part
from .services import Json, Route, json_object, services

_PAGE = Path(__file__).resolve().parents[2] / "web" / "app"


async def page(request: web.Request) -> web.StreamResponse:
    """The page."""
    headers = {"Cache-Control": "no-cache", "Content-Type": "text/html; charset=utf-8"}
    return web.FileResponse(_PAGE / "index.html", headers=headers)


async def part(request: web.Request) -> web.StreamResponse:
    """A script or style of the page."""
    path = confined(_PAGE, request.match_info["file"])
    if not path.is_file() or path.suffix not in (".mjs", ".css"):
        raise web.HTTPNotFound(text=f"The page has no file {request.match_info['file'][:100]!r}.")
    return send_page_part(request, path)


async def workflows(request: web.Request) -> web.Response:
    """[{"title", "templates": [{"name", "title", "description", "files"?}]}]"""
    return web.json_response(await asyncio.to_thread(templates.groups))


async def form(request: web.Request) -> web.Response:
    """A shipped workflow by its name, or any other as JSON."""
    body = await json_object(request)
    if isinstance(body.get("name"), str):
        return await _form(request, await asyncio.to_thread(templates.canvas_of, body["name"]))
    if "workflow" not in body:
        raise InputError('Name a workflow: {"name": ...} or {"workflow": ...}.')
    return await _form(request, body["workflow"])


async def open_image(request: web.Request) -> web.Response:
    """The workflow inside an image or a JSON file."""
    data = await request.read()
    read = await asyncio.to_thread(read_workflow_bytes, data, "The file")
    found = read.prompt if read.workflow is None else read.workflow
    if found is None:
        raise InputError("The file carries the parameters of another program, but no workflow.")
    return await _form(request, found)


async def filled(request: web.Request) -> web.Response:
    """What POST /prompt takes: the prompt, and the canvas that the images will carry."""
    body = await json_object(request)
    values, loras = _rows(body, "values", 3), _rows(body, "loras", 2)
    worker = services(request).job_runner.worker
    return web.json_response(await worker.call("filled", workflow=body.get("workflow"), values=values, loras=loras))


async def loras(request: web.Request) -> web.Response:
    """Those that are here, by name."""
    wanted: Json = {key: request.query[key] for key in ("category", "model") if key in request.query}
    return web.json_response(await services(request).job_runner.worker.call("loras", **wanted))


async def _form(request: web.Request, workflow: Any) -> web.Response:
    return web.json_response(await services(request).job_runner.worker.call("form", workflow=workflow))


def _rows(body: Json, key: str, length: int) -> list[list[Any]]:
    rows = body.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == length for row in rows):
        raise InputError(f"{key} should be a list of lists of {length}.")
    return rows


ROUTES: tuple[Route, ...] = (
    ("GET", "/sluice/app", page),
    ("GET", "/sluice/app/workflows", workflows),
    ("POST", "/sluice/app/form", form),
    ("POST", "/sluice/app/open", open_image),
    ("POST", "/sluice/app/filled", filled),
    ("GET", "/sluice/app/{file:[a-z_]+\\.[a-z]+}", part),
    ("GET", "/sluice/loras", loras),
)
