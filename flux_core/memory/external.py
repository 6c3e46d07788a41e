"""The interface of an external allocator of device memory: in ComfyUI its model management; standalone there is none.

A client is one model's weights on a device. It is registered once, requests memory before it allocates, and frees
memory when the allocator calls `release`, at any moment between two steps.
"""

from __future__ import annotations

from typing import Any, Protocol


class Client(Protocol):
    """The weights of one model."""

    @property
    def label(self) -> str: ...

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights."""
        ...

    @property
    def held_bytes(self) -> int:
        """Bytes of device memory in use now."""
        ...

    def release(self, nbytes: int) -> int:
        """Free at least `nbytes`, or everything. Returns how many bytes were freed."""
        ...


class ExternalAllocator(Protocol):
    """Divides a device's memory among its clients: frees memory of some when others need it."""

    @property
    def device(self) -> str:
        """The device's name."""
        ...

    @property
    def spare_bytes(self) -> int:
        """Bytes to leave free for allocations that are not requested."""
        ...

    def admit(self, client: Client) -> Any:
        """Register a client. It keeps the returned allocation as long as it exists; the allocator has no reference."""
        ...

    def make_room(self, allocation: Any, weights: int, working: int) -> int:
        """Free memory for `weights` bytes of weights in all and `working` of activations. Returns the bytes granted."""
        ...

    def free(self, nbytes: int) -> None:
        """Free memory, as far as possible, for something that is no client."""
        ...
