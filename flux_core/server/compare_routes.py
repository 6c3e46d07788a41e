"""Comparisons made by `sluice compare` in output/compare: viewed, voted on blindly, counted, exported.

GET  /sluice/compare                            the page
GET  /sluice/comparisons                        [{"name", "settings", "prompts", "images", "votes"}]
POST /sluice/comparisons/draw                   {"comparison", "voter"} -> {"pair", "prompt", "left", "right"} or {}
POST /sluice/comparisons/vote                   {"pair", "choice": "left" | "right" | "same"}
GET  /sluice/comparisons/pairs/{id}/{side}      an image of a pair; its address does not tell the setting
GET  /sluice/comparisons/{name}/votes           the rates with their intervals
GET  /sluice/comparisons/{name}/votes.csv       every vote
GET  /sluice/comparisons/{name}/files/{path}    the files of the comparison: index.html and the images
"""

from __future__ import annotations

import csv
import io
import json
import random
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import InputError, MissingFileError
from ..io.folders import confined
from .services import Json, Route, Services, json_object, services
from .votes import LEFT, SAME, Votes

RESULTS = "results.json"
LONGEST_NAME = 200
_PAGE = Path(__file__).resolve().parents[2] / "web" / "compare"


async def page(request: web.Request) -> web.StreamResponse:
    """The page for voting."""
    return web.FileResponse(_PAGE / "index.html", headers={"Cache-Control": "no-cache"})


async def script(request: web.Request) -> web.StreamResponse:
    """The script of the page."""
    headers = {"Cache-Control": "no-cache", "Content-Type": "text/javascript"}
    return web.FileResponse(_PAGE / "vote.mjs", headers=headers)


async def comparisons(request: web.Request) -> web.Response:
    """The comparisons that have images, newest first."""
    here = services(request)
    with _votes(here) as votes:
        described = [_told(folder, votes) for folder in _folders(here)]
    return web.json_response([one for one in described if one is not None])


async def draw(request: web.Request) -> web.Response:
    """The next pair for a person."""
    here, body = services(request), await json_object(request)
    name, voter = _text(body, "comparison"), _text(body, "voter")
    results = _results(_folder(here, name))
    made = [(image["setting"], image["prompt"], image["seed"]) for image in results["images"]]
    with _votes(here) as votes:
        pair = votes.draw(name, voter, made, random.SystemRandom())
        done = sum(one.voter == voter and one.choice is not None for one in votes.pairs(name))
    if pair is None:
        return web.json_response({"judged": done})
    address = f"/sluice/comparisons/pairs/{pair.id}"
    answer = {"pair": pair.id, "prompt": results["prompts"][pair.prompt], "judged": done}
    return web.json_response({**answer, "left": f"{address}/left", "right": f"{address}/right"})


async def vote(request: web.Request) -> web.Response:
    """Store a choice for a pair."""
    here, body = services(request), await json_object(request)
    if not isinstance(body.get("pair"), int):
        raise InputError("A vote names its pair by number.")
    with _votes(here) as votes:
        votes.vote(body["pair"], _text(body, "choice"))
    return web.json_response({})


async def image(request: web.Request) -> web.StreamResponse:
    """One image of a pair. Nothing in the response tells which setting it is from, and its workflow is removed."""
    here = services(request)
    number, side = request.match_info["id"], request.match_info["side"]
    with _votes(here) as votes:
        pair = votes.pair(int(number) if number.isdecimal() and len(number) < 18 else -1)
    folder = _folder(here, pair.comparison)
    wanted = pair.left if side == LEFT else pair.right
    for made in _results(folder)["images"]:
        if (made["setting"], made["prompt"], made["seed"]) == (wanted, pair.prompt, pair.seed):
            return web.Response(body=_plain(confined(folder, made["file"])), content_type="image/png")
    raise MissingFileError("The image of this pair no longer exists.")


async def counted(request: web.Request) -> web.Response:
    """How often each setting was preferred."""
    here, name = services(request), request.match_info["name"]
    settings = _results(_folder(here, name))["settings"]
    with _votes(here) as votes:
        rates = votes.rates(name, len(settings))
        voters = sorted({pair.voter for pair in votes.pairs(name) if pair.choice is not None})
    rows = [
        {"name": one["name"], "words": one["words"], **asdict(found)}
        for one, found in zip(settings, rates, strict=True)
    ]
    return web.json_response({"settings": rows, "voters": voters})


