"""Routes that describe the machine and the server's features, and send its log."""

from __future__ import annotations

import asyncio
import platform
import sys

import psutil
from aiohttp import web

from ..errors import SluiceError
from . import frontend
from .clients import SERVER_FEATURES
from .services import TERMINAL, Json, Route, Services, json_object, services

# The release of ComfyUI whose protocol this server has; clients compare it with the release that they need.
COMFYUI_VERSION = "0.3.64"
PATIENCE = 2.0  # seconds to wait for the worker's description of its devices


async def system_stats(request: web.Request) -> web.Response:
    """Operating system, memory and devices. Devices are listed once the worker has imported torch."""
    here = services(request)
    memory = psutil.virtual_memory()
    found = await _worker_report(here)
    system: Json = {
        "os": platform.system().lower(),
        "ram_total": memory.total,
        "ram_free": memory.available,
        "comfyui_version": COMFYUI_VERSION,
        "required_frontend_version": frontend.version() or "",
        "installed_templates_version": "",
        "required_templates_version": "",
        "python_version": sys.version,
        "pytorch_version": found.get("torch", ""),
        "embedded_python": False,
        "argv": ["sluice", *here.settings.argv],
    }
    return web.json_response({"system": system, "devices": found.get("devices", [])})


async def _worker_report(here: Services) -> Json:
    try:
        report: Json = await asyncio.wait_for(here.job_runner.worker.call("system"), PATIENCE)
        return report
    except (SluiceError, asyncio.TimeoutError):
        return {}


async def features(request: web.Request) -> web.Response:
    """The features that this server supports."""
    return web.json_response(SERVER_FEATURES)


# -- the log -----------------------------------------------------------------------------------------------------------


async def log_text(request: web.Request) -> web.Response:
    """The last lines of the log as one text."""
    return web.json_response("".join(f"{entry['t']} - {entry['m']}" for entry in services(request).logs.entries))


async def log_entries(request: web.Request) -> web.Response:
    """The last lines of the log, each with its time."""
    return web.json_response({"entries": list(services(request).logs.entries), "size": TERMINAL})


async def subscribe(request: web.Request) -> web.Response:
    """{"enabled": bool, "clientId": id}: whether new lines are sent to this client."""
    here, body = services(request), await json_object(request)
    client_id = body.get("clientId")
    here.logs.listeners.intersection_update(here.clients.ids)
    if isinstance(client_id, str) and body.get("enabled") and client_id in here.clients:
        here.logs.listeners.add(client_id)
    elif isinstance(client_id, str):
        here.logs.listeners.discard(client_id)
    return web.Response()


ROUTES: tuple[Route, ...] = (
    ("GET", "/system_stats", system_stats),
    ("GET", "/features", features),
    ("GET", "/internal/logs", log_text),
    ("GET", "/internal/logs/raw", log_entries),
    ("PATCH", "/internal/logs/subscribe", subscribe),
)
