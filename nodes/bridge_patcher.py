"""The patcher that represents the memory of one of our models in ComfyUI's model management (bridge_memory.py)."""

from __future__ import annotations

import weakref
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch

from ..flux_core.memory.external import Client

ENDLESS = 2**62  # bytes


class MemoryPatcher(comfy.model_patcher.ModelPatcher):  # type: ignore[misc]
    """Owns no weights; passes ComfyUI's calls about memory on to a client."""

    def __init__(self, client: Client) -> None:
        self._client = weakref.ref(client)
        self.wanted, self.granted = client.total_bytes, 0
        named = type(f"Sluice_{client.label.replace(' ', '_')}", (torch.nn.Module,), {})  # for ComfyUI's log
        super().__init__(
            named(), comfy.model_management.get_torch_device(), torch.device("cpu"), size=max(1, self.wanted)
        )

    # What ComfyUI reads before it decides

    def model_size(self) -> int:
        return max(self.wanted, self.loaded_size(), 1)

    def loaded_size(self) -> int:
        client = self._client()
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
        raise TypeError("This patcher only represents memory; it is not a model that can be patched.")

    # What ComfyUI then calls

    def partially_load(self, device_to: Any, extra_memory: float = 0, *args: Any, **kwargs: Any) -> int:
        """Loads nothing: weights are loaded when they are used."""
        self.granted = self.loaded_size() + int(min(extra_memory, ENDLESS))
        return 0

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, *args: Any, **kwargs: Any) -> int:
        client = self._client()
        return 0 if client is None else client.release(int(min(memory_to_free, ENDLESS)))

    def detach(self, unpatch_all: bool = True) -> Any:
        if unpatch_all:
            self.partially_unload(self.offload_device, ENDLESS)
        return self.model

    def __del__(self) -> None:
        """Nothing to unload."""
