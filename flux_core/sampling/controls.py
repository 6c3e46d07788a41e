"""ControlNets of conditions, fitted to one run: the image to the latent's size, the range to noise levels.

Uses no network.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..conditioning.controls import ControlUse
from ..errors import InputError
from ..images.resize import repeat_to_batch
from ..models.denoiser_inputs import ControlInput
from .schedule import Sampling

if TYPE_CHECKING:
    from .conditions import Canvas, Condition


@dataclass(frozen=True)
class Control:
    """One ControlNet of a condition, ready for a run. weights: identifies the network; hint: on the device."""

    weights: Any
    modes: tuple[int, ...]
    hint: Tensor
    strength: float
    start: float  # active while end <= sigma <= start
    end: float

    def active(self, sigma: float | None) -> bool:
        """Whether it is active at this noise level; None: at any."""
        return sigma is None or self.end <= sigma <= self.start

    def input(self, batch: int) -> ControlInput:
        hint = self.hint if self.hint.shape[0] == 1 else repeat_to_batch(self.hint, batch)
        return ControlInput(self.weights.key, hint, self.strength, self.modes)


def control_of(values: Mapping[str, Any]) -> ControlUse | None:
    """The ControlNets of one entry. Raises InputError for one of another program."""
    use = values.get("control")
    if use is not None and hasattr(use, "control_use"):  # an object of a node pack
        use = use.control_use()
    if use is None or isinstance(use, ControlUse):
        return use
    raise InputError(
        "The conditioning contains a ControlNet that was loaded by another program, which this sampler cannot apply. "
        "Load and apply it with the nodes of Sluice."
    )


def share_with_others(lists: Sequence[list[Condition]]) -> None:
    """Add ControlNets of the first list to the others, in place, if the node that applied them requires it.

    Lists that have ControlNets are not changed. Entries with an area neither provide nor get any.
    """
    given = [c.control for c in lists[0] if c.area is None and c.control is not None and c.control_for_others]
    for other in lists[1:]:
        whole = [number for number, c in enumerate(other) if c.area is None]
        if not given or not whole or any(other[number].control is not None for number in whole):
            continue
        for turn, control in enumerate(given):
            number = whole[turn % len(whole)]
            other[number] = replace(other[number], control=control)


def fit_controls(lists: Sequence[list[Condition]], canvas: Canvas, sampling: Sampling) -> list[list[Condition]]:
    """The conditions with their ControlNets ready. Each image is fitted and encoded once per size."""
    hints: dict[Hashable, Tensor] = {}

    def fitted(condition: Condition) -> Condition:
        if condition.control is None:
            return condition
        area = condition.area
        size = (canvas.height, canvas.width) if area is None else (area.height, area.width)
        ready = [_ready(use, size, canvas, sampling, hints) for use in condition.control.chain()]
        return replace(condition, control=None, controls=tuple(ready))

    return [[fitted(condition) for condition in conditions] for conditions in lists]


def _ready(
    use: ControlUse, size: tuple[int, int], canvas: Canvas, sampling: Sampling, hints: dict[Hashable, Tensor]
) -> Control:
    key = use.network.weights, id(use.picture), id(use.mask), id(use.autoencoder), size
    if key not in hints:
        hint = use.network.hint(use.picture, use.mask, use.autoencoder, *size)
        hints[key] = hint.to(canvas.device, canvas.dtype)
    network, levels = use.network, use.levels
    if levels is None:
        levels = _level(sampling, use.start), _level(sampling, use.end)
    return Control(network.weights, network.modes, hints[key], use.strength, *levels)


def _level(sampling: Sampling, share: float) -> float:
    """In float32, like the levels with which it is compared."""
    return torch.tensor(sampling.percent_to_sigma(share)).item()
