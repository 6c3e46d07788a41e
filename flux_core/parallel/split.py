"""How work is divided among devices, as numbers: which tokens, heads and rows each device has.

    sp   each device has some of the tokens and all of the weights (sequence parallel)
    tp   each device has some rows of every matrix and all tokens (tensor parallel)
    cfg  each group of sp * tp devices evaluates another condition of an image, such as the negative prompt

The devices of one tp group are neighbours: device = (cfg_rank * sp + sp_rank) * tp + tp_rank. Uses no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import InputError

Span = tuple[int, int]  # [start, end)
ATTENTIONS = ("ulysses", "gather", "ring")


def spans(total: int, shares: int | Sequence[float]) -> tuple[Span, ...]:
    """Cut `total` into runs, as equal as whole numbers can be, or in proportion to `shares`. Runs may be empty."""
    weights = [1.0] * shares if isinstance(shares, int) else list(shares)
    done, edges = 0.0, [0]
    for weight in weights:
        done += weight
        edges.append(round(total * done / sum(weights) + 1e-9))
    return tuple(zip(edges[:-1], edges[1:], strict=True))


class Sizes(Protocol):
    """Of a transformer (models/flux_config.py)."""

    @property
    def depth(self) -> int: ...
    @property
    def depth_single(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def mlp(self) -> int: ...


@dataclass(frozen=True)
class Split:
    """cfg groups of sp groups of tp devices. attention: one of ATTENTIONS, how sequence-parallel devices attend."""

    sp: int = 1
    tp: int = 1
    attention: str = "ulysses"
    cfg: int = 1

    @property
    def group(self) -> int:
        """The devices that compute one evaluation together."""
        return self.sp * self.tp

    @property
    def size(self) -> int:
        return self.cfg * self.group

    @property
    def words(self) -> str:
        """As it is written on a command line."""
        parts = [f"{name}{count}" for name, count in (("cfg", self.cfg), ("sp", self.sp), ("tp", self.tp)) if count > 1]
        return "".join(parts) + (f" {self.attention}" if self.sp > 1 else "")

    @classmethod
    def parse(cls, text: str, devices: int, mesh: str | None = None) -> Split:
        """ "auto", "sp", "tp", "cfg", "sp4tp2", or "((2, 0), (4, 1))" with the mesh "2x4": (sp, axis), (tp, axis).

        A "-ring" or "-gather" at the end names the attention. Raises InputError.
        """
        word, _, attention = text.strip().lower().partition("-")
        attention = attention or "ulysses"
        if attention not in ATTENTIONS:
            raise InputError(f"There is no attention {attention!r} over devices; choose {', '.join(ATTENTIONS)}.")
        if mesh is not None or word.startswith("("):
            return cls._of_mesh(word, devices, mesh, attention)
        if word in ("auto", "sp"):
            return cls(devices, 1, attention)
        if word == "tp":
            return cls(1, devices, attention)
        if word == "cfg":
            return cls(1, 1, attention, devices)
        found = re.fullmatch(r"(?:cfg(\d{1,3}))?(?:sp(\d{1,3}))?(?:tp(\d{1,3}))?", word)
        if not found or not word:
            raise InputError(f"{text!r} is not a way to divide an image. Write auto, sp, tp, cfg, sp4tp2, or sp-ring.")
        split = cls(int(found[2] or 1), int(found[3] or 1), attention, int(found[1] or 1))
        if split.size != devices or 0 in (split.cfg, split.sp, split.tp):
            raise InputError(
                f"{text} is for {split.size} devices, and {devices} are given. Change --split or --devices."
            )
        return split

    @classmethod
    def _of_mesh(cls, text: str, devices: int, mesh: str | None, attention: str) -> Split:
        numbers = re.fullmatch(r"\(\((\d+),(\d)\),\((\d+),(\d)\)\)", text.replace(" ", ""))
        sizes = re.fullmatch(r"(\d+)x(\d+)", mesh or "")
        if not numbers or not sizes:
            given = (
                f"there is no --mesh and --split {text}" if mesh is None else f"given are --mesh {mesh} --split {text}"
            )
            raise InputError(f"A mesh and its split are written --mesh 2x4 --split '((2, 0), (4, 1))'; {given}.")
        (sp, sp_axis, tp, tp_axis), axes = (int(n) for n in numbers.groups()), [int(n) for n in sizes.groups()]
        if {sp_axis, tp_axis} != {0, 1}:
            raise InputError(
                f"{text} names the axes {sp_axis} and {tp_axis}; a mesh has the axes 0 and 1, each used once."
            )
        if (axes[sp_axis], axes[tp_axis]) != (sp, tp):
            raise InputError(
                f"{text} splits {sp} ways along axis {sp_axis} and {tp} ways along axis {tp_axis}, and the mesh {mesh} "
                f"has {axes[sp_axis]} and {axes[tp_axis]} devices there."
            )
        if sp * tp != devices:
            raise InputError(f"The mesh {mesh} has {sp * tp} devices, and {devices} are given.")
        return cls(sp, tp, attention)

    def check(self, heads: int) -> None:
        """Raise InputError if a model with so many heads cannot be split so."""
        if self.attention == "ulysses" and self.sp > heads:
            raise InputError(
                f"This model has {heads} heads, too few for {self.sp} devices that take whole heads each. Use fewer "
                f"devices, or --split {self.words.partition(' ')[0]}-gather."
            )


@dataclass(frozen=True)
class Tokens:
    """The tokens of one evaluation over the devices of a sequence group: runs of text and of image for each."""

    text: tuple[Span, ...]
    image: tuple[Span, ...]

    @classmethod
    def of(cls, text: int, image: int, shares: int | Sequence[float]) -> Tokens:
        return cls(spans(text, shares), spans(image, shares))

    def lengths(self, rank: int) -> Span:
        """(text, image) tokens of a device."""
        (a, b), (c, d) = self.text[rank], self.image[rank]
        return b - a, d - c

    def count(self, rank: int) -> int:
        return sum(self.lengths(rank))

    @property
    def total(self) -> int:
        return self.text[-1][1] + self.image[-1][1]

    def places(self, rank: int) -> tuple[Span, Span]:
        """Where a device's tokens are in the order of a single one: all text, then all image."""
        text = self.text[-1][1]
        (a, b), (c, d) = self.text[rank], self.image[rank]
        return (a, b), (text + c, text + d)


