"""Routes that change the gallery: star images, move them to the trash folder, restore them.

output/.trash/SUBFOLDER/FILE     images in the trash; this program never empties it
user/sluice/stars.json           the starred images, as paths below the output folder
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from aiohttp import web

from ..errors import MissingFileError, WorkflowError
from ..io import strict_json
from ..io.folders import Folders, confined
from ..io.saving import write_whole
from .services import Json, Route, json_object, services

TRASH = ".trash"
CHANGED = "sluice.gallery"  # sent to all pages after a change, so that each shows it


async def star(request: web.Request) -> web.Response:
    """{"filename", "subfolder", "starred"}"""
    here, body = services(request), await json_object(request)
    name = _named(body)
    if not confined(here.folders.output, name).is_file():
        raise MissingFileError(f"There is no image {name!r} any more.")
    async with here.looking:
        stars = starred(here.folders)
        stars = stars | {name} if body.get("starred") else stars - {name}
        await asyncio.to_thread(_keep, here.folders, stars)
    here.clients.send(CHANGED, {})
    return web.json_response({"starred": name in stars})


async def throw_away(request: web.Request) -> web.Response:
    """{"pictures": [{"filename", "subfolder"}]} -> {"trashed": [names in the trash folder], "folder"}"""
    here, body = services(request), await json_object(request)
    names = [_named(picture) for picture in body.get("pictures", ()) if isinstance(picture, dict)]
    async with here.looking:
        moved = [await asyncio.to_thread(_to_trash, here.folders.output, name) for name in names]
    here.clients.send(CHANGED, {})
    return web.json_response({"trashed": moved, "folder": str(here.folders.output / TRASH)})


async def take_back(request: web.Request) -> web.Response:
    """{"trashed": [names that `throw_away` returned]} -> {"restored": how many}"""
    here, body = services(request), await json_object(request)
    names = [name for name in body.get("trashed", ()) if isinstance(name, str)]
    async with here.looking:
        for name in names:
            await asyncio.to_thread(_from_trash, here.folders.output, name)
    here.clients.send(CHANGED, {})
    return web.json_response({"restored": len(names)})


def starred(folders: Folders) -> frozenset[str]:
    """The starred images, as paths below the output folder."""
    try:
        kept = strict_json.loads(_file(folders).read_bytes(), "the stars")
    except (OSError, WorkflowError):
        return frozenset()
    return frozenset(name for name in kept if isinstance(name, str)) if isinstance(kept, list) else frozenset()


def _keep(folders: Folders, stars: frozenset[str]) -> None:
    file = _file(folders)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, strict_json.dumps(sorted(stars)).encode())


def _file(folders: Folders) -> Path:
    return folders.user / "sluice" / "stars.json"


def _named(picture: Json) -> str:
    """The path of an image below the output folder. Raises WorkflowError."""
    filename, subfolder = picture.get("filename"), picture.get("subfolder", "")
    if not isinstance(filename, str) or not isinstance(subfolder, str) or not filename:
        raise WorkflowError('An image is named by {"filename", "subfolder"}.')
    return f"{subfolder.strip('/')}/{filename}".lstrip("/")


def _to_trash(output: Path, name: str) -> str:
    """Move a file to the trash, with a number if the name is taken. Returns its name there. Raises MissingFileError."""
    source = confined(output, name)
    if not source.is_file() or name.startswith(f"{TRASH}/"):
        raise MissingFileError(f"There is no image {name!r} any more.")
    target = confined(output / TRASH, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while os.path.lexists(target):
        target = confined(output / TRASH, name).with_name(f"{source.stem} ({number}){source.suffix}")
        number += 1
    shutil.move(source, target)
    return target.relative_to(output / TRASH).as_posix()


def _from_trash(output: Path, name: str) -> None:
    """Restore a file. Raises MissingFileError if it is not in the trash, or if another file has its name now."""
    source, target = confined(output / TRASH, name), confined(output, name)
    if not source.is_file():
        raise MissingFileError(f"{name!r} is not in the trash any more.")
    if os.path.lexists(target):
        raise MissingFileError(f"Another image is called {name!r} now; this one stays in the trash.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


ROUTES: tuple[Route, ...] = (
    ("POST", "/sluice/gallery/star", star),
    ("POST", "/sluice/gallery/delete", throw_away),
    ("POST", "/sluice/gallery/restore", take_back),
)
