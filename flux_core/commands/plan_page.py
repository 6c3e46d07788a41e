"""A plan for people, as lines of text: where each group of weights stays, the time of a step, and the memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..memory.budget import format_size
from ..memory.phases import Phase
from ..memory.plan import Plan
from ..memory.workload import Location
from ..runtime.published import TEXT_TOKENS
from .plan_formats import Row, formats_table
from .plan_target import Target

if TYPE_CHECKING:
    from ..runtime.flux_needs import Job

_CONTROLNET = re.compile(r"(?:controlnets\.([^.]+)-[0-9a-f]{8}\.)?(.+)")


def page(made: Plan, target: Target, job: Job, rows: Sequence[Row]) -> list[str]:
    """The output for people, as lines."""
    size = f"{job.width}x{job.height}" + (f", {job.batch} at a time" if job.batch > 1 else "")
    if job.text_tokens != TEXT_TOKENS:
        size += f", {job.text_tokens} tokens of the prompt"
    kind = "RAM" if target.cpu else "memory"
    title = f"{made.workload.name} · {size} · {target.label}, {format_size(target.memory)} of {kind}"
    return [
        title,
        "",
        *residency_map(made),
        "",
        *speed_lines(made),
        *(f"    {line}" for line in basis_lines(made, target)),
        "",
        *memory_lines(made, target),
        *(["", *formats_table(rows)] if rows else []),
    ]


def residency_map(made: Plan) -> list[str]:
    """One letter per group, in the model's rows."""
    rows: dict[str, str] = {}
    last: dict[str, str] = {}
    for group, location in zip(made.groups, made.locations, strict=True):
        net, own = _CONTROLNET.match(made.workload.weights[group.weights[0]].name).groups()  # type: ignore[union-attr]
        family, number, *rest = own.split(".")
        label = {"double_blocks": f"double {rest[0][:3]}", "single_blocks": "single"}.get(family, family)
        label = f"{net[:24]} {label}" if net else label
        letter = location.value
        if last.get(label) == number:  # a divided group is shown by its streamed part
            letter = letter if location is not Location.DEVICE else rows[label][-1]
            rows[label] = rows[label][:-1]
        rows[label], last[label] = rows.get(label, "") + letter, number
    width = max(map(len, rows))
    named = {
        Location.DEVICE: "stays",
        Location.PINNED: "streams from pinned RAM",
        Location.PAGEABLE: "streams from RAM",
        Location.DISK: "from disk",
    }
    legend = " · ".join(f"{where.value} {text}" for where, text in named.items() if where in made.locations)
    return [*(f"  {label:<{width}}  {row}" for label, row in rows.items()), f"  {'':<{width}}  {legend}"]


def speed_lines(made: Plan) -> list[str]:
    """Seconds of a step and what bounds them, and what moves at each step."""
    link = made.machine.link
    crossing = f", link {made.streamed_bytes / link:.2f} s" if link else ""
    disk = made.disk_bytes / made.machine.disk
    return [
        f"  {made.seconds:.2f} s a step, bound by {made.bound} "
        f"(compute {made.compute_seconds:.2f} s{crossing}, disk {disk:.2f} s)",
        f"  {format_size(made.resident_bytes)} stay, {format_size(made.streamed_bytes)} stream each step"
        + (f" through {made.slots} slots of {format_size(made.slot_bytes)}" if made.slots else ""),
    ]


def basis_lines(made: Plan, target: Target) -> list[str]:
    """What the seconds of a step rest on."""
    return target.basis(any(use.integers for use in made.workload.schedule))


def memory_lines(made: Plan, target: Target) -> list[str]:
    """The parts of the peak, and the RAM for streaming."""
    parts = {"resident weights": made.weight_bytes - made.ring_bytes, "ring": made.ring_bytes, **made.workload.fixed}
    lines = [f"  {name:<20}{format_size(size):>12}" for name, size in parts.items() if size]
    total = f"  {'peak':<20}{format_size(made.peak_bytes):>12}  of {format_size(target.memory)}"
    host = [] if target.cpu else [f"  {'RAM for streaming':<20}{format_size(made.host_bytes):>12}"]
    return [*lines, total, *host]


def phase_lines(phases: Sequence[Phase]) -> list[str]:
    """What each phase of a job takes of the budget, and the least that it can run with."""
    return [f"  {each.name:<20}peak {format_size(each.peak or 0):>9}, needs at least {format_size(each.least)}"
            for each in phases]  # fmt: skip
