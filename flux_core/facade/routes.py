"""Routes of packs, answered in the process that runs packs. The server process receives requests and passes them on.

A request arrives as plain data; it is sent as HTTP over a private pair of sockets to an aiohttp application with the
packs' routes. Answers are returned in full: no websockets, no streams.

Independent of: the pack of a route, how requests reach this process.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ..errors import SluiceError

MAX_BODY = 100 << 20  # bytes of one request
_SECONDS = 600.0  # for an answer; some routes load models
_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "content-length", "host", "accept-encoding"}


@dataclass(frozen=True)
class Answer:
    """The answer of a route."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class PackRoutes:
    """`table` and `app` collect routes until `start`; then an event loop of its own answers them."""

    def __init__(self) -> None:
        self.table = web.RouteTableDef()
        self.app = web.Application(client_max_size=MAX_BODY)
        self.loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None

    def start(self) -> list[dict[str, str]]:
        """Start to answer the routes that packs have added. Returns them: [{"method", "pattern"}]."""
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._start(), self.loop).result()
        return _described(self.app)

    async def _start(self) -> None:
        self.app.add_routes(self.table)
        self._runner = web.AppRunner(self.app, access_log=None, handle_signals=False)
        await self._runner.setup()

    def answer(self, method: str, path: str, headers: Sequence[Sequence[str]], body: bytes) -> Answer:
        """Answer one request. May be called from any thread except the loop's. Raises SluiceError."""
        ours, theirs = socket.socketpair()
        connection = http.client.HTTPConnection("localhost", timeout=_SECONDS)
        try:
            asyncio.run_coroutine_threadsafe(self._accept(theirs), self.loop).result()
            connection.sock = ours
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in _kept(headers):
                connection.putheader(name, value)
            connection.putheader("Host", "localhost")
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, _kept(answer.getheaders()), answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise SluiceError(f"The node pack's route {path} gave no answer: {error}") from error
        finally:
            connection.close()
            ours.close()

    async def _accept(self, connected: socket.socket) -> None:
        assert self._runner is not None and self._runner.server is not None
        await self.loop.connect_accepted_socket(self._runner.server, connected)

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine in the loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()


def _kept(headers: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in _HOP]


def _described(app: web.Application) -> list[dict[str, str]]:
    """Method and regular expression of each route."""
    import re

    found = []
    for route in app.router.routes():
        info: Mapping[str, Any] = route.resource.get_info() if route.resource is not None else {}
        if "pattern" in info:
            pattern = info["pattern"].pattern
        elif "prefix" in info:
            pattern = re.escape(info["prefix"]) + "/.*"
        else:
            pattern = re.escape(str(info.get("path", "")))
        if route.method != "HEAD":
            found.append({"method": route.method, "pattern": pattern})
    return found
