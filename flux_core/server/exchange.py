"""Images sent and received under an id, without a name or a folder, and other routes that painting programs use.

    PUT, GET /etn/image/{id}             an image for a job, or of one: the nodes ETN_LoadImageCache, ETN_SaveImageCache
    GET /etn/model_info/{kind}           which base model each file is of, read from headers
    PUT /etn/upload/{kind}/{name}        a LoRA
    GET /etn/languages, /etn/translate   nothing is translated here

The routes are those of comfyui-tooling-nodes, which the Krita plugin uses; if that pack is loaded, it answers itself.
Images are stored in a folder of the temporary files, which the worker shares.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import WorkflowError
from ..io.folders import CATEGORIES, RENAMED
from ..io.saving import appearing, write_whole
from .services import MAX_UPLOAD, Route, Services, json_object, refuse, services, whole

FOLDER = "exchange"
KEPT = 3600.0  # seconds for which an image is kept after its last use
MAX_LORA = 4 << 30  # bytes
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_FILE = re.compile(r"[A-Za-z0-9_\-. ]{1,200}\.(?:safetensors|sft)")
_KINDS = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))


def _place(here: Services, request: web.Request) -> Path:
    """The path of the image of an id. Raises HTTPBadRequest."""
    name = request.match_info["id"]
    if not _ID.fullmatch(name):
        raise web.HTTPBadRequest(text="An id is at most 100 letters, digits, - and _.")
    return here.folders.temp / FOLDER / name


async def put_image(request: web.Request) -> web.Response:
    """Store an image under an id; an existing one is kept."""
    here = services(request)
    path = _place(here, request)
    if path.exists():
        path.touch()
        return web.json_response({"status": "cached"})
    if (request.content_length or 0) > MAX_UPLOAD:
        raise web.HTTPRequestEntityTooLarge(MAX_UPLOAD, request.content_length or 0)
    data = await request.read()
    if not any(data.startswith(mark) for mark, _ in _KINDS):
        return refuse(415, "This is not a PNG, JPEG or WebP image.")
    await asyncio.to_thread(_kept, path, data)
    return web.json_response({"status": "success"}, status=201)


def _kept(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in _outdated(path.parent):
        old.unlink(missing_ok=True)
    write_whole(path, data)


def _outdated(folder: Path) -> Iterator[Path]:
    oldest = time.time() - KEPT
    for path in folder.iterdir():
        try:
            if path.stat().st_mtime < oldest:
                yield path
        except FileNotFoundError:  # another request removed it first
            continue


async def get_image(request: web.Request) -> web.StreamResponse:
    """The image of an id."""
    path = _place(services(request), request)
    try:
        data = await asyncio.to_thread(path.read_bytes)
    except FileNotFoundError:
        return refuse(404, "There is no image with this id. Images are kept for an hour.")
    kind = next((kind for mark, kind in _KINDS if data.startswith(mark)), "application/octet-stream")
    return web.Response(body=data, content_type=kind)


async def model_info(request: web.Request) -> web.Response:
    """?offset, ?limit: {file: {"base_model", "is_inpaint", "type"?}}, with limit also their number."""
    here, kind = services(request), request.match_info.get("kind", "checkpoints")
    folder = "diffusion_models" if kind == "unet_gguf" else RENAMED.get(kind, kind)
    if folder not in CATEGORIES:
        return web.json_response({"error": f"Invalid folder path, must be one of {', '.join(CATEGORIES)}"}, status=400)
    offset, limit = whole(request, "offset", 0) or 0, whole(request, "limit")
    names = await asyncio.to_thread(here.folders.filenames, folder)
    names = [name for name in names if name.lower().endswith(".gguf") or kind != "unet_gguf"]
    chosen = names[max(0, offset) :][: len(names) if limit is None else max(0, limit)]
    found = await here.job_runner.worker.call("model_info", kind=folder, names=chosen)
    if limit is not None:
        found["_meta"] = {"offset": offset, "count": len(chosen), "total": len(names)}
    return web.json_response(found)


async def languages(request: web.Request) -> web.Response:
    """The languages from which texts are translated: none."""
    return web.json_response([])


async def translate(request: web.Request) -> web.Response:
    """The text unchanged."""
    return web.json_response(request.match_info["text"])


async def upload(request: web.Request) -> web.Response:
    """A model file for a folder of its kind, written whole or not at all."""
    here, name = services(request), request.match_info["name"]
    kind = RENAMED.get(request.match_info["kind"], request.match_info["kind"])
    if kind != "loras":
        return refuse(400, "Only LoRAs can be uploaded.")
    if not _FILE.fullmatch(name) or name.startswith("."):
        return refuse(400, "A LoRA's name has letters, digits, spaces, - and _, and ends with .safetensors.")
    if here.folders.find(kind, name) is not None:
        return web.json_response({"status": "cached"})
    if (request.content_length or 0) > MAX_LORA:
        raise web.HTTPRequestEntityTooLarge(MAX_LORA, request.content_length or 0)
    place = here.folders.directories(kind)[0]
    place.mkdir(parents=True, exist_ok=True)
    with appearing(place / name) as file:
        written = 0
        async for chunk in request.content.iter_chunked(1 << 20):
            written += len(chunk)
            if written > MAX_LORA:
                raise web.HTTPRequestEntityTooLarge(MAX_LORA, written)
            await asyncio.to_thread(file.write, chunk)
    return web.json_response({"status": "success"}, status=201)


async def workflows(request: web.Request) -> web.Response:
    """{"client_id"}: listeners for workflows that other pages publish. Nothing is published here."""
    body: dict[str, Any] = await json_object(request)
    if not isinstance(body.get("client_id"), str):
        raise WorkflowError("A client_id is needed.")
    return web.json_response({"status": "success"})


ROUTES: tuple[Route, ...] = (
    ("GET", "/etn/image/{id}", get_image),
    ("PUT", "/etn/image/{id}", put_image),
    ("GET", "/etn/model_info", model_info),
    ("GET", "/etn/model_info/{kind}", model_info),
    ("GET", "/etn/languages", languages),
    ("GET", "/etn/translate/{language}/{text:.*}", translate),
    ("PUT", "/etn/upload/{kind}/{name}", upload),
    ("POST", "/etn/workflow/subscribe", workflows),
    ("POST", "/etn/workflow/unsubscribe", workflows),
)
HANDLERS = frozenset(handler for _, _, handler in ROUTES)
