"""Agreement of all devices on whether a piece of work is done, so that one of them may run out of memory.

A device that repeats a block alone would exchange other tensors than its partners. So before every message all devices
say whether they still can; one that has run out of memory says no, and then all of them raise `AgreedOutOfMemory`,
free memory and begin the block again. It costs one number per message.

Uses no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .wire import Shape, Wire

Result = TypeVar("Result")


class AgreedOutOfMemory(torch.OutOfMemoryError):
    """A device has run out of memory; raised on all devices."""


class Agreement:
    """One device's part in the agreement of a team."""

    def __init__(self, everybody: Wire) -> None:
        self._wire = everybody

    @property
    def seconds(self) -> float:
        """Seconds spent in it so far."""
        return self._wire.seconds

    def confirm(self) -> None:
        """Confirm that this device succeeded. Raises AgreedOutOfMemory if another one did not."""
        if self._failures(0.0):
            raise AgreedOutOfMemory("Another device has run out of memory.")

    def of(self, work: Callable[[], Result]) -> Result:
        """Do a piece of work that all devices do. Raises AgreedOutOfMemory on all of them if one runs out of memory."""
        try:
            made = work()
        except AgreedOutOfMemory:
            raise
        except torch.OutOfMemoryError as error:
            self._failures(1.0)
            raise AgreedOutOfMemory(str(error)) from None
        self.confirm()
        return made

    def _failures(self, own: float) -> int:
        return int(self._wire.reduce(torch.tensor([own])).item())


class AgreeingWire:
    """A transport that sends nothing before all devices of the team have confirmed."""

    def __init__(self, wire: Wire, agreement: Agreement) -> None:
        self.rank, self.size, self.sent = wire.rank, wire.size, wire.sent
        self._wire, self._agreement = wire, agreement

    @property
    def seconds(self) -> float:
        return self._wire.seconds

    def _confirm(self, x: Tensor) -> None:
        if x.device.type != "meta":
            self._agreement.confirm()

    def exchange(self, out: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        self._confirm(out[0])
        return self._wire.exchange(out, shapes)

    def gather(self, own: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        self._confirm(own)
        return self._wire.gather(own, shapes)

    def reduce(self, x: Tensor) -> Tensor:
        self._confirm(x)
        return self._wire.reduce(x)

    def shift(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Callable[[], list[Tensor]]:
        self._confirm(parts[0])
        return self._wire.shift(parts, shapes)
