"""The editor's page: the files of the package comfyui-frontend-package, which is located but never imported.

index.html                  requested again on each visit
assets/NAME-HASH.js         cached by browsers without limit: other content has another name
extensions/sluice/...       our own scripts, and those of node packs
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import cache
from html import escape
from pathlib import Path

from aiohttp import web

from ..errors import InputError
from ..io.folders import confined
from .model_routes import extension_file, send_page_part
from .services import Route, refuse, services

PACKAGE = "comfyui-frontend-package"
HOW_TO_INSTALL = "The editor is not installed. Install it with: pip install 'sluice[app]'"
_FOREVER = "public, max-age=31536000, immutable"
# Hides the button for an account, which this server does not have.
_STYLE = '[data-testid="login-button"] { display: none !important }\n'


@cache
def static() -> Path | None:
    """The folder of the page; None if the package is not installed."""
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    places = list(found.submodule_search_locations or ()) if found is not None else []
    folder = Path(places[0]) / "static" if places else None
    return folder if folder is not None and (folder / "index.html").is_file() else None


def has(path: str) -> bool:
    """Whether the page has a file at this path of the address."""
    folder = static()
    return folder is not None and (path == "/" or confined(folder, path.lstrip("/")).is_file())


@cache
def version() -> str | None:
    """The version of the installed package."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


async def index(request: web.Request) -> web.StreamResponse:
    """The page, or instructions for installing it."""
    folder = static()
    if folder is None:
        text = f"<!doctype html><meta charset=utf-8><title>Sluice</title><p>{escape(HOW_TO_INSTALL)}</p>"
        return web.Response(text=text, content_type="text/html", status=503)
    headers = {"Cache-Control": "no-cache", "Content-Type": "text/html; charset=utf-8"}
    return web.FileResponse(folder / "index.html", headers=headers)


async def user_style(request: web.Request) -> web.Response:
    """/user.css: our one rule, then the user's own."""
    own = services(request).profile / "user.css"
    text = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
    return web.Response(text=_STYLE + text, content_type="text/css", headers={"Cache-Control": "no-cache"})


async def extension(request: web.Request) -> web.StreamResponse:
    """A file of our extension or of a pack's, or else one of the page's own."""
    try:
        return await extension_file(request)
    except (FileNotFoundError, InputError):
        return await part(request)


async def part(request: web.Request) -> web.StreamResponse:
    """Any other file of the page."""
    folder = static()
    path = None if folder is None else confined(folder, request.path.lstrip("/") or "index.html")
    if folder is None or path is None or not path.is_file():
        return refuse(404, f"There is nothing at {request.path[:200]}.", "not_found")
    if path.name == "index.html":
        return await index(request)
    response = send_page_part(request, path)
    if path.is_relative_to(folder / "assets"):
        response.headers["Cache-Control"] = _FOREVER
    return response


ROUTES: tuple[Route, ...] = (
    ("GET", "/", index),
    ("GET", "/user.css", user_style),
    ("GET", "/api/user.css", user_style),
    ("GET", "/extensions/{pack}/{path:.+}", extension),
    ("GET", "/api/extensions/{pack}/{path:.+}", extension),
    ("GET", "/{path:.*}", part),
)
