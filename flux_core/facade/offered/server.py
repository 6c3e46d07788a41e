"""server: PromptServer.instance, through which packs add routes and send messages to the pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ..engine import current
from ..offered_modules import NotOffered
from ..partly_offered import PartlyOffered
from ..routes import PackRoutes

__all__ = ["BinaryEventTypes", "PromptServer", "is_loopback"]


class BinaryEventTypes:
    PREVIEW_IMAGE = 1
    UNENCODED_PREVIEW_IMAGE = 2
    TEXT = 3
    PREVIEW_IMAGE_WITH_METADATA = 4


def is_loopback(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", "::1")


class _Instance(PartlyOffered):
    """PromptServer.instance: created at the first use."""

    @property
    def instance(cls) -> PromptServer:
        made: PromptServer = current().keep("PromptServer", PromptServer)
        return made


class PromptServer(metaclass=_Instance):
    """The server for packs. The server process receives requests, and passes those for packs' routes on to this one."""

    address, port = "127.0.0.1", 8188

    def __init__(self) -> None:
        self.pack_routes = PackRoutes()
        self.routes = self.pack_routes.table
        self.app = self.pack_routes.app
        self.prompt_queue = _PromptQueue()
        self.on_prompt_handlers: list[Callable[[Any], Any]] = []
        self.supports = ["custom_nodes_from_web"]
        self.number = 0
        self.sockets: dict[str, Any] = {}
        self.sockets_metadata: dict[str, Any] = {}

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.pack_routes.loop

    @property
    def client_id(self) -> str | None:
        """The client that queued the running prompt."""
        return current().client_id

    @property
    def last_prompt_id(self) -> str | None:
        return current().prompt_id

    @property
    def last_node_id(self) -> str | None:
        """The node that is running."""
        from ...graph.execute import current_call

        call = current_call.get()
        return call[0] if call else None

    def add_on_prompt_handler(self, handler: Callable[[Any], Any]) -> None:
        """handler(request) -> request, for every prompt that is queued, before it is checked."""
        self.on_prompt_handlers.append(handler)

    def trigger_on_prompt(self, json_data: Any) -> Any:
        """A request as the handlers change it. A handler that fails changes nothing."""
        import traceback

        for handler in self.on_prompt_handlers:
            try:
                json_data = handler(json_data)
            except Exception:
                traceback.print_exc()
        return json_data

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        """Send a message to one page, or to all. A preview is (format, image, longest side)."""
        current().tell(event, data, sid)

    async def send(self, event: Any, data: Any, sid: str | None = None) -> None:
        self.send_sync(event, data, sid)

    send_json = send

    def send_progress_text(self, text: Any, node_id: str, sid: str | None = None) -> None:
        """A line shown in a node."""
        said = text if isinstance(text, str) else bytes(text).decode(errors="replace")
        current().tell(BinaryEventTypes.TEXT, {"node_id": node_id, "text": said}, sid)

    def get_queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": self.prompt_queue.get_tasks_remaining()}}

    def queue_updated(self) -> None:
        """Does nothing: the server informs the pages itself."""

    def __getattr__(self, name: str) -> Any:
        raise NotOffered(f"PromptServer.instance.{name}")


class _PromptQueue:
    """The queue in this process: only the running prompt."""

    @property
    def currently_running(self) -> dict[int, Any]:
        """{0: (number, id, prompt, extra data, outputs)} while a prompt runs."""
        engine = current()
        if engine.prompt_id is None:
            return {}
        return {0: (0, engine.prompt_id, engine.prompt, {"client_id": engine.client_id}, [])}

    def get_tasks_remaining(self) -> int:
        return len(self.currently_running)

    def get_current_queue(self) -> tuple[list[Any], list[Any]]:
        return list(self.currently_running.values()), []

    def __getattr__(self, name: str) -> Any:
        raise NotOffered(f"PromptServer.instance.prompt_queue.{name} (the queue belongs to the server process)")