async def exported(request: web.Request) -> web.Response:
    """Every vote as a line of CSV."""
    here, name = services(request), request.match_info["name"]
    results = _results(_folder(here, name))
    names = [one["name"] for one in results["settings"]]
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["voter", "prompt", "seed", "left", "right", "choice", "preferred", "milliseconds"])
    with _votes(here) as votes:
        for pair in votes.pairs(name):
            if pair.choice is not None:
                left, right = names[pair.left], names[pair.right]
                preferred = "" if pair.choice == SAME else left if pair.choice == LEFT else right
                prompt = results["prompts"][pair.prompt]
                table.writerow([pair.voter, prompt, pair.seed, left, right, pair.choice, preferred, pair.voted])
    headers = {"Content-Disposition": 'attachment; filename="votes.csv"'}
    return web.Response(text=text.getvalue(), content_type="text/csv", headers=headers)


async def file(request: web.Request) -> web.StreamResponse:
    """A file of the comparison."""
    folder = _folder(services(request), request.match_info["name"])
    path = confined(folder, request.match_info["path"])
    if path.suffix not in (".html", ".png", ".json") or not path.is_file():
        raise MissingFileError(f"There is no file {request.match_info['path'][:100]!r} in this comparison.")
    return web.FileResponse(path, headers={"Cache-Control": "no-cache"})


def _votes(here: Services) -> _Open:
    return _Open(here.folders.user / "sluice" / "votes.db")


class _Open:
    """The votes, opened for one request: a comparison may still be in progress in another process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Votes:
        try:
            self._opened = Votes(self._path)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"The votes {self._path} cannot be opened: {error}.") from error
        return self._opened

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _folders(here: Services) -> list[Path]:
    root = here.folders.output / "compare"
    found = [file.parent for file in root.glob(f"*/{RESULTS}")] if root.is_dir() else []
    return sorted(found, key=lambda folder: -(folder / RESULTS).stat().st_mtime)


def _folder(here: Services, name: str) -> Path:
    folder = confined(here.folders.output / "compare", name)
    if not (folder / RESULTS).is_file():
        raise MissingFileError(
            f"There is no comparison {name[:100]!r} in {folder.parent}. Make one with sluice compare."
        )
    return folder


def _results(folder: Path) -> Json:
    try:
        results: Json = json.loads((folder / RESULTS).read_bytes())
        _ = results["settings"], results["prompts"], results["images"]
        return results
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / RESULTS} contains no comparison: {error}.") from error


def _told(folder: Path, votes: Votes) -> Json | None:
    try:
        results = _results(folder)
    except InputError:
        return None
    counted = sum(pair.choice is not None for pair in votes.pairs(folder.name))
    names = [one["name"] for one in results["settings"]]
    return {
        "name": folder.name, "settings": names, "prompts": len(results["prompts"]),
        "images": len(results["images"]), "votes": counted,
    }  # fmt: skip


def _text(body: Json, key: str) -> str:
    value: Any = body.get(key)
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME:
        raise InputError(f"{key} is a text of 1 to {LONGEST_NAME} letters.")
    return value.strip()


def _plain(path: Path) -> bytes:
    """The PNG without its texts, which name the setting."""
    from PIL import Image

    data = io.BytesIO()
    with Image.open(path) as opened:
        opened.convert("RGB").save(data, "PNG", compress_level=1)
    return data.getvalue()


ROUTES: tuple[Route, ...] = (
    ("GET", "/sluice/compare", page),
    ("GET", "/sluice/compare/vote.mjs", script),
    ("GET", "/sluice/comparisons", comparisons),
    ("POST", "/sluice/comparisons/draw", draw),
    ("POST", "/sluice/comparisons/vote", vote),
    ("GET", "/sluice/comparisons/pairs/{id}/{side:left|right}", image),
    ("GET", "/sluice/comparisons/{name}/votes", counted),
    ("GET", "/sluice/comparisons/{name}/votes.csv", exported),
    ("GET", "/sluice/comparisons/{name}/files/{path:.+}", file),
)
