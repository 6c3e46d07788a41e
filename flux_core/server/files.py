"""Routes that send image files (/view) and receive them (/upload), only inside the three folders for images."""

from __future__ import annotations

import asyncio
import errno
import filecmp
import mimetypes
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from ..errors import FileFormatError, MissingFileError, WorkflowError
from ..io import strict_json
from ..io.folders import PICTURE_FILES, TINY_INPUT, annotated, confined
from ..io.paths import is_file, openable
from ..io.saving import TEMPORARY_PREFIX, replace, write_whole
from . import images
from .services import MAX_UPLOAD, Route, Services, refuse, services

KINDS = ("input", "output", "temp")
MEDIA_FILES = (*PICTURE_FILES, ".mp4", ".webm", ".mov", ".mkv", ".mp3", ".wav", ".flac", ".ogg", ".opus", ".m4a")
MAX_FIELD = 1 << 16  # bytes of a field that is not a file
_CHUNK = 1 << 18
# The same types on each machine: Windows' registry and /etc/mime.types are not used.
_types = mimetypes.MimeTypes()
for _ending, _type in (
    *((".jfif", "image/jpeg"), (".webp", "image/webp"), (".avif", "image/avif")),
    *((".mkv", "video/x-matroska"), (".webm", "video/webm"), (".mp4", "video/mp4"), (".mov", "video/quicktime")),
    *((".flac", "audio/flac"), (".ogg", "audio/ogg"), (".opus", "audio/ogg"), (".m4a", "audio/mp4")),
):
    _types.add_type(_type, _ending)


def root_of(here: Services, kind: str) -> Path:
    """The folder of a `type`. Raises HTTPBadRequest."""
    if kind not in KINDS:
        raise web.HTTPBadRequest(text=f"There is no folder {kind[:50]!r}; type is one of {', '.join(KINDS)}.")
    return {"input": here.folders.input, "output": here.folders.output, "temp": here.folders.temp}[kind]


def picture_path(here: Services, filename: str, kind: str, subfolder: str) -> Path:
    """The path of a file as a client names it. Raises InputError if it is outside the folder, MissingFileError."""
    if filename.endswith(tuple(f"[{one}]" for one in KINDS)):
        filename, kind = annotated(filename)
    path = confined(root_of(here, kind), f"{subfolder.rstrip('/')}/{filename}" if subfolder else filename)
    if not is_file(path) and kind == "input" and not subfolder:
        path = confined(TINY_INPUT, filename)  # the input images of the shipped workflows
    if not is_file(path):
        raise MissingFileError(f"There is no file {filename!r} in the {kind} folder.")
    return path


# -- out ---------------------------------------------------------------------------------------------------------------


async def view(request: web.Request) -> web.StreamResponse:
    """?filename&type&subfolder: an image; &preview=webp;90 sends a smaller file, &channel=rgb|a one part of it."""
    asked = request.query
    if not asked.get("filename"):
        return refuse(400, "A filename is needed.")
    path = picture_path(services(request), asked["filename"], asked.get("type", "output"), asked.get("subfolder", ""))
    if asked.get("preview"):
        form, _, quality = asked["preview"].partition(";")
        form = form if form in images.FORMATS else "webp"
        best = int(quality) if quality.isascii() and quality.isdecimal() and len(quality) < 4 else 90
        return await _made(request, images.FORMATS[form], images.preview, path, form, min(best, 100))
    if asked.get("channel", "rgba") not in images.CHANNELS:
        return refuse(400, f"channel is one of {', '.join(images.CHANNELS)}.")
    if asked.get("channel", "rgba") != "rgba":
        return await _made(request, "image/png", images.channel, path, asked["channel"])
    return send_file(path)


async def _made(request: web.Request, kind: str, make: Callable[..., bytes], path: Path, *how: Any) -> web.Response:
    async with services(request).decoding:
        try:
            body = await asyncio.to_thread(make, path, *how)
        except FileFormatError as error:
            return refuse(415, str(error))
    return web.Response(body=body, content_type=kind, headers={"Content-Disposition": _named("inline", path.name)})


def send_file(path: Path) -> web.FileResponse:
    """A file unchanged. Types that a browser could run or show as a page are sent as downloads."""
    kind = _types.guess_type(path.name)[0] or ""
    shown = kind.startswith(("image/", "video/", "audio/")) and "svg" not in kind and "xml" not in kind
    headers = {
        "Content-Type": kind if shown else "application/octet-stream",
        "Content-Disposition": _named("inline" if shown else "attachment", path.name),
        "Cache-Control": "no-cache",
    }
    return web.FileResponse(openable(path), headers=headers)


def _named(disposition: str, name: str) -> str:
    """A Content-Disposition in both forms: clients that know the older one alone look for filename="..."."""
    plain = name.encode("ascii", "replace").decode().translate({ord('"'): "_", ord("\\"): "_", ord("?"): "_"})
    if plain == name and plain.isprintable():  # one form is enough, and some clients read no further than the first "="
        return f'{disposition}; filename="{plain}"'
    return f"{disposition}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"


# -- in ----------------------------------------------------------------------------------------------------------------


@dataclass
class Upload:
    """The content of a multipart request: its file, stored under a temporary name, and its fields."""

    path: Path | None = None
    name: str = ""
    fields: dict[str, str] = field(default_factory=dict)


async def upload_image(request: web.Request) -> web.Response:
    """Fields image, type, subfolder, overwrite -> {"name", "subfolder", "type"}: how to load the stored image."""
    return await _upload(request, None)


