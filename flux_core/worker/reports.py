"""What the worker sends to the server while a job runs: events, progress, previews, images, messages of node packs."""

from __future__ import annotations

import json
from typing import Any

from ..graph.execute import Executor
from ..images.previews import Throttle, jpeg
from ..io import png, strict_json
from ..workers.protocol import Channel, Message
from .measure import Measure


class Reports:
    """Sends what the engine, the nodes and the packs of one worker report. `executor` is set once it exists."""

    executor: Executor

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.throttle = Throttle()
        self.measure = Measure()  # of the running job

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Send an event of the engine."""
        self.measure.look()
        if event == "preview":
            kind, image = data.pop("image")
            self.channel.send({"preview": data, "image_type": kind}, image)
            return
        self.channel.send({"event": event, "data": data})
        if event == "executing":
            self.measure.began(data["node"])
        elif event == "progress" and (step := self.measure.stepped(data)) is not None:
            self.channel.send({"event": "sluice.step", "data": step})

    def ran(self, event: dict[str, Any], on_card: bool) -> None:
        """Send an event of a model. on_card: whether its memory is a card's."""
        if event["type"] == "memory.job":
            self.measure.ran(event["peak_bytes"], on_card)
        self.channel.send({"event": f"sluice.{event['type']}", "data": event})

    def progressed(self, done: int, total: int, preview: Any = None) -> None:
        """A node has finished a step."""
        image = None if preview is None else self.throttle.make(preview)
        self.executor.progress(done, total, None if image is None else ("image/jpeg", image))

    def send(self, image: Any, number: int, total: int) -> None:
        """Send an image of a node to the client that queued the job."""
        self.executor.progress(number, total, ("image/png", png.encode(image)))

    def previewed(self, make: Any) -> Any:
        """A pack's preview, encoded for a progress event; None if the previous one is too recent."""
        image = self.throttle.make(make)
        return None if image is None else ("image/jpeg", image)

    def tell(self, event: Any, data: Any, client_id: str | None) -> None:
        """Send a pack's message to the pages. Images are shown as previews of the running node."""
        if isinstance(data, tuple) and len(data) > 1 and hasattr(data[1], "convert"):
            self.executor.preview(("image/jpeg", jpeg(data[1])))
            return
        message: Message = {"tell": event, "client_id": client_id}
        if isinstance(data, (bytes, bytearray)):
            self.channel.send(message, bytes(data))
        else:
            plain = json.loads(json.dumps(data, default=repr))
            self.channel.send({**message, "data": json.loads(strict_json.dumps(plain))})

    def interrupted(self) -> bool:
        """Raise Interrupted if the running job must stop; else False."""
        self.executor.check_interrupted()
        return False
