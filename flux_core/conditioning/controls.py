"""ControlNets as a CONDITIONING carries them: under `control`, the one applied last, which knows those before it.

Uses no network, no noise schedule and no latent size: sampling/controls.py fits the images to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from .entries import Conditioning


class ControlNetwork(Protocol):
    """What a CONTROL_NET wire carries, as far as sampling asks it."""

    @property
    def weights(self) -> Any:
        """Names the network among those of a run: `weights.key` is its name in the inputs of the model."""
        ...

    @property
    def modes(self) -> tuple[int, ...]:
        """Numbers of the kinds of images that a union ControlNet is told."""
        ...

    def hint(self, picture: Tensor, mask: Tensor | None, autoencoder: Any, height: int, width: int) -> Tensor:
        """What the network is shown at a latent of height x width cells, on the CPU. Raises InputError."""
        ...


@dataclass(frozen=True, eq=False)
class ControlUse:
    """A ControlNet with the image it follows.

    image         [B, H, W, C >= 3] in 0..1
    strength        what its residuals are multiplied by
    start, end      active from `start` to `end` of the way from noise to image, 0..1
    autoencoder     encodes the image, for networks that take a latent
    mask            [B, 1, H', W'], 1 = keep the image; for networks that take one
    levels          the same as noise levels, the higher one first, in place of start and end
    previous        another one, which is added to it
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
        """All that are applied together, in the order in which they were."""
        return [*([] if self.previous is None else self.previous.chain()), self]


def with_control(conditionings: Sequence[Conditioning], use: ControlUse, to_others: bool) -> list[Conditioning]:
    """Every entry of every conditioning with this ControlNet after those it has.

    to_others: conditionings of the same guider that have none of their own get it too.
    """
    after: dict[int, ControlUse] = {}  # one for each that came before, so that images are fitted once

    def applied(values: dict[str, Any]) -> dict[str, Any]:
        previous = values.get("control")
        made = after.setdefault(id(previous), replace(use, previous=previous))
        return {**values, "control": made, "control_apply_to_uncond": to_others}

    return [[[tokens, applied(values)] for tokens, values in conditioning] for conditioning in conditionings]
