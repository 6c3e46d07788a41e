"""What several devices together would take for a step: each one's share of the work, and the exchange between them.

A step of a device is its own products and attention, then the bytes that leave it. Nothing of the exchange is hidden
behind work, as nothing of it is in tokens.py and sharded.py. With one rate and one latency for a system this gives
published runs on two cards within 5 % (tests/pure/test_predict.py). Uses no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..memory.plan import Plan
from ..memory.workload import DISK_BOUND, LINK_BOUND, Workload
from .split import Sizes, Split, exchanged_bytes, gathered_bytes

EXCHANGE_BOUND = "exchange"
LATENCY = 2e-4  # seconds of a message through the host's memory, with the question whether all can go on; assumed
_BY_TOKENS = ("activations", "workspace", "inputs as integers")  # of a workload's fixed bytes
_BY_ROWS = ("decoding",)


@dataclass(frozen=True)
class Exchange:
    """What leaves a device in a step, in bytes and messages, and how fast: bytes/s and seconds a message."""

    nbytes: float
    messages: int
    rate: float
    latency: float = LATENCY

    @property
    def seconds(self) -> float:
        return self.nbytes / self.rate + self.messages * self.latency


@dataclass(frozen=True)
class Step:
    """A step of one device of several: its plan, what it exchanges, its seconds, and what bounds them."""

    plan: Plan
    exchange: Exchange
    seconds: float
    bound: str


def part_of(workload: Workload, tokens: float, rows: float) -> Workload:
    """What a device with these shares of the tokens and of the matrices' rows does and holds.

    Rows are divided in products only: attention is computed whole by each device, because its inputs are gathered.
    """

    def fixed(purpose: str, nbytes: int) -> int:
        return int(nbytes * (tokens if purpose in _BY_TOKENS else rows if purpose in _BY_ROWS else 1.0))

    return replace(
        workload,
        weights=tuple(replace(weight, nbytes=-int(-weight.nbytes * rows // 1)) for weight in workload.weights),
        schedule=tuple(
            replace(
                use,
                products=use.products * tokens * rows,
                integers=use.integers * tokens * rows,
                transposed=use.transposed * tokens * rows,
                numbers=use.numbers * rows,
                moved=use.moved * tokens,
                side=use.side * tokens,
                attention=use.attention * tokens,
                traffic=int(use.traffic * rows),
            )
            for use in workload.schedule
        ),
        fixed={purpose: fixed(purpose, nbytes) for purpose, nbytes in workload.fixed.items()},
    )


def step_of(plan: Plan, exchange: Exchange) -> Step:
    """plan: of a device's part. What is exchanged goes over the link that weights stream over, and in both directions
    through the host's memory."""
    machine = plan.machine
    found = {
        EXCHANGE_BOUND: plan.compute_seconds + exchange.seconds,
        plan.bound: plan.seconds,
        LINK_BOUND: (plan.streamed_bytes + exchange.nbytes) / machine.link if machine.link else 0.0,
        DISK_BOUND: plan.disk_bytes / machine.disk,
    }
    bound = max(found, key=lambda name: found[name])
    if bound == EXCHANGE_BOUND and exchange.seconds < plan.compute_seconds / 2:
        return Step(plan, exchange, found[bound], "compute")
    return Step(plan, exchange, found[bound], bound)


def shares_by_speed(seconds: Sequence[float]) -> tuple[float, ...]:
    """The share of the tokens for each device, given the seconds that it computes for all of them."""
    speeds = [1 / one for one in seconds]
    return tuple(speed / sum(speeds) for speed in speeds)


def of_tokens(shares: Sequence[float], config: Sizes, batch: int, tokens: int, itemsize: int) -> tuple[float, int]:
    """Bytes and messages of the device that sends most, where tokens and heads are divided by these shares (Ulysses).

    A device with the share s sends three times s (1 - s) of all tokens' numbers and gets its results back for as many.
    """
    blocks = config.depth + config.depth_single
    whole = exchanged_bytes(Split(2), blocks, batch, tokens, config.hidden, itemsize)  # 4 s (1 - s) of it for halves
    return max(4 * share * (1 - share) for share in shares) * whole, 2 * blocks + 1


def of_rows(devices: int, config: Sizes, batch: int, tokens: int, itemsize: int) -> tuple[float, int]:
    """Bytes and messages of each device, where the rows of eight matrices a double block, and two a single one, are."""
    split = Split(1, devices)
    return gathered_bytes(split, config, batch, tokens, itemsize), 8 * config.depth + 2 * config.depth_single
