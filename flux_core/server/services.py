"""What all routes share: the settings of the server and its long-lived objects.

Independent of: any route.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import WorkflowError
from ..io import strict_json
from ..io.folders import Folders
from .clients import Clients
from .job_runner import JobRunner
from .remote import LEASE_SECONDS
from .store import Store

Json = dict[str, Any]
Route = tuple[str, str, Any]  # method, path, handler

MAX_UPLOAD = 100 << 20  # bytes of one file
LOG_LINES = 500
AT_ONCE = 2  # images that are decoded at the same time


@dataclass(frozen=True)
class Settings:
    """The settings from the command line."""

    folders: Folders
    workers: Mapping[str, Mapping[str, Any]]  # name of each -> its options, see flux_core/worker/main.py
    token: str | None = None
    hosts: tuple[str, ...] = ()  # names of this server besides localhost
    argv: tuple[str, ...] = ()
    remote_only: bool = False  # whether this machine's workers only answer calls
    lease: float = LEASE_SECONDS


class Logs(logging.Handler):
    """The last lines of the log of server and workers, for the editor's console panel."""

    def __init__(self, clients: Clients) -> None:
        super().__init__()
        self.entries: deque[Json] = deque(maxlen=LOG_LINES)
        self.listeners: set[str] = set()
        self._clients = clients

    def emit(self, record: logging.LogRecord) -> None:
        self.add(self.format(record))

    def add(self, line: str) -> None:
        """Store a line and send it to subscribers."""
        entry = {"t": time.strftime("%Y-%m-%dT%H:%M:%S"), "m": line + "\n"}
        self.entries.append(entry)
        for client_id in self.listeners:
            self._clients.send("logs", {"entries": [entry], "size": TERMINAL}, client_id)


TERMINAL = {"cols": 120, "rows": 40}


@dataclass
class Services:
    """All objects that routes use."""

    settings: Settings
    store: Store
    clients: Clients
    job_runner: JobRunner
    logs: Logs
    packs: list[Json] = field(default_factory=list)  # results of importing node packs, once they are known
    pack_routes: list[tuple[str, re.Pattern[str]]] = field(default_factory=list)  # method and path of each of theirs
    packs_see_prompts: bool = False
    packs_known: asyncio.Event = field(default_factory=asyncio.Event)  # set at once without packs
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    storing: asyncio.Lock = field(default_factory=asyncio.Lock)  # two uploads must not choose the same name
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)  # one scan of the output folder at a time

    def __post_init__(self) -> None:
        if not any(options.get("node_packs") for options in self.settings.workers.values()):
            self.packs_known.set()

    @property
    def folders(self) -> Folders:
        return self.settings.folders

    @property
    def profile(self) -> Path:
        """The folder of the single user, in ComfyUI's place."""
        return self.folders.user / "default"


SERVICES = web.AppKey("services", Services)


def services(request: web.Request) -> Services:
    """The services of the server that answers this request."""
    return request.app[SERVICES]


def refuse(status: int, message: str, kind: str = "invalid_request") -> web.Response:
    """An error in the form of POST /prompt."""
    error = {"type": kind, "message": message, "details": "", "extra_info": {}}
    return web.json_response({"error": error, "node_errors": {}}, status=status)


async def json_body(request: web.Request, otherwise: Any = None) -> Any:
    """The JSON of a request; `otherwise` for an empty body. Raises WorkflowError, HTTPRequestEntityTooLarge."""
    if (request.content_length or 0) > strict_json.MAX_BYTES:
        raise web.HTTPRequestEntityTooLarge(strict_json.MAX_BYTES, request.content_length or 0)
    body = await request.read()
    if not body and otherwise is not None:
        return otherwise
    return strict_json.loads(body, "The body of the request")


async def json_object(request: web.Request, otherwise: Json | None = None) -> Json:
    """Like `json_body`, for objects."""
    body = await json_body(request, otherwise)
    if not isinstance(body, dict):
        raise WorkflowError("The body of the request should be a JSON object.")
    return body


def texts(value: Any) -> list[str]:
    """The texts in a list of a request; [] for anything else."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def whole(request: web.Request, name: str, otherwise: int | None = None) -> int | None:
    """A whole number of the query. Raises HTTPBadRequest for other values."""
    given = request.query.get(name, "")
    if not given:
        return otherwise
    digits = given[1:] if given[0] == "-" else given
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 16):
        raise web.HTTPBadRequest(text=f"{name} should be a whole number, not {given[:50]!r}.")
    return int(given)


def flag(request: web.Request, name: str) -> bool:
    """A true or false of the query."""
    return request.query.get(name, "").lower() in ("true", "1", "yes")
