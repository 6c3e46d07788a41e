"""The planner's input: weights, the schedule of their uses, a machine's rates, the budget.

A model is a list of weights and a list of their uses, which a dry run observes; a machine is a set of rates (cards.py
has some). Pure data: no torch, no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

MiB, GiB = 2**20, 2**30
SLOT_BYTES = 16 * MiB  # bytes of a group for models without blocks; a larger weight is a group of its own

# of the time of a step; `decoding` is reading, for matrices that are multiplied as they are stored
PARTS = "products", "transposed products", "decoding", "attention", "small products", "other operations"
COMPUTE_BOUND, LINK_BOUND, DISK_BOUND = "compute", "link", "disk"


class Location(Enum):
    """Where the weights of a group are between two uses. The letter is used in maps and records."""

    DEVICE = "V"  # they stay on the device
    PINNED = "P"  # page-locked RAM, copied from directly
    PAGEABLE = "R"  # ordinary RAM, copied through a staging buffer
    DISK = "D"

    @classmethod
    def of(cls, letters: str) -> tuple[Location, ...]:
        """The locations for letters like "VVD"."""
        return tuple(cls(letter) for letter in letters)


IN_RAM = (Location.PINNED, Location.PAGEABLE)


def letters(locations: Iterable[Location]) -> str:
    return "".join(location.value for location in locations)


@dataclass(frozen=True)
class Weight:
    """One matrix in its stored format."""

    name: str
    group: int  # weights of one group are in one slab, or in one slot
    nbytes: int


@dataclass(frozen=True)
class Use:
    """One use of a weight, and the work until the next use."""

    weight: int  # the weight's number
    products: float = 0.0  # FLOP of matrix products
    attention: float = 0.0  # FLOP of attention
    traffic: int = 0  # bytes of device memory read and written to decode it; 0 if it is multiplied as stored
    integers: float = 0.0  # operations of products in 8-bit integers
    transposed: float = 0.0  # FLOP of products with the transposed matrix, of a backward pass
    numbers: float = 0.0  # of the matrix
    moved: float = 0.0  # bytes that other operations read and write: norms, activations, sums
    side: float = 0.0  # bytes that products of two activations or with small matrices read and write: LoRAs
    calls: float = 0.0  # operations that are called


@dataclass(frozen=True)
class ObservedUse:
    """One use of a weight as observed by a dry run (runtime/dry_run.py): its name, and the work until the next use."""

    name: str
    products: float
    attention: float
    integers: float = 0.0  # operations of products in 8-bit integers
    transposed: float = 0.0  # FLOP of products with the transposed matrix, of a backward pass
    numbers: float = 0.0  # of the matrix
    moved: float = 0.0  # bytes that other operations read and write
    side: float = 0.0  # bytes that products without a weight of the model read and write
    calls: float = 0.0  # operations that are called


@dataclass(frozen=True)
class Group:
    """Weights that have one location."""

    number: int
    weights: tuple[int, ...]
    nbytes: int  # sum of the stored weights
    room: int  # bytes they need in a slab or slot, with alignment


@dataclass(frozen=True)
class Workload:
    """One model at one image size: its weights, how a step uses them, and what else must be on the device.

    The schedule repeats every step. A weight may occur in it more than once: shared by several layers, or used again in
    a backward pass.
    """

    name: str
    weights: tuple[Weight, ...]
    schedule: tuple[Use, ...]
    fixed: Mapping[str, int] = field(default_factory=dict)  # purpose -> bytes: activations, small weights, LoRA, ...

    @property
    def fixed_bytes(self) -> int:
        return sum(self.fixed.values())

    @property
    def repeats(self) -> bool:
        """Whether a weight is used more than once in a step."""
        return len(self.schedule) > len(self.weights)


@dataclass(frozen=True)
class FewRows:
    """The time of a product with few rows: `number` seconds for each number of the matrix, however many rows there are,
    and its FLOP at the rate `flop`."""

    number: float
    flop: float

    def seconds(self, numbers: float, flop: float) -> float:
        return numbers * self.number + flop / self.flop


@dataclass(frozen=True)
class Machine:
    """A device's rates, in FLOP/s and bytes/s as reached in practice, and its alignment and staging.

    The last five are measured for training only. Where they are None, the work is not counted.
    """

    gemm: float
    attention: float
    memory: float  # of the device's own memory
    disk: float
    link: float | None = None  # pinned host memory to device; None: no link, files are read straight into slabs
    host_copy: float = 6e9  # pageable RAM to a staging buffer
    latency: float = 2e-5  # of one copy
    alignment: int = 256  # of a weight in its slab
    staging_buffers: int = 4
    staging_bytes: int = 64 * MiB
    integers: float | None = None  # operations/s of products in 8-bit integers; None: the same as for other products
    transposed: float | None = None  # FLOP/s of products with a transposed matrix; None: the same as for other products
    few_rows: FewRows | None = None  # where a product with few rows takes longer than its FLOP take
    few_rows_transposed: FewRows | None = None
    elementwise: float | None = None  # bytes/s of operations that are not products
    side: float | None = None  # bytes/s of products with thin matrices, as those of LoRAs
    call: float | None = None  # seconds to call an operation, however small; None where kernels run meanwhile

    def seconds(self, use: Use, nbytes: int) -> float:
        """Seconds of one use of a weight of `nbytes` stored bytes."""
        return sum(self.parts(use, nbytes))

    def parts(self, use: Use, nbytes: int) -> tuple[float, float, float, float, float, float]:
        """The seconds of `seconds` in the order of PARTS."""
        forward, backward = self._products(use)
        forward += use.integers / (self.integers or self.gemm)
        decoding = use.traffic / self.memory if use.traffic else max(0.0, nbytes / self.memory - forward - backward)
        side = use.side / self.side if self.side else 0.0
        others = (use.moved / self.elementwise if self.elementwise else 0.0) + use.calls * (self.call or 0.0)
        return forward, backward, decoding, use.attention / self.attention, side, others

    def _products(self, use: Use) -> tuple[float, float]:
        """Seconds of the products with numbers: with matrices, and with the transposed matrix."""
        forward, backward = use.products / self.gemm, use.transposed / (self.transposed or self.gemm)
        if use.transposed and self.few_rows_transposed:
            backward = max(backward, self.few_rows_transposed.seconds(use.numbers, use.transposed))
        elif not use.transposed and self.few_rows:
            forward = max(forward, self.few_rows.seconds(use.numbers, use.products))
        return forward, backward

    def room(self, nbytes: int) -> int:
        """Bytes a weight needs in a slab. Without a link, whole disk blocks are read, from before its beginning."""
        slack = self.alignment if self.link is None else 0
        return -(-nbytes // self.alignment) * self.alignment + slack


@dataclass(frozen=True)
class Budget:
    """Bytes allowed: `device` for everything on the device, `host` for streamed weights and staging in RAM."""

    device: int
    host: int = 0
    pinned: int = 0  # how much of `host` may be page-locked


def groups_of(workload: Workload, machine: Machine) -> tuple[Group, ...]:
    """The groups in order. Raises ValueError unless they are numbered 0, 1, 2, ... in the order of the weights."""
    members: dict[int, list[int]] = {}
    for number, weight in enumerate(workload.weights):
        members.setdefault(weight.group, []).append(number)
    if list(members) != list(range(len(members))):
        raise ValueError("groups must be numbered 0, 1, 2, ... in the order of their weights")
    weights = workload.weights
    return tuple(
        Group(
            number,
            tuple(inside),
            sum(weights[each].nbytes for each in inside),
            sum(machine.room(weights[each].nbytes) for each in inside),
        )
        for number, inside in members.items()
    )


def observed_workload(
    name: str,
    weights: Sequence[Weight],
    observed: Iterable[ObservedUse],
    traffic: Callable[[str], int],
    fixed: Mapping[str, int],
) -> Workload:
    """The workload of an observed step. traffic: bytes read and written to decode a weight, by its name.

    Work with weights that are not streamed is added to the streamed weight used before it.
    """
    numbers = {weight.name: number for number, weight in enumerate(weights)}
    schedule: list[Use] = []
    before: list[ObservedUse] = []  # work before the first use follows the last use of the previous step
    for use in observed:
        if use.name in numbers:
            work = {name: value for name, value in vars(use).items() if name != "name"}
            schedule.append(Use(numbers[use.name], traffic=traffic(use.name), **work))
        elif schedule:
            schedule[-1] = _with_work(schedule[-1], use)
        else:
            before.append(use)
    for use in before if schedule else ():
        schedule[-1] = _with_work(schedule[-1], use)
    return Workload(name, tuple(weights), tuple(schedule), dict(fixed))


def _with_work(use: Use, more: ObservedUse) -> Use:
    return replace(use, **{name: getattr(use, name) + value for name, value in vars(more).items() if name != "name"})


def decode_traffic(nbytes: int, numel: int, itemsize: int) -> int:
    """Bytes of device memory that decoding moves: stored bytes read, then numbers written and read again."""
    return nbytes + 2 * itemsize * numel


def grouped(sizes: Mapping[str, int], group: Callable[[str], str] | None = None) -> tuple[Weight, ...]:
    """Weights in groups. sizes: name -> stored bytes. group: maps a weight's name to its group's.

    Without `group`, each group has as many neighbouring weights as fit in SLOT_BYTES.
    """
    if group is not None:
        found: dict[str, int] = {}
        return tuple(Weight(name, found.setdefault(group(name), len(found)), size) for name, size in sizes.items())
    weights: list[Weight] = []
    number, filled, room = 0, 0, max(SLOT_BYTES, *sizes.values())
    for name, size in sizes.items():
        if filled and filled + size > room:
            number, filled = number + 1, 0
        filled += size
        weights.append(Weight(name, number, size))
    return tuple(weights)
