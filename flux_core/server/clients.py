"""The connected browsers and scripts: one websocket each, the messages they are sent, and in which form.

A slow client does not slow down others, because each has a queue of its own. If the queue grows, previews are left out;
if it is full, the connection is closed, and a client that connects again is sent the current state.

Contains nothing about jobs or the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import WSMsgType, web

from ..errors import WorkflowError
from ..io import strict_json

MAX_WAITING = 2000  # messages; a client further behind than this has gone or hangs
MAX_WAITING_PREVIEWS = 4
MAX_HEARD = 1 << 20  # bytes of one message from a client
HEARTBEAT = 30.0  # seconds without an answer after which a client counts as gone

_PREVIEW, _TEXT, _PREVIEW_WITH_METADATA = 1, 3, 4
_JPEG, _PNG = 1, 2

SERVER_FEATURES = {
    "supports_preview_metadata": True,
    "supports_progress_text_metadata": True,
    "max_upload_size": 100 << 20,
}

Message = str | bytes


class Client:
    """One open websocket."""

    def __init__(self, client_id: str, socket: web.WebSocketResponse) -> None:
        self.id = client_id
        self.socket = socket
        self.features: dict[str, Any] = {}
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._previews = 0
        self._writing = asyncio.create_task(self._write())

    def understands(self, feature: str) -> bool:
        """Whether the client declared this feature."""
        return bool(self.features.get(feature))

    def put(self, message: Message) -> None:
        """Queue a message. Never waits."""
        if isinstance(message, bytes):
            if self._previews < MAX_WAITING_PREVIEWS:
                self._previews += 1
                self._outbox.put_nowait(message)
        elif self._outbox.qsize() < MAX_WAITING:
            self._outbox.put_nowait(message)
        else:
            self.end()

    def end(self) -> None:
        """Stop writing, which closes the connection."""
        self._writing.cancel()

    async def _write(self) -> None:
        try:
            while True:
                message = await self._outbox.get()
                if isinstance(message, bytes):
                    self._previews -= 1
                    await self.socket.send_bytes(message)
                else:
                    await self.socket.send_str(message)
        except (ConnectionError, RuntimeError, asyncio.CancelledError):
            pass  # it is gone, or too slow, or has been replaced
        with contextlib.suppress(ConnectionError, RuntimeError, asyncio.TimeoutError):
            await asyncio.wait_for(self.socket.close(), 1.0)


class Clients:
    """All open websockets by their id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Client] = {}

    async def serve(self, request: web.Request, greet: Callable[[Client], None]) -> web.WebSocketResponse:
        """Answer `GET /ws` until the connection closes. A new connection with a known id replaces the old one."""
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT, max_msg_size=MAX_HEARD, timeout=1.0)
        await socket.prepare(request)
        client = Client(client_id, socket)
        replaced = self._by_id.get(client_id)
        self._by_id[client_id] = client
        if replaced is not None:
            replaced.end()
        greet(client)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    _heard(client, message.data)
        finally:
            client.end()
            if self._by_id.get(client_id) is client:
                del self._by_id[client_id]
        return socket

    def send(self, event: str, data: Any, client_id: str | None = None) -> None:
        """Send a message to one client, or to all."""
        receivers = self._receivers(client_id)
        if receivers:
            message = text(event, data)
            for client in receivers:
                client.put(message)

    def send_preview(
        self, ids: dict[str, Any], image_type: str, image: bytes, client_id: str | None, asked: bool = False
    ) -> None:
        """Send an image: with its node's ids to clients that declared the feature, in the old form to others.

        The others get PNGs alone, which nodes send as results, unless they `asked` for previews with their job:
        previews of steps are JPEGs, and scripts that do not know of them take them for results.
        """
        metadata = json.dumps({**ids, "image_type": image_type}).encode()
        new = struct.pack(">II", _PREVIEW_WITH_METADATA, len(metadata)) + metadata + image
        old = struct.pack(">II", _PREVIEW, _PNG if image_type == "image/png" else _JPEG) + image
        for client in self._receivers(client_id):
            if client.understands("supports_preview_metadata"):
                client.put(new)
            elif asked or image_type == "image/png":
                client.put(old)

    def send_node_text(self, prompt_id: str, node_id: str, said: str, client_id: str | None) -> None:
        """Send a line to show inside a node, only to clients that support it: scripts take binary frames for images."""
        prompt, node = prompt_id.encode(), node_id.encode()
        frame = struct.pack(">II", _TEXT, len(prompt)) + prompt + struct.pack(">I", len(node)) + node + said.encode()
        for client in self._receivers(client_id):
            if client.understands("supports_progress_text_metadata"):
                client.put(frame)

    def send_for_pack(self, event: Any, data: Any, payload: bytes, client_id: str | None) -> None:
        """Send a node pack's message: data, bytes with one of ComfyUI's type numbers, or a line inside a node."""
        if event == _TEXT and isinstance(data, dict):
            self.send_node_text("", str(data.get("node_id")), str(data.get("text")), client_id)
        elif isinstance(event, int):
            for client in self._receivers(client_id):
                client.put(struct.pack(">I", event) + payload)
        else:
            self.send(str(event), data, client_id)

    def _receivers(self, client_id: str | None) -> list[Client]:
        if client_id is None:
            return list(self._by_id.values())
        return [self._by_id[client_id]] if client_id in self._by_id else []

    @property
    def ids(self) -> set[str]:
        """The ids of all clients."""
        return set(self._by_id)

    def __contains__(self, client_id: str) -> bool:
        return client_id in self._by_id

    async def close(self) -> None:
        """Close all connections."""
        goodbye = b"The server is going down."
        goodbyes = [client.socket.close(code=1001, message=goodbye) for client in self._by_id.values()]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*goodbyes, return_exceptions=True), 0.3)


def text(event: str, data: Any) -> str:
    """A message as it is sent."""
    try:
        return json.dumps({"type": event, "data": data}, allow_nan=False)
    except ValueError:  # a node showed a number that JavaScript cannot read
        return strict_json.dumps({"type": event, "data": data})


def _heard(client: Client, said: str) -> None:
    """Handle a client's message; the only kind declares which features it supports."""
    try:
        message = strict_json.loads(said)
    except WorkflowError:
        return
    if isinstance(message, dict) and message.get("type") == "feature_flags" and isinstance(message.get("data"), dict):
        client.features = message["data"]
        client.put(text("feature_flags", SERVER_FEATURES))
