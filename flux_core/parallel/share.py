"""What one device of a team computes, as its runtime needs it: its share of the tokens and its rows of the matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .agree import AgreeingWire, Agreement
from .sharded import WeightSharing
from .split import Split
from .tokens import TokenSharing
from .wire import GlooWire, Wire, wrong_partners


@dataclass(frozen=True)
class DeviceShare:
    """tokens: None if this device has all of them. weights: None if it has them whole.

    agreement: with the devices that compute the same evaluations, about what fails here; None if there are none.
    """

    split: Split
    rank: int
    tokens: TokenSharing | None
    weights: WeightSharing | None
    agreement: Agreement | None

    def exchange_seconds(self) -> float:
        """Seconds of exchange with the devices that compute the same evaluations so far, waiting included."""
        wires = [each.wire for each in (self.tokens, self.weights) if each is not None]
        return sum(wire.seconds for wire in wires) + (self.agreement.seconds if self.agreement is not None else 0.0)


def joined(
    store: Any, split: Split, rank: int, shares: int | Sequence[float], device: torch.device, seconds: float
) -> tuple[DeviceShare, list[int]]:
    """Join a team, whose processes all call this: the share, and the devices whose messages arrive changed.

    store: a torch.distributed.Store that all of them share. shares: relative speeds of the sequence group, or its size.
    seconds: until a process that is silent counts as lost.
    """
    everybody = GlooWire(store, "all", rank, split.size, seconds)
    wrong = wrong_partners(everybody, device)
    cfg_rank, member = divmod(rank, split.group)
    if split.group == 1:
        return DeviceShare(split, rank, None, None, None), wrong
    same = everybody if split.cfg == 1 else GlooWire(store, f"cfg{cfg_rank}", member, split.group, seconds)
    agreement = Agreement(same)

    def group(name: str, member: int, size: int) -> Wire:
        return AgreeingWire(GlooWire(store, f"{name} of {cfg_rank}", member, size, seconds), agreement)

    sp_rank, tp_rank = divmod(member, split.tp)
    tokens = weights = None
    if split.sp > 1:
        tokens = TokenSharing(group(f"sp{tp_rank}", sp_rank, split.sp), split, shares)
    if split.tp > 1:
        weights = WeightSharing(group(f"tp{sp_rank}", tp_rank, split.tp))
    return DeviceShare(split, rank, tokens, weights, agreement), wrong
