"""Common graphics cards: the facts that the planner needs about each, and their sources.

Peak is the maker's figure for dense float16 products summed in float32 on tensor cores (float32 where there are none).
What is reached in practice is a share of it, by generation: matrix products of FLUX's sizes were measured by users at
0.78 to 0.85 of peak on GeForce cards (a resident 4060 Ti 16 GB computes a 1024x1024 step in 2.08 s, 81 %), fused
attention at 0.45 to 0.75. Memory bandwidth and bus are the maker's too. Bus rates are copies from pinned memory: 12.3
GB/s on PCIe 3.0 x16, 24.5 on 4.0 x16, 53 on 5.0 x16, and half of that for half the lanes. Exchanges of
two cards through the host's memory are slower: their rates are estimates, for 3.0 x4 to 4.0 x16 from users of two
GeForce cards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import InputError
from .workload import Machine

_ON_PASCAL = "fits GTX 1070 runs at 768x1024, 8.1 s a step (sd-webui-forge-classic, pull request 1466)"
_ON_AMPERE = "fits RTX 3090 runs, 1.99 times as fast as 16-bit numbers (ComfyUI-INT8-Fast)"
_LIKE_AMPERE = "assumed near the 65% that fits RTX 3090 runs (ComfyUI-INT8-Fast)"
_ASSUMED = "the share is an assumption"
# generation -> (peak of 8-bit integer products relative to `peak`, share of it in practice, the reason for the share);
# none without a gain. Multiples are the makers'.
INTEGERS = {
    "pascal": (4, 0.40, _ON_PASCAL), "turing": (4, 0.60, _LIKE_AMPERE), "ampere": (4, 0.65, _ON_AMPERE),
    "ada": (4, 0.65, _LIKE_AMPERE), "blackwell": (4, 0.60, _LIKE_AMPERE), "hopper": (2, 0.55, _ASSUMED),
    "a100": (2, 0.60, _ASSUMED),
}  # fmt: skip
# generation -> share of twice the peak in products that are summed in float16, which GeForce cards have from Turing on.
# The double rate is the makers'; the share is an assumption, below that of sums in float32.
HALF_SUMS = {"turing": 0.70, "ampere": 0.70, "ada": 0.70, "blackwell": 0.70}
# generation -> (share of peak in products, share in attention, where peaks are from)
GENERATIONS = {
    "pascal": (0.85, 0.46, "NVIDIA GeForce GTX 10 series specifications (no tensor cores: float32)"),
    "turing": (0.80, 0.47, "NVIDIA Turing architecture whitepaper, tables for each card"),
    "ampere": (0.80, 0.64, "NVIDIA Ampere GA102 architecture whitepaper, appendix tables"),
    "ada": (0.82, 0.72, "NVIDIA Ada architecture whitepaper, appendix tables"),
    "blackwell": (0.80, 0.70, "NVIDIA RTX Blackwell architecture whitepaper, appendix tables"),
    "hopper": (0.66, 0.45, "NVIDIA H100 and H200 data sheets"),
    "a100": (0.80, 0.60, "NVIDIA A100 data sheet"),
    "rdna2": (0.60, 0.30, "AMD Radeon RX 6000 specifications; the share is an assumption"),
    "rdna3": (0.45, 0.25, "AMD Radeon RX 7000 specifications; the share is an assumption"),
}
PCIE = {
    "3.0 x4": 3.2, "3.0 x8": 6.2, "3.0 x16": 12.3, "4.0 x4": 6.4, "4.0 x8": 12.8, "4.0 x16": 24.5, "5.0 x4": 13.0,
    "5.0 x8": 26.0, "5.0 x16": 53.0,
}  # GB/s  # fmt: skip
STAGED = {
    "3.0 x4": 2.5, "3.0 x8": 5.0, "3.0 x16": 8.0, "4.0 x4": 5.0, "4.0 x8": 8.0, "4.0 x16": 14.0, "5.0 x4": 8.0,
    "5.0 x8": 14.0, "5.0 x16": 14.0,
}  # GB/s of exchange with another card  # fmt: skip


@dataclass(frozen=True)
class Card:
    """vram in GiB, peak in TFLOP/s, memory in GB/s."""

    name: str
    label: str
    vram: float
    peak: float
    memory: float
    bus: str
    generation: str

    @property
    def gemm(self) -> float:
        """TFLOP/s in practice."""
        return self.peak * GENERATIONS[self.generation][0]

    @property
    def attention(self) -> float:
        return self.peak * GENERATIONS[self.generation][1]

    @property
    def link(self) -> float:
        """GB/s from pinned memory."""
        return PCIE[self.bus]

    @property
    def exchange(self) -> float:
        """GB/s to and from another card through the host's memory."""
        return STAGED[self.bus]

    def in_slot(self, slot: str) -> Card:
        """The card in a slot like "3.0x4"; in one that is faster than the card it is as fast as ever. Raises
        InputError."""
        version, _, lanes = slot.strip().lower().partition("x")
        bus = f"{version.strip()} x{lanes}"
        if bus not in PCIE:
            known = ", ".join(name.replace(" ", "") for name in PCIE)
            raise InputError(f"{self.name}@{slot} names no slot; write one of {known}, as in {self.name}@3.0x4.")
        return self if PCIE[bus] >= self.link else replace(self, bus=bus, label=f"{self.label} in {bus}")

    @property
    def integers(self) -> float | None:
        """10^12 operations/s of products in 8-bit integers in practice; None where they are no faster."""
        times, share, _ = INTEGERS.get(self.generation, (0, 0.0, ""))
        return self.peak * times * share or None

    @property
    def half_sums(self) -> float:
        """TFLOP/s in practice of float16 products summed in float16; as others where that is no faster."""
        return self.peak * 2 * HALF_SUMS[self.generation] if self.generation in HALF_SUMS else self.gemm

    @property
    def itemsize(self) -> int:
        """Bytes of a value in its number type: before tensor cores that is float32."""
        return 4 if self.generation == "pascal" else 2

    @property
    def source(self) -> str:
        return GENERATIONS[self.generation][2]

    def basis(self, integers: bool, half_sums: bool) -> list[str]:
        """What the seconds of a step rest on, as lines. integers, half_sums: whether a step has such products."""
        products, attention, source = GENERATIONS[self.generation]
        lines = [
            f"peak {self.peak:g} TFLOP/s: {source}",
            f"products {products:.0%} of it, attention {attention:.0%}: measured by users of GeForce cards",
            f"copies {self.link:g} GB/s from pinned memory on PCIe {self.bus}",
        ]
        if self.generation in ("pascal", "rdna2", "rdna3", "hopper", "a100"):
            lines[1] = f"products {products:.0%} of it, attention {attention:.0%}: {_ASSUMED}"
        if integers and self.generation in INTEGERS:
            times, share, reason = INTEGERS[self.generation]
            lines.append(f"8-bit integers {share:.0%} of {times} times the peak: {reason}")
        if half_sums and self.generation in HALF_SUMS:
            lines.append(f"sums in float16 {HALF_SUMS[self.generation]:.0%} of twice the peak: {_ASSUMED}")
        return lines

    def machine(self, disk: float) -> Machine:
        """disk in bytes/s."""
        made = Machine(self.gemm * 1e12, self.attention * 1e12, self.memory * 1e9, disk, self.link * 1e9)
        return made if self.integers is None else replace(made, integers=self.integers * 1e12)


