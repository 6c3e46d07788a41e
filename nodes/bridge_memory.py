"""ComfyUI's model management as the external allocator of our models (flux_core/memory/external.py).

Each client is registered with a patcher that owns no weights and passes ComfyUI's calls on to the client
(bridge_patcher.py). So ComfyUI sees how much memory we hold, and frees it like memory of its own models: when memory is
short, on /free, when a run is out of memory. ComfyUI is not changed, and we do not unload its models ourselves.
"""

from __future__ import annotations

import sys
from typing import Any

from ..flux_core.memory.external import Client


class ComfyUIMemory:
    """ComfyUI's model management as an external allocator."""

    @property
    def device(self) -> str:
        place = _management().get_torch_device()
        return str(place) if place.type in ("cpu", "cuda") else "cpu"

    @property
    def spare_bytes(self) -> int:
        return int(_management().extra_reserved_memory())

    def admit(self, client: Client) -> Any:
        from .bridge_patcher import MemoryPatcher

        return MemoryPatcher(client)

    def make_room(self, allocation: Any, weights: int, working: int) -> int:
        allocation.wanted = weights
        _management().load_models_gpu([allocation], memory_required=working, minimum_memory_required=working)
        return int(allocation.granted)

    def free(self, nbytes: int) -> None:
        management = _management()
        management.free_memory(nbytes + management.extra_reserved_memory(), management.get_torch_device())


def tell_the_page(event: dict[str, Any]) -> None:
    """Send an event of our memory manager to the memory panel of all open pages."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.send_sync(f"sluice.{event['type']}", event)


def _management() -> Any:
    import comfy.model_management

    return comfy.model_management
