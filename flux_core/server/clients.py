"""The browsers and scripts that listen: one websocket each, what they are sent, in which form.

A slow listener never slows anybody else: each has a short queue of its own, and when that is full previews are dropped
first, then the listener itself, which reconnects and asks for the state.

Does not know: jobs, the worker, where messages come from.
"""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from typing import Any

from aiohttp import WSMsgType, web

MAX_WAITING = 2000  # messages; a listener further behind than this is gone or stuck
MAX_WAITING_PREVIEWS = 4
MAX_TEXT = 1 << 20  # bytes a listener may send in one message

_PREVIEW, _TEXT, _PREVIEW_WITH_METADATA = 1, 3, 4
_JPEG, _PNG = 1, 2

SERVER_FEATURES = {"supports_preview_metadata": True, "max_upload_size": 100 << 20}


class Client:
    """One open websocket."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.socket = socket
        self.features: dict[str, Any] = {}
        self.outbox: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self._previews = 0

    def put(self, message: str | bytes) -> None:
        """Queue a message; what cannot be queued any more ends the connection."""
        if isinstance(message, bytes):
            if self._previews >= MAX_WAITING_PREVIEWS:
                return
            self._previews += 1
        elif self.outbox.qsize() > MAX_WAITING:
            self.outbox.put_nowait(None)
            return
        self.outbox.put_nowait(message)

    async def write(self) -> None:
        """Send what is queued, until told to stop."""
        while (message := await self.outbox.get()) is not None:
            if isinstance(message, bytes):
                self._previews -= 1
                await self.socket.send_bytes(message)
            else:
                await self.socket.send_str(message)


class Clients:
    """All open websockets by their id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Client] = {}

    async def serve(self, request: web.Request, greeting: dict[str, Any]) -> web.WebSocketResponse:
        """Answer `GET /ws`: greet, then talk until it closes. A new connection under a known id replaces the old."""
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        socket = web.WebSocketResponse(heartbeat=30, max_msg_size=MAX_TEXT)
        await socket.prepare(request)
        client = Client(socket)
        replaced = self._by_id.get(client_id)
        self._by_id[client_id] = client
        if replaced is not None:
            replaced.outbox.put_nowait(None)
        writing = asyncio.create_task(self._write(client))
        client.put(_text("status", {"status": greeting, "sid": client_id}))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._heard(client, message.data)
        finally:
            writing.cancel()
            if self._by_id.get(client_id) is client:
                del self._by_id[client_id]
        return socket

    async def _write(self, client: Client) -> None:
        try:
            await client.write()
        except (ConnectionError, RuntimeError):
            pass  # it has gone; the reading side notices as well
        await client.socket.close()

    def _heard(self, client: Client, text: str) -> None:
        try:
            message = json.loads(text)
            if message["type"] == "feature_flags":
                client.features = dict(message["data"])
                client.put(_text("feature_flags", SERVER_FEATURES))
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # not for us

    def send(self, event: str, data: Any, client_id: str | None = None) -> None:
        """A message to one client, or to all."""
        text = _text(event, data)
        for client in self._receivers(client_id):
            client.put(text)

    def send_preview(self, ids: dict[str, Any], image_type: str, image: bytes, client_id: str | None) -> None:
        """A preview: with its node's ids to those who said they understand, in the old form to the others."""
        metadata = json.dumps({**ids, "image_type": image_type}).encode()
        new = struct.pack(">II", _PREVIEW_WITH_METADATA, len(metadata)) + metadata + image
        old = struct.pack(">II", _PREVIEW, _PNG if image_type == "image/png" else _JPEG) + image
        for client in self._receivers(client_id):
            client.put(new if client.features.get("supports_preview_metadata") else old)

    def _receivers(self, client_id: str | None) -> list[Client]:
        if client_id is None:
            return list(self._by_id.values())
        return [self._by_id[client_id]] if client_id in self._by_id else []

    def __len__(self) -> int:
        return len(self._by_id)

    async def close(self) -> None:
        """Say goodbye to all."""
        await asyncio.gather(
            *(client.socket.close(code=1001, message=b"The server is going down.") for client in self._receivers(None)),
            return_exceptions=True,
        )


def _text(event: str, data: Any) -> str:
    return json.dumps({"type": event, "data": data})
