"""What the planner is told: matrices in order of use, the rates of a machine, the bytes allowed.

A model is a list of matrices (`units.py` makes it for FLUX), a machine is a handful of rates (`cards.py` has some).
Knows no torch, no file and no decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

MiB, GiB = 2**20, 2**30

RESIDENT, PINNED, PAGEABLE, DISK = "V", "P", "R", "D"
COMPUTE_BOUND, LINK_BOUND, DISK_BOUND = "compute", "link", "disk"


@dataclass(frozen=True)
class Piece:
    """One matrix, as it is stored and streamed, and the work between its first use and the next piece's."""

    name: str
    unit: int  # pieces of one unit share a slab or a slot
    nbytes: int
    flop: float = 0.0  # of the product with it
    attention: float = 0.0  # FLOP of the attention that follows
    traffic: int = 0  # bytes of device memory moved to decode it, 0 when it is multiplied as stored


@dataclass(frozen=True)
class Unit:
    """The matrices that have one home. `order` are positions in the walk."""

    number: int
    order: tuple[int, ...]
    nbytes: int  # sum of the stored pieces
    room: int  # bytes of a slab or slot that takes it, alignment included


@dataclass(frozen=True)
class Workload:
    """One model at one picture size: pieces in order of use, and what else must be on the device meanwhile."""

    name: str
    pieces: tuple[Piece, ...]
    fixed: Mapping[str, int] = field(default_factory=dict)  # purpose -> bytes: activations, small weights, LoRA, ...

    @property
    def fixed_bytes(self) -> int:
        return sum(self.fixed.values())


@dataclass(frozen=True)
class Machine:
    """What the planner must know of a device. Rates in FLOP/s and bytes/s, as reached in practice."""

    gemm: float
    attention: float
    memory: float  # traffic of the device's own memory
    disk: float
    link: float | None = None  # pinned host memory to device; None: no link, disk reads land where they are used
    host_copy: float = 6e9  # pageable RAM to a staging buffer
    latency: float = 2e-5  # of one copy
    alignment: int = 256  # of a piece in its slab
    staging_buffers: int = 4
    staging_bytes: int = 64 * MiB

    def seconds(self, piece: Piece) -> float:
        product = piece.flop / self.gemm
        if piece.traffic:
            product += piece.traffic / self.memory
        else:
            product = max(product, piece.nbytes / self.memory)
        return product + piece.attention / self.attention

    def room(self, nbytes: int) -> int:
        """Bytes a piece takes in a slab. Without a link it is read there in whole disk blocks, starting before it."""
        slack = self.alignment if self.link is None else 0
        return -(-nbytes // self.alignment) * self.alignment + slack


@dataclass(frozen=True)
class Budget:
    """Bytes allowed: `device` for everything on the device, `host` for streamed weights and staging in RAM."""

    device: int
    host: int = 0
    pinned: int = 0  # how much of `host` may be page-locked


def units_of(workload: Workload, machine: Machine) -> tuple[Unit, ...]:
    """The units in order of first use; unit k of the result is what pieces call unit k."""
    order: dict[int, list[int]] = {}
    for position, piece in enumerate(workload.pieces):
        order.setdefault(piece.unit, []).append(position)
    if list(order) != list(range(len(order))):
        raise ValueError("units must be numbered 0, 1, 2, ... in order of first use")
    pieces = workload.pieces
    return tuple(
        Unit(
            number,
            tuple(places),
            sum(pieces[place].nbytes for place in places),
            sum(machine.room(pieces[place].nbytes) for place in places),
        )
        for number, places in order.items()
    )


def fewest_slots(units: Sequence[Unit]) -> int:
    """How many units are in use at once: a ring of fewer slots would wait for itself."""
    edges = sorted(edge for unit in units for edge in ((unit.order[0], 1), (unit.order[-1] + 0.5, -1)))
    most = now = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most


class Walk:
    """Collects pieces in order of use."""

    def __init__(
        self, nbytes: Callable[[str], int], decoded: Callable[[str], bool], batch: int = 1, itemsize: int = 2
    ) -> None:
        self.nbytes, self.decoded, self.batch, self.itemsize = nbytes, decoded, batch, itemsize
        self.pieces: list[Piece] = []
        self.units: dict[str, int] = {}

    def matrix(self, name: str, unit: str, shape: tuple[int, int], tokens: int, attention: float = 0.0) -> None:
        stored, weights = self.nbytes(name), prod(shape)
        number = self.units.setdefault(unit, len(self.units))
        traffic = stored + 2 * self.itemsize * weights if self.decoded(name) else 0  # read it, write and read numbers
        self.pieces.append(Piece(name, number, stored, 2.0 * weights * tokens * self.batch, attention, traffic))

    def chain(self, matrices: Mapping[str, tuple[int, int]], tokens: int, slot: int) -> None:
        """Matrices in order of use, as many neighbours to a unit as fit in a slot of about `slot` bytes."""
        unit, filled = 0, 0
        most = max(slot, max(self.nbytes(name) for name in matrices))
        for name, shape in matrices.items():
            if filled and filled + self.nbytes(name) > most:
                unit, filled = unit + 1, 0
            filled += self.nbytes(name)
            self.matrix(name, f"unit {unit}", shape, tokens)