_ROWS = """
gtx1060     GTX 1060 6 GB       6   4.4   192  3.0 x16  pascal
gtx1070     GTX 1070            8   6.5   256  3.0 x16  pascal
gtx1080     GTX 1080            8   8.9   320  3.0 x16  pascal
gtx1080ti   GTX 1080 Ti        11  11.3   484  3.0 x16  pascal
rtx2060     RTX 2060            6  25.8   336  3.0 x16  turing
rtx2060s    RTX 2060 Super      8  28.7   448  3.0 x16  turing
rtx2070     RTX 2070            8  29.9   448  3.0 x16  turing
rtx2080     RTX 2080            8  40.3   448  3.0 x16  turing
rtx2080ti   RTX 2080 Ti        11  53.8   616  3.0 x16  turing
rtx3050     RTX 3050 8 GB       8  18.2   224  4.0 x8   ampere
rtx3060     RTX 3060 12 GB     12  25.5   360  4.0 x16  ampere
rtx3060ti   RTX 3060 Ti         8  32.4   448  4.0 x16  ampere
rtx3070     RTX 3070            8  40.6   448  4.0 x16  ampere
rtx3070ti   RTX 3070 Ti         8  43.5   608  4.0 x16  ampere
rtx3080     RTX 3080 10 GB     10  59.5   760  4.0 x16  ampere
rtx3090     RTX 3090           24  71.0   936  4.0 x16  ampere
rtx4060     RTX 4060            8  30.2   272  4.0 x8   ada
rtx4060ti   RTX 4060 Ti         8  44.1   288  4.0 x8   ada
rtx4060ti16 RTX 4060 Ti 16 GB  16  44.1   288  4.0 x8   ada
rtx4070     RTX 4070           12  58.3   504  4.0 x16  ada
rtx4070s    RTX 4070 Super     12  70.9   504  4.0 x16  ada
rtx4080     RTX 4080           16  97.5   717  4.0 x16  ada
rtx4090     RTX 4090           24 165.2  1008  4.0 x16  ada
rtx5060     RTX 5060            8  38.4   448  5.0 x8   blackwell
rtx5060ti   RTX 5060 Ti 8 GB    8  47.4   448  5.0 x8   blackwell
rtx5070     RTX 5070           12  61.7   672  5.0 x16  blackwell
rtx5070ti   RTX 5070 Ti        16  87.9   896  5.0 x16  blackwell
rtx5080     RTX 5080           16 112.6   960  5.0 x16  blackwell
rtx5090     RTX 5090           32 209.5  1792  5.0 x16  blackwell
rx6600      RX 6600             8  17.9   224  4.0 x8   rdna2
rx6700xt    RX 6700 XT         12  26.4   384  4.0 x16  rdna2
rx7600      RX 7600             8  43.5   288  4.0 x8   rdna3
rx7800xt    RX 7800 XT         16  74.7   624  4.0 x16  rdna3
rx7900xtx   RX 7900 XTX        24 122.8   960  4.0 x16  rdna3
a100        A100 40 GB         40 312.0  1555  4.0 x16  a100
h100        H100               80 989.0  3350  5.0 x16  hopper
h200        H200              141 989.0  4800  5.0 x16  hopper
"""


def _card(row: str) -> Card:
    name, rest = row.split(maxsplit=1)
    *label, vram, peak, memory, version, lanes, generation = rest.split()
    return Card(name, " ".join(label), float(vram), float(peak), float(memory), f"{version} {lanes}", generation)


CARDS = {card.name: card for card in map(_card, _ROWS.strip().splitlines())}


def find_card(name: str) -> Card:
    """Find a card by its name in any notation: "rtx4060", "RTX 4060", "4060 Ti"; "rtx4060@3.0x4" is one in that slot.

    Raises InputError with the known cards.
    """
    name, at, slot = name.partition("@")
    if at:
        return find_card(name).in_slot(slot)
    wanted = _plain(name)
    for prefix in ("", "rtx", "gtx", "rx"):
        for card in CARDS.values():
            if prefix + wanted in (card.name, _plain(card.label), _plain(card.label.split(f" {card.vram:g} GB")[0])):
                return card
    known = ", ".join(CARDS)
    raise InputError(f"There is no card {name!r} in the table; choose one of {known}, or give --compute and --link.")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum()).removeprefix("geforce").removeprefix("radeon")
