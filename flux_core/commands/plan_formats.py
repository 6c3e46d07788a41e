"""The published formats of a model on one device: which of them fit, and how fast each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import BudgetTooSmall
from ..memory.plan import Plan
from ..memory.workload import GiB
from ..runtime.published import COMPARED, published
from .plan_model import Beside, Model, of_published
from .plan_step import plan_for
from .plan_target import Target

if TYPE_CHECKING:
    from ..runtime.flux_needs import Job


@dataclass(frozen=True)
class Row:
    """One published format on this card. Without a plan it does not fit."""

    name: str
    file_bytes: int
    plan: Plan | None

    def record(self) -> dict[str, object]:
        made = self.plan
        return {
            "name": self.name, "file_bytes": self.file_bytes, "fits": made is not None,
            **({} if made is None else {
                "seconds_per_step": made.seconds, "bound": made.bound, "peak_bytes": made.peak_bytes,
                "streamed_bytes_per_step": made.streamed_bytes, "host_bytes": made.host_bytes,
            }),
        }  # fmt: skip


def compared(model: Model, target: Target, job: Job, beside: Beside) -> list[Row]:
    """The published formats of the same model."""
    from ..runtime.flux_needs import flux_needs

    variant = "schnell" if not model.config.guidance else "dev"
    rows = []
    for label in COMPARED:
        known = published(f"flux1-{variant}-{label}")
        assert known is not None
        other = of_published(known)
        size = other.file_bytes(flux_needs(other.config, job))
        fitting = tuple(net for net in beside.controlnets if net.config.body.hidden == other.config.hidden)
        try:
            rows.append(Row(other.name, size, plan_for(other, target, job, replace(beside, controlnets=fitting))))
        except BudgetTooSmall:
            rows.append(Row(other.name, size, None))
    return rows


def formats_table(rows: Sequence[Row]) -> list[str]:
    """The formats for people, as lines."""
    lines = [f"  {'the same, published as':<24}{'file':>10}{'streams':>11}{'RAM':>11}{'s/step':>9}  bound"]
    for row in rows:
        made = row.plan
        if made is None:
            lines.append(f"  {row.name:<24}{row.file_bytes / GiB:>6.1f} GiB   does not fit")
        else:
            streams, ram = f"{made.streamed_bytes / GiB:.1f} GiB", f"{made.host_bytes / GiB:.1f} GiB"
            head = f"  {row.name:<24}{row.file_bytes / GiB:>6.1f} GiB"
            lines.append(f"{head}{streams:>11}{ram:>11}{made.seconds:>9.2f}  {made.bound}")
    return lines
