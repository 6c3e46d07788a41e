"""Routes that list node classes, model files and the JavaScript of extensions. The worker describes node classes."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import MissingFileError, WorkflowError
from ..io import strict_json
from ..io.folders import CATEGORIES, RENAMED, confined
from .files import send_file
from .guard import is_loopback
from .services import Json, Route, Services, refuse, services

WEB = Path(__file__).resolve().parents[2] / "web" / "comfyui"
MAX_HEADER = 1 << 20  # bytes of a weight file's header that is read for its metadata
OWN_EXTENSION = "sluice"
# Kinds that ComfyUI has and nothing here reads; clients list them all.
ELSEWHERE = (
    *("audio_encoders", "classifiers", "configs", "custom_nodes", "diffusers", "gligen", "hypernetworks"),
    *("latent_upscale_models", "photomaker", "upscale_models"),
)
_CONDITIONS = ("If-Modified-Since", "If-None-Match", "Range")  # aiohttp would append zlib's trailer to an empty 304


# -- nodes -------------------------------------------------------------------------------------------------------------


async def object_info(request: web.Request) -> web.Response:
    """All node classes."""
    return web.json_response(await services(request).job_runner.worker.call("object_info"))


async def object_info_of(request: web.Request) -> web.Response:
    """One node class; {} if there is none with this name."""
    name = request.match_info["name"]
    return web.json_response(await services(request).job_runner.worker.call("object_info", names=[name]))


# -- model files -------------------------------------------------------------------------------------------------------


async def model_folders(request: web.Request) -> web.Response:
    """The kinds of model files."""
    return web.json_response(list(CATEGORIES))


async def model_names(request: web.Request) -> web.Response:
    """The files of one kind."""
    here, kind = services(request), _kind(request)
    return web.json_response(await asyncio.to_thread(here.folders.filenames, kind))


async def model_places(request: web.Request) -> web.Response:
    """The kinds of model files, with their folders."""
    folders = services(request).folders
    return web.json_response(
        [{"name": kind, "folders": [str(place) for place in folders.directories(kind)]} for kind in CATEGORIES]
    )


async def model_details(request: web.Request) -> web.Response:
    """The files of one kind, with sizes and times."""
    return web.json_response(await asyncio.to_thread(_details, services(request), _kind(request)))


def _details(here: Services, kind: str) -> list[Json]:
    found = []
    for name in here.folders.filenames(kind):
        for index, place in enumerate(here.folders.directories(kind)):
            if (place / name).is_file():
                stat = (place / name).stat()
                times = {"modified": stat.st_mtime, "created": stat.st_ctime, "size": stat.st_size}
                found.append({"name": name, "pathIndex": index, **times})
                break
    return found


def _kind(request: web.Request) -> str:
    kind = request.match_info["kind"]
    if RENAMED.get(kind, kind) not in CATEGORIES and kind not in ELSEWHERE:
        raise web.HTTPNotFound(text=f"There is no kind of model file called {kind[:100]!r}.")
    return kind


async def embeddings(request: web.Request) -> web.Response:
    """Textual inversions by their names in prompts, which have no file ending."""
    names = await asyncio.to_thread(services(request).folders.filenames, "embeddings")
    return web.json_response([name.rpartition(".")[0] for name in names])


async def view_metadata(request: web.Request) -> web.Response:
    """?filename= of a safetensors file: the metadata in it."""
    path = services(request).folders.find(_kind(request), request.query.get("filename", ""))
    metadata = None if path is None else await asyncio.to_thread(_metadata, path)
    return refuse(404, "The file has no metadata.") if metadata is None else web.json_response(metadata)


def _metadata(path: Path) -> Any:
    """The __metadata__ of a safetensors file: length (8 bytes, little-endian), JSON."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not path.name.endswith(".safetensors") or not 2 <= length <= MAX_HEADER:
            return None
        header = file.read(length)
    try:
        loaded = strict_json.loads(header)
    except WorkflowError:
        return None
    return loaded.get("__metadata__") if isinstance(loaded, dict) else None


async def folder_paths(request: web.Request) -> web.Response:
    """Each kind of file with its folders."""
    folders = services(request).folders
    places = {kind: [str(place) for place in folders.directories(kind)] for kind in CATEGORIES}
    own = {"input": folders.input, "output": folders.output, "temp": folders.temp}
    return web.json_response(places | {kind: [str(place)] for kind, place in own.items()})


# -- extensions --------------------------------------------------------------------------------------------------------


async def extensions(request: web.Request) -> web.Response:
    """The scripts that the editor must load: our own and those of node packs."""
    here = services(request)
    await here.packs_known.wait()
    found = await asyncio.to_thread(_scripts, _places(here))
    return web.json_response(found)


def _scripts(places: dict[str, Path]) -> list[str]:
    return [
        f"/extensions/{name}/{path.relative_to(place).as_posix()}"
        for name, place in places.items()
        for path in sorted(place.rglob("*.js"))
    ]


def _places(here: Services) -> dict[str, Path]:
    """Name of the extension -> its folder."""
    more = {name: Path(place) for pack in here.packs for name, place in pack["extensions"].items()}
    return {OWN_EXTENSION: WEB} | {pack["name"]: Path(pack["web"]) for pack in here.packs if pack["web"]} | more


async def extension_file(request: web.Request) -> web.StreamResponse:
    """A file of an extension."""
    here = services(request)
    place = _places(here).get(request.match_info["pack"])
    path = None if place is None else confined(place, request.match_info["path"])
    if path is None or not path.is_file():
        raise MissingFileError(f"There is no extension file {request.path}.")
    return send_page_part(request, path)


def send_page_part(request: web.Request, path: Path) -> web.FileResponse:
    """A script, style or other file of the page, revalidated at each use, compressed for other machines."""
    kinds = {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".css": "text/css",
        ".json": "application/json",
        ".md": "text/markdown",
        ".map": "application/json",
        ".wasm": "application/wasm",
        ".svg": "image/svg+xml",
    }
    if path.suffix not in kinds:
        return send_file(path)
    headers = {"Content-Type": kinds[path.suffix], "Cache-Control": "no-cache"}
    response = web.FileResponse(path, headers=headers)
    is_whole = request.method == "GET" and not any(name in request.headers for name in _CONDITIONS)
    if is_whole and not is_loopback(request.remote or ""):
        response.enable_compression()
    return response


ROUTES: tuple[Route, ...] = (
    ("GET", "/object_info", object_info),
    ("GET", "/object_info/{name}", object_info_of),
    ("GET", "/models", model_folders),
    ("GET", "/models/{kind}", model_names),
    ("GET", "/experiment/models", model_places),
    ("GET", "/experiment/models/{kind}", model_details),
    ("GET", "/embeddings", embeddings),
    ("GET", "/view_metadata/{kind}", view_metadata),
    ("GET", "/internal/folder_paths", folder_paths),
    ("GET", "/extensions", extensions),
)
