"""Routes for the settings and files that the editor stores on the server, in ComfyUI's places, for one user.

All writes are atomic.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import WorkflowError
from ..io import strict_json
from ..io.folders import confined
from ..io.saving import TEMPORARY_PREFIX, replace, write_whole
from .services import Json, Route, Services, flag, json_body, json_object, refuse, services

log = logging.getLogger(__name__)

# The default settings: no tutorial at the first visit, no request to another server about new releases.
DEFAULTS: Json = {"Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False}
MAX_SETTINGS = 10_000
MAX_FILE = 64 << 20  # bytes of one file


async def get_users(request: web.Request) -> web.Response:
    """There is one user, whose settings are stored on the server and not in the browser."""
    return web.json_response({"storage": "server", "migrated": True})


async def post_users(request: web.Request) -> web.Response:
    """{"username"}: there is one user; other names get the same one."""
    await json_object(request)
    return web.json_response("default")


# -- settings ----------------------------------------------------------------------------------------------------------


async def get_settings(request: web.Request) -> web.Response:
    """All settings."""
    return web.json_response(DEFAULTS | _read(services(request)))


async def get_setting(request: web.Request) -> web.Response:
    """One setting, or null."""
    return web.json_response((DEFAULTS | _read(services(request))).get(request.match_info["id"]))


async def post_settings(request: web.Request) -> web.Response:
    """{id: value}: change several settings."""
    return _keep(services(request), await json_object(request))


async def post_setting(request: web.Request) -> web.Response:
    """Change one setting to a JSON value."""
    return _keep(services(request), {request.match_info["id"]: await json_body(request)})


def _keep(here: Services, changes: Json) -> web.Response:
    """Change settings. Awaits nothing between reading and writing, so that changes cannot overwrite each other."""
    settings = _read(here) | changes
    if len(settings) > MAX_SETTINGS:
        return refuse(413, f"There are more than {MAX_SETTINGS} settings.")
    here.profile.mkdir(parents=True, exist_ok=True)
    write_whole(_settings_file(here), strict_json.dumps(settings, indent=4).encode())
    return web.Response()


def _settings_file(here: Services) -> Path:
    return here.profile / "comfy.settings.json"


def _read(here: Services) -> Json:
    file = _settings_file(here)
    try:
        settings = strict_json.loads(file.read_bytes(), str(file))
        if isinstance(settings, dict):
            return settings
        raise WorkflowError(f"{file} holds no JSON object.")
    except FileNotFoundError:
        return {}
    except WorkflowError as error:
        aside = file.with_suffix(".damaged.json")
        log.warning("%s It is kept as %s; settings start with their defaults.", error, aside.name)
        replace(file, aside)
        return {}


# -- files -------------------------------------------------------------------------------------------------------------


async def list_files(request: web.Request) -> web.Response:
    """?dir= of the user's folder, &recurse=true, &full_info=true, &split=true (each name with its parts)."""
    here = services(request)
    if not request.query.get("dir"):
        return refuse(400, "A dir is needed.")
    folder = confined(here.profile, request.query["dir"])
    if not folder.is_dir():
        return refuse(404, f"There is no folder {request.query['dir']!r}.")
    names = await asyncio.to_thread(lambda: sorted(_names(folder, flag(request, "recurse"))))
    if flag(request, "full_info"):
        return web.json_response([_info(folder / name, folder) for name in names if (folder / name).is_file()])
    if flag(request, "split"):
        return web.json_response([[name, *name.split("/")] for name in names])
    return web.json_response(names)


async def list_tree(request: web.Request) -> web.Response:
    """?path= below the user's folder: [{"name", "path", "type": "file" or "directory", "size"?, "modified"?}]."""
    here = services(request)
    asked = request.query.get("path", "")
    folder = confined(here.profile, asked) if asked.strip("/") else here.profile
    if not folder.is_dir():
        return refuse(404, f"There is no folder {asked!r}.") if asked else web.json_response([])
    return web.json_response(await asyncio.to_thread(lambda: [*_entries(folder, here.profile)]))


def _entries(folder: Path, root: Path) -> Iterator[Json]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", TEMPORARY_PREFIX)):
            continue
        entry: Json = {"name": path.name, "path": path.relative_to(root).as_posix()}
        if path.is_dir():
            yield {**entry, "type": "directory"}
        elif path.is_file():
            stat = path.stat()
            yield {**entry, "type": "file", "size": stat.st_size, "modified": int(stat.st_mtime * 1000)}


def _names(folder: Path, recurse: bool) -> Iterator[str]:
    for place, _, files in os.walk(folder):
        below = os.path.relpath(place, folder).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + file for file in files if not file.startswith(TEMPORARY_PREFIX))
        if not recurse:
            return


async def get_file(request: web.Request) -> web.StreamResponse:
    """The bytes of a file, never of a type that a browser would run."""
    path = _existing(request)
    if isinstance(path, web.Response):
        return path
    kind = "application/json" if path.suffix == ".json" else "application/octet-stream"
    return web.FileResponse(path, headers={"Content-Type": kind, "Cache-Control": "no-cache"})


async def post_file(request: web.Request) -> web.Response:
    """Write a file. ?overwrite=false answers 409 if there is one; ?full_info=true answers with its details."""
    path = _path(request, "file")
    if (request.content_length or 0) > MAX_FILE:
        raise web.HTTPRequestEntityTooLarge(MAX_FILE, request.content_length or 0)
    data = await request.read()
    if request.query.get("overwrite") == "false" and path.exists():
        return refuse(409, "There is a file of that name already.")
    path.parent.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(write_whole, path, data)
    return _told(request, path)


async def delete_file(request: web.Request) -> web.Response:
    path = _existing(request)
    if isinstance(path, web.Response):
        return path
    path.unlink()
    return web.Response(status=204)


async def move_file(request: web.Request) -> web.Response:
    """Rename a file. ?overwrite=false answers 409 if the new name is taken."""
    source, target = _existing(request), _path(request, "dest")
    if isinstance(source, web.Response):
        return source
    if request.query.get("overwrite") == "false" and target.exists():
        return refuse(409, "There is a file of that name already.")
    target.parent.mkdir(parents=True, exist_ok=True)
    replace(source, target)
    return _told(request, target)


def _path(request: web.Request, which: str) -> Path:
    return confined(services(request).profile, request.match_info[which])


def _existing(request: web.Request) -> Path | web.Response:
    path = _path(request, "file")
    return path if path.is_file() else refuse(404, "There is no file of that name.")


def _told(request: web.Request, path: Path) -> web.Response:
    profile = services(request).profile
    if flag(request, "full_info"):
        return web.json_response(_info(path, profile))
    return web.json_response(_below(path, profile))


def _info(path: Path, root: Path) -> Json:
    stat = path.stat()
    times: dict[str, Any] = {"modified": int(stat.st_mtime * 1000), "created": int(stat.st_ctime * 1000)}
    return {"path": _below(path, root), "size": stat.st_size, **times}


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


ROUTES: tuple[Route, ...] = (
    ("GET", "/users", get_users),
    ("POST", "/users", post_users),
    ("GET", "/v2/userdata", list_tree),
    ("GET", "/settings", get_settings),
    ("GET", "/settings/{id}", get_setting),
    ("POST", "/settings", post_settings),
    ("POST", "/settings/{id}", post_setting),
    ("GET", "/userdata", list_files),
    ("POST", "/userdata/{file:.+}/move/{dest:.+}", move_file),
    ("GET", "/userdata/{file:.+}", get_file),
    ("POST", "/userdata/{file:.+}", post_file),
    ("DELETE", "/userdata/{file:.+}", delete_file),
)
