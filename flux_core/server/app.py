"""The web application: all routes, each also below /api, behind the guard. Errors are answered as sentences.

    prompts jobs      running prompts               files images       images in and out
    model_routes      nodes and model files         user               the browser's settings and files
    templates frontend   the page                   system             the machine and its log
    app_page             the page for phones

Independent of: what the routes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from ..errors import InputError, MissingFileError, SluiceError, WorkflowError
from ..workers.process import OnMessage, Worker, WorkerDied
from . import (
    app_page,
    compare_routes,
    exact,
    exchange,
    files,
    frontend,
    gallery,
    gallery_changes,
    jobs,
    model_routes,
    pack_routes,
    prompts,
    remote_routes,
    sluice_routes,
    system,
    templates,
    user,
)
from .clients import Clients
from .guard import guard
from .job_runner import JobRunner
from .members import Member
from .services import MAX_UPLOAD, SERVICES, Logs, Services, Settings, refuse, services
from .store import CannotWrite, Store

log = logging.getLogger(__name__)

_ROOMS = (
    prompts,
    jobs,
    exchange,
    files,
    model_routes,
    user,
    templates,
    system,
    sluice_routes,
    exact,
    gallery,
    gallery_changes,
    remote_routes,
    compare_routes,
    app_page,
)
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (WorkflowError, 400),
    (InputError, 403),
    (MissingFileError, 404),
    (CannotWrite, 507),
    (WorkerDied, 503),
    (SluiceError, 500),
)


def build(settings: Settings, store: Store) -> web.Application:
    """The application. It starts the job_runner when it starts, and stops the workers when it is cleaned up."""
    app = web.Application(
        middlewares=[guard(settings.token, settings.hosts), errors_as_sentences, pack_routes.to_packs],
        client_max_size=MAX_UPLOAD,
    )
    clients = Clients()
    logs = Logs(clients)
    alone = len(settings.workers) == 1
    start = {
        name: partial(_worker, options, _say(logs, "" if alone else f"{name}: "))
        for name, options in settings.workers.items()
    }
    job_runner = JobRunner(store, clients, start, settings.folders.user)
    for member in job_runner.members:
        member.taking = not settings.remote_only
    app[SERVICES] = Services(settings, store, clients, job_runner, logs)
    app[remote_routes.REMOTES] = remote_routes.Remotes(app[SERVICES])
    app[gallery.KNOWN] = {}
    app.router.add_get("/ws", websocket)
    app.router.add_get("/api/ws", websocket)
    for room in _ROOMS:
        for method, path, handler in room.ROUTES:
            _add(app, method, path, handler)
            _add(app, method, f"/api{path}", handler)
    for method, path, handler in frontend.ROUTES:  # last: they match any path
        _add(app, method, path, handler)
    app.cleanup_ctx.append(_living)
    return app


def _add(app: web.Application, method: str, path: str, handler: Handler) -> None:
    if method == "GET":
        app.router.add_get(path, handler)  # answers HEAD too
    else:
        app.router.add_route(method, path, handler)


async def websocket(request: web.Request) -> web.StreamResponse:
    """GET /ws?clientId="""
    here = services(request)
    if len(request.query.get("clientId", "")) > 200:
        raise web.HTTPBadRequest(text="The clientId is too long.")
    return await here.clients.serve(request, here.job_runner.announcements.greet)


async def _living(app: web.Application) -> AsyncIterator[None]:
    here = app[SERVICES]
    logging.getLogger().addHandler(here.logs)
    conducting = asyncio.create_task(here.job_runner.run())
    # Started early, so that the worker is ready for the first request.
    starting = [asyncio.create_task(pack_routes.ask_worker(here))]
    starting += [asyncio.create_task(_start(member)) for member in list(here.job_runner.members)[1:]]
    yield
    for task in (conducting, *starting):
        task.cancel()
    await asyncio.gather(conducting, *starting, return_exceptions=True)
    await asyncio.gather(here.clients.close(), here.job_runner.close())
    logging.getLogger().removeHandler(here.logs)


async def _start(member: Member) -> None:
    with contextlib.suppress(SluiceError):  # the next request to this worker reports it again
        await member.worker.call("system")


def _worker(options: Mapping[str, Any], say: Callable[[str], None], heard: OnMessage) -> Worker:
    return Worker(options, heard, say)


def _say(logs: Logs, before: str) -> Callable[[str], None]:
    def say(line: str) -> None:
        print(before + line, flush=True)
        logs.add(before + line)

    return say


@web.middleware
async def errors_as_sentences(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors are answered as JSON with a sentence; unexpected ones are also logged in full."""
    try:
        return await handler(request)
    except (web.HTTPException, asyncio.CancelledError, ConnectionError):
        raise
    except SluiceError as error:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        return refuse(status, str(error), type(error).__name__)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return refuse(507, f"The disk is full: {error.filename or 'a file'} could not be written.", "disk_full")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return refuse(403, f"{error.filename or 'A file'} may not be used: {error.strerror}.", "no_permission")
        if error.errno in (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.ENOENT):
            return refuse(400, f"The name cannot be used: {error.strerror}.")
        log.exception("%s %s", request.method, request.path)
        return refuse(500, f"The system refused: {error.strerror}.", "system_error")
    except Exception as error:
        log.exception("%s %s", request.method, request.path)
        return refuse(500, f"Unexpected: {type(error).__name__}. The server's log has more.", "unexpected")