async def upload_mask(request: web.Request) -> web.Response:
    """Like `upload_image`, with original_ref: {"filename", "subfolder", "type"}, whose image gets this mask's alpha."""
    return await _upload(request, _painted)


async def _upload(request: web.Request, make: Callable[[Services, Upload], bytes] | None) -> web.Response:
    here = services(request)
    if request.content_type != "multipart/form-data":
        return refuse(415, "A file is uploaded as multipart/form-data.")
    upload = Upload()
    try:
        await _receive(request, upload, here.folders.input)
        async with here.storing:
            return web.json_response(await asyncio.to_thread(_store, here, upload, make))
    except (FileFormatError, WorkflowError) as error:
        return refuse(400, str(error))
    finally:
        if upload.path is not None:
            upload.path.unlink(missing_ok=True)


async def _receive(request: web.Request, upload: Upload, folder: Path) -> None:
    try:
        parts = await request.multipart()
        while (part := await parts.next()) is not None:
            if not isinstance(part, BodyPartReader):
                raise WorkflowError("The upload has nested parts.")
            if part.name == "image" and part.filename and upload.path is None:
                upload.name = part.filename
                folder.mkdir(parents=True, exist_ok=True)
                upload.path = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp"
                await _receive_file(part, upload.path)
            elif part.name in ("type", "subfolder", "overwrite", "original_ref"):
                upload.fields[part.name] = (await _bounded(part)).decode(errors="replace")
    except (HttpProcessingError, ValueError, AssertionError, EOFError, RuntimeError, LookupError) as error:
        raise WorkflowError(f"The upload cannot be read: {error}") from error


async def _receive_file(part: BodyPartReader, path: Path) -> None:
    received = 0
    with path.open("xb") as file:
        while chunk := await part.read_chunk(_CHUNK):
            received += len(chunk)
            if received > MAX_UPLOAD:
                raise web.HTTPRequestEntityTooLarge(MAX_UPLOAD, received)
            await asyncio.to_thread(file.write, chunk)


async def _bounded(part: BodyPartReader) -> bytes:
    data = b""
    while chunk := await part.read_chunk(_CHUNK):
        data += chunk
        if len(data) > MAX_FIELD:
            raise WorkflowError(f"The field {part.name} of the upload is too long.")
    return data


def _store(here: Services, upload: Upload, make: Callable[[Services, Upload], bytes] | None) -> dict[str, str]:
    """Move an upload to its folder and name. Runs in a thread."""
    if upload.path is None:
        raise WorkflowError("The upload has no file. Send it in the field `image`.")
    kind, subfolder = upload.fields.get("type") or "input", upload.fields.get("subfolder", "").replace("\\", "/")
    root = root_of(here, kind)
    target = confined(root, f"{subfolder.rstrip('/')}/{upload.name}" if subfolder else upload.name)
    _check(target.name, upload.path)
    if make is not None:
        write_whole(upload.path, make(here, upload))
    target.parent.mkdir(parents=True, exist_ok=True)
    if upload.fields.get("overwrite", "") not in ("true", "1"):
        target = _free_name(target, upload.path)
    _move(upload.path, target)
    below = os.path.relpath(target.parent, root).replace(os.sep, "/")
    return {"name": target.name, "subfolder": "" if below == "." else below, "type": kind}


def _move(source: Path, target: Path) -> None:
    try:
        replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # another file system
            raise
        write_whole(target, source.read_bytes())


def _check(name: str, path: Path) -> None:
    if not name.isprintable() or name.startswith("."):
        raise FileFormatError(f"A file cannot be called {name[:100]!r}.")
    if not name.lower().endswith(MEDIA_FILES):
        raise FileFormatError(f"{name[:100]} is not named like an image, video or sound file; others are not accepted.")
    if name.lower().endswith(PICTURE_FILES):
        images.size(path, name)


def _free_name(target: Path, received: Path) -> Path:
    """The name if it is free or its file has the same content, else "name (1).png" and so on."""
    for number in range(1, 100_000):
        if not target.exists() or (target.is_file() and filecmp.cmp(target, received, shallow=False)):
            return target
        stem = target.stem if number == 1 else target.stem.rpartition(" (")[0]
        target = target.with_name(f"{stem} ({number}){target.suffix}")
    raise FileFormatError(f"There are too many files called {received.name}.")


def _painted(here: Services, upload: Upload) -> bytes:
    reference = strict_json.loads(upload.fields.get("original_ref", ""), "original_ref")
    if not isinstance(reference, dict) or not isinstance(reference.get("filename"), str):
        raise WorkflowError("original_ref should say which image the mask is for: {filename, subfolder, type}.")
    kind, subfolder = reference.get("type") or "output", reference.get("subfolder") or ""
    assert upload.path is not None
    return images.with_alpha_of(picture_path(here, reference["filename"], str(kind), str(subfolder)), upload.path)


# -- listed ------------------------------------------------------------------------------------------------------------


async def list_files(request: web.Request) -> web.Response:
    """The names directly in a folder, newest first."""
    root = root_of(services(request), request.match_info["kind"])
    return web.json_response(await asyncio.to_thread(_newest_first, root))


def _newest_first(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        found = [(entry.stat().st_mtime, entry.name) for entry in entries if entry.is_file()]
    return [name for _, name in sorted(found, reverse=True) if not name.startswith(".")]


ROUTES: tuple[Route, ...] = (
    ("GET", "/view", view),
    ("POST", "/upload/image", upload_image),
    ("POST", "/upload/mask", upload_mask),
    ("GET", "/internal/files/{kind}", list_files),
)
