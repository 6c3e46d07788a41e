"""Routes that node packs add: a request that matches one of theirs and none of ours is answered by the worker.

Our own routes come first; the editor's files, which may have any path, and substitutes for a pack come last. Each route
of a pack exists with and without /api, as in ComfyUI. The guard has checked the request before.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from aiohttp import web
from aiohttp.typedefs import Handler

from ..errors import SluiceError
from . import exchange, frontend
from .services import MAX_UPLOAD, Services, refuse, services


async def ask_worker(here: Services) -> None:
    """Ask the worker which packs were loaded and which routes they have. A failure is repeated at the next request."""
    worker = here.job_runner.worker
    try:
        with contextlib.suppress(SluiceError):
            here.packs = await worker.call("packs")
            found = await worker.call("pack_routes")
            here.pack_routes = [(route["method"], re.compile(route["pattern"])) for route in found["routes"]]
            here.packs_see_prompts = found["on_prompt"]
    finally:
        here.packs_known.set()


@web.middleware
async def to_packs(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The middleware."""
    here = services(request)
    found = request.match_info
    yielding = (frontend.part, frontend.extension, *exchange.HANDLERS)
    ours = found.http_exception is None and found.handler not in yielding
    if ours or frontend.has(request.path):
        return await handler(request)
    await here.packs_known.wait()
    path = request.path.removeprefix("/api") or "/"
    matches = (pattern for method, pattern in here.pack_routes if method in ("*", _plain(request.method)))
    if not any(pattern.fullmatch(path) for pattern in matches):
        return await handler(request)
    if (request.content_length or 0) > MAX_UPLOAD:
        return refuse(413, f"A request to a node pack has at most {MAX_UPLOAD >> 20} MiB.", "too_large")
    whole = path + (f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else "")
    headers = [(name, value) for name, value in request.headers.items()]
    asked = here.job_runner.worker.call_route(request.method, whole, headers, await request.read())
    answer, body = await asyncio.shield(asked)
    response = web.Response(status=answer["status"], body=body)
    for name, value in answer["headers"]:
        if name.lower() == "content-type":
            response.headers["Content-Type"] = value
        else:
            response.headers.add(name, value)
    return response


def _plain(method: str) -> str:
    return "GET" if method == "HEAD" else method
