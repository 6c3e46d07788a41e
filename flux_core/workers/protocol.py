"""The messages between server and worker, and their frames.

A message is a JSON object, followed by bytes if it carries an image or a body:

    length of the JSON, length of the bytes (4 bytes each, big-endian) | JSON | bytes

The frames use the worker's standard input and output, which are separated from what its code prints.

    server -> worker   {"op": "run", "prompt_id", "prompt", "extra_data", "outputs"}
                       {"op": "interrupt", "prompt_id"}          {"op": "pause", "prompt_id"}
                       {"op": "step_aside", "prompt_id"}         stop between two steps, for other jobs to go first
                       {"op": "free", "unload_models", "free_memory"}
                       {"op": ..., "call": n, ...}               answered by {"reply": n, ...}:
                           "object_info" "validate" "system" "packs" "missing" "budget" "default_workflow"
                           "pack_routes" "alter_prompt", and "route" {"method", "path", "headers"} + body
    worker -> server   {"ready": true}
                       {"event": name, "data", "prompt_id"}      as ComfyUI's websocket names them, or "sluice...."
                       {"preview": {ids}, "image_type"} + bytes
                       {"tell": name, "data", "client_id"}       a node pack to the pages, or a number + bytes
                       {"done": prompt_id, "status", "outputs", "meta", "messages", "paused", "gave_way", "aside",
                           "facts"}
                       {"reply": n, "result"} or {"reply": n, "error", "type"}, of a route + body

A worker on another machine (`sluice work`) sends and is sent the same frames as messages of a WebSocket, and these:

    worker -> server   {"hello": {"name", "session", "clock", "running": {"prompt_id", "attempt"}, and its "identity"}}
                       {"file": {"prompt_id", "attempt", "index", "type", "subfolder", "filename"}, "last"} + bytes
                       {"died": prompt_id, "error", "killed"} or {"unable": prompt_id, "error"} in place of "done"
                       {"drain": true} takes no further job      {"leave": true} and gives its job back
    server -> worker   {"welcome": {"known": whether the session is, "keep": whether its job still counts, "warning"}}
                       {"refused": sentence}                     {"op": "taken", "prompt_id", "attempt"}
                       "run" has in addition "attempt" and "files" [{"folder", "name", "size", "sha256"}]
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from typing import Any, BinaryIO

Message = dict[str, Any]

_LENGTHS = struct.Struct(">II")


class Channel:
    """One end of the connection. Any thread may send; one thread receives."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source, self._sink = source, sink
        self._lock = threading.Lock()

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Send a frame. Raises OSError or ValueError if the other end is closed, TypeError for what is not JSON."""
        frame = frame_of(message, payload)
        with self._lock:
            self._sink.write(frame)
            self._sink.flush()

    def receive(self) -> tuple[Message, bytes]:
        """Receive a frame. Raises EOFError if the other end is closed."""
        text, payload = _LENGTHS.unpack(self._exactly(_LENGTHS.size))
        return json.loads(self._exactly(text)), self._exactly(payload)

    def _exactly(self, count: int) -> bytes:
        data = self._source.read(count)
        if len(data) < count:
            raise EOFError
        return data


def private_pipes() -> Channel:
    """Reserve standard input and output for the frames: what code prints goes to standard error; it reads nothing."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    os.close(empty)
    sys.stdout = sys.stderr
    return Channel(source, sink)


def parsed(frame: bytes) -> tuple[Message, bytes]:
    """The message and the bytes of one whole frame. Raises ValueError for anything else."""
    if len(frame) < _LENGTHS.size:
        raise ValueError("The frame is too short.")
    text, payload = _LENGTHS.unpack_from(frame)
    if len(frame) != _LENGTHS.size + text + payload:
        raise ValueError("The lengths of the frame are wrong.")
    message = json.loads(frame[_LENGTHS.size : _LENGTHS.size + text])
    if not isinstance(message, dict):
        raise ValueError("The message is no object.")
    return message, frame[_LENGTHS.size + text :]


def frame_of(message: Message, payload: bytes = b"") -> bytes:
    """The bytes of one frame. Objects in a node's output that are not JSON are sent as their repr."""
    text = json.dumps(message, default=repr).encode()
    return _LENGTHS.pack(len(text), len(payload)) + text + payload
