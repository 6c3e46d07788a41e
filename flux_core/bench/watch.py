"""What a server tells a page while jobs run: the messages of a websocket, with the time at which each came."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp

from ..errors import SluiceError
from .server import Server

PATIENCE = 3600.0  # seconds after which something has gone wrong


class Watch:
    """The messages of one websocket, with the time of each."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[Any], client_id: str) -> None:
        self.client_id, self._socket = client_id, socket
        self.heard: list[tuple[float, str, Mapping[str, Any]]] = []
        self._new = asyncio.Event()
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                event = message.json()
                self.heard.append((time.monotonic(), event["type"], event["data"]))
                self._new.set()

    async def node(self, prompt_id: str, node: str | None) -> float:
        """When a node of a job began; None: when the job ended. Raises SluiceError if it ends before."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self._new.clear()
            for when, kind, data in self.heard:
                if kind == "executing" and data.get("prompt_id") == prompt_id and data["node"] in (node, None):
                    if data["node"] == node:
                        return when
                    raise SluiceError(f"The job ended before its node {node}: {self._last_words(prompt_id)}")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._new.wait(), 1.0)
        raise SluiceError(f"The job did not come to {node or 'its end'} within {PATIENCE:.0f} seconds.")

    def nodes(self, prompt_id: str) -> list[tuple[str, float]]:
        """The nodes that began, with their times."""
        return [
            (data["node"], when) for when, kind, data in self.heard
            if kind == "executing" and data.get("prompt_id") == prompt_id and data["node"]
        ]  # fmt: skip

    def ended(self, prompt_id: str) -> float | None:
        """When a job ended, None while it has not."""
        for when, kind, data in self.heard:
            if kind == "executing" and data.get("prompt_id") == prompt_id and data["node"] is None:
                return when
        return None

    def _last_words(self, prompt_id: str) -> str:
        said = [data for _, kind, data in self.heard if kind == "execution_error" and data["prompt_id"] == prompt_id]
        return said[-1]["exception_message"].strip() if said else "no error was told"

    async def close(self) -> None:
        await self._socket.close()
        await self._task


async def watching(server: Server) -> Watch:
    """The messages that a server sends from now on; waits for a server that is being started."""
    client_id = uuid.uuid4().hex
    while True:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            address = server.url(f"/ws?{urlencode({'clientId': client_id})}")
            return Watch(await server.session.ws_connect(address, max_msg_size=0), client_id)
        await asyncio.sleep(0.05)