def devices_of(team: Mapping[str, Any] | None) -> str | None:
    """The words for the options of a team, as the command line makes them; None if there is none."""
    return None if team is None else team_words(team["names"], Split(**team["split"]))


def team_words(names: Sequence[str], split: Split) -> str:
    """Which devices compute an image, and how they share it."""
    return f"{' and '.join(names)} as {split.words}"


def exchanged_bytes(split: Split, blocks: int, batch: int, tokens: int, hidden: int, itemsize: int) -> float:
    """Bytes that leave each device in the attention of one step, by formula; even shares, one tp group."""
    whole = blocks * batch * tokens * hidden * itemsize * (split.sp - 1) / split.sp
    return whole * (4 / split.sp if split.attention == "ulysses" else 2)


def gathered_bytes(split: Split, config: Sizes, batch: int, tokens: int, itemsize: int) -> float:
    """Bytes that leave each device in the products of one step, if rows are divided evenly; all tokens are here.

    Of each token, every matrix of its blocks gives a row of outputs: qkv, proj and both of the MLP, or both linears.
    """
    double = config.depth * (5 * config.hidden + config.mlp)
    single = config.depth_single * (4 * config.hidden + config.mlp)
    return batch * tokens * itemsize * (double + single) * (split.tp - 1) / split.tp


def parsed_shares(text: str | None, devices: int) -> Any:
    """ "2,1" -> (2.0, 1.0): how fast each device is beside the others; None: all alike. Raises InputError."""
    if text is None:
        return devices
    try:
        shares = tuple(float(word) for word in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != devices or not all(0 < share < 1e6 for share in shares):
        raise InputError(f"--shares takes {devices} positive numbers, one for each device, like 2,1; not {text!r}.")
    return shares
