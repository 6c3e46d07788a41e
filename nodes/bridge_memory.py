"""Our weights on ComfyUI's ledger: ComfyUI as a allocator (flux_core/memory/external.py).

Every client gets a patcher that owns no weights. What ComfyUI asks of it before it decides, and what it then orders,
goes on to the client. So ComfyUI sees how much we hold and takes it back as from its own models: under pressure, on
/free, when a run is out of memory. Nothing of ComfyUI is changed, and nobody is thrown out by us.
"""

from __future__ import annotations

import sys
import weakref
from functools import cache
from typing import Any

from ..flux_core.memory.external import Client

ENDLESS = 2**62  # bytes


class ComfyUIMemory:
    """ComfyUI's model management, asked for room."""

    @property
    def device(self) -> str:
        place = _management().get_torch_device()
        return str(place) if place.type in ("cpu", "cuda") else "cpu"

    @property
    def spare_bytes(self) -> int:
        return int(_management().extra_reserved_memory())

    def admit(self, client: Client) -> Any:
        return _lease_class()(client)

    def make_room(self, allocation: Any, weights: int, working: int) -> int:
        allocation.wanted = weights
        _management().load_models_gpu([allocation], memory_required=working, minimum_memory_required=working)
        return int(allocation.granted)

    def free(self, nbytes: int) -> None:
        management = _management()
        management.free_memory(nbytes + management.extra_reserved_memory(), management.get_torch_device())


def tell_the_page(event: dict[str, Any]) -> None:
    """What our memory manager reports goes to the memory panel of every page that is open."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.send_sync(f"sluice.{event['type']}", event)


def _management() -> Any:
    import comfy.model_management

    return comfy.model_management


@cache
def _lease_class() -> Any:
    import torch
    from comfy.model_patcher import ModelPatcher

    class Lease(ModelPatcher):  # type: ignore[misc]
        """The entry of one client on the ledger."""

        def __init__(self, client: Client) -> None:
            self._lodger = weakref.ref(client)
            self.wanted, self.granted = client.total_bytes, 0
            named = type(f"Sluice_{client.label.replace(' ', '_')}", (torch.nn.Module,), {})  # for ComfyUI's log
            management = _management()
            super().__init__(named(), management.get_torch_device(), torch.device("cpu"), size=max(1, self.wanted))

        # What ComfyUI asks before it decides

        def model_size(self) -> int:
            return max(self.wanted, self.loaded_size(), 1)

        def loaded_size(self) -> int:
            client = self._lodger()
            return 0 if client is None else client.held_bytes

        def current_loaded_device(self) -> Any:
            return self.load_device if self.loaded_size() else self.offload_device

        def model_dtype(self) -> Any:
            return None

        def lowvram_patch_counter(self) -> int:
            return 0

        def model_patches_to(self, device: Any) -> None:
            pass

        def model_patches_models(self) -> list[Any]:
            return []

        def clone(self, *args: Any, **kwargs: Any) -> Any:
            raise TypeError("This stands for memory on ComfyUI's ledger; it is no model that could be patched.")

        # What it then orders

        def partially_load(self, device_to: Any, extra_memory: float = 0, *args: Any, **kwargs: Any) -> int:
            """A promise: the weights come when they are used."""
            self.granted = self.loaded_size() + int(min(extra_memory, ENDLESS))
            return 0

        def partially_unload(self, device_to: Any, memory_to_free: float = 0, *args: Any, **kwargs: Any) -> int:
            client = self._lodger()
            return 0 if client is None else client.release(int(min(memory_to_free, ENDLESS)))

        def detach(self, unpatch_all: bool = True) -> Any:
            if unpatch_all:
                self.partially_unload(self.offload_device, ENDLESS)
            return self.model

        def __del__(self) -> None:
            """There is nothing to unload."""

    return Lease
