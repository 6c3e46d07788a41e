"""Who else hands out a device's memory: inside ComfyUI its model management, in a program of our own nobody.

A client is what one model has on a device. It is told to the allocator once, asks for room before it takes any, and
gives some back when it is told to, at any moment between two steps. Knows no torch and no ComfyUI.
"""

from __future__ import annotations

from typing import Any, Protocol


class Client(Protocol):
    """The weights of one model."""

    @property
    def label(self) -> str: ...

    @property
    def total_bytes(self) -> int:
        """If all of it were on the device."""
        ...

    @property
    def held_bytes(self) -> int:
        """Of the device, now."""
        ...

    def release(self, nbytes: int) -> int:
        """Give back at least so many bytes, or all there is. Returns how many."""
        ...


class ExternalAllocator(Protocol):
    """Keeps a ledger of who holds what, and takes from one what another needs."""

    @property
    def device(self) -> str:
        """Where models compute."""
        ...

    @property
    def spare_bytes(self) -> int:
        """To be left free, for what nobody has told of."""
        ...

    def admit(self, client: Client) -> Any:
        """A allocation: the client keeps it as long as it lives. The allocator keeps neither of the two alive."""
        ...

    def make_room(self, allocation: Any, weights: int, working: int) -> int:
        """Have others give way to so many bytes of weights in all, and of activations. Returns the bytes granted."""
        ...

    def free(self, nbytes: int) -> None:
        """Have others give way to something that stays off the ledger, as far as they can."""
        ...
