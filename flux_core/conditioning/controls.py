"""ControlNets in a CONDITIONING: `control` refers to the one applied last, which refers to those before it.

Independent of networks, noise schedules and latent sizes: sampling/controls.py fits the images to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from .entries import Conditioning


class ControlNetwork(Protocol):
    """The value of a CONTROL_NET link, as far as sampling uses it."""

    @property
    def weights(self) -> Any:
        """Identifies the network among those of a run: `weights.key` is its name in the inputs of the model."""
        ...

    @property
    def modes(self) -> tuple[int, ...]:
        """The numbers of the image types of a union ControlNet."""
        ...

    def hint(self, picture: Tensor, mask: Tensor | None, autoencoder: Any, height: int, width: int) -> Tensor:
        """The control input for a latent of height x width cells, on the CPU. Raises InputError."""
        ...


@dataclass(frozen=True, eq=False)
class ControlUse:
    """A ControlNet with its image.

    image           [B, H, W, C >= 3] in 0..1
    strength        factor of its residuals
    start, end      active from `start` to `end` of the way from noise to image, 0..1
    autoencoder     encodes the image, for networks that take a latent
    mask            [B, 1, H', W'], 1 = keep the image; for networks that take one
    levels          the same range as noise levels, the higher one first, instead of start and end
    previous        another ControlNet, whose residuals are added
    """

    network: ControlNetwork
    picture: Tensor
    strength: float
    start: float = 0.0
    end: float = 1.0
    autoencoder: Any = None
    mask: Tensor | None = None
    levels: tuple[float, float] | None = None
    previous: ControlUse | None = None

    def chain(self) -> list[ControlUse]:
        """All ControlNets that are applied together, in the order in which they were added."""
        return [*([] if self.previous is None else self.previous.chain()), self]


def with_control(conditionings: Sequence[Conditioning], use: ControlUse, to_others: bool) -> list[Conditioning]:
    """Every entry of every conditioning, with this ControlNet after the existing ones.

    to_others: conditionings of the same guider that have no ControlNet get it too.
    """
    after: dict[int, ControlUse] = {}  # one for each previous ControlNet, so that images are fitted once

    def applied(values: dict[str, Any]) -> dict[str, Any]:
        previous = values.get("control")
        made = after.setdefault(id(previous), replace(use, previous=previous))
        return {**values, "control": made, "control_apply_to_uncond": to_others}

    return [[[tokens, applied(values)] for tokens, values in conditioning] for conditioning in conditionings]
