"""A job whose phases follow one another under one budget: the least that each needs, and what it takes of the budget.

A phase has one or several parts, of which each is either a model whose weights are streamed (a workload, as the planner
takes it), or a block of memory that is reserved as a whole, in one of several sizes. Pure arithmetic: uses no torch and
no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .plan import plan, smallest_budget
from .workload import Budget, Machine, MiB, Workload

WORKSPACE = 128 * MiB  # of kernels, at least


@dataclass(frozen=True)
class Streamed:
    """A model whose weights may be streamed. workload: made from what else is on the device (purpose -> bytes)."""

    workload: Callable[[Mapping[str, int]], Workload]
    activations: int


@dataclass(frozen=True)
class Reserved:
    """Memory that is reserved as a whole: the first of these sizes in bytes that fits. workspace: of its kernels."""

    sizes: tuple[int, ...]
    workspace: int = WORKSPACE


@dataclass(frozen=True)
class Part:
    """A part of the phase of this name. beside: bytes on the device that belong to neither the program nor it."""

    phase: str
    needs: Streamed | Reserved
    beside: int = 0


@dataclass(frozen=True)
class Phase:
    """least: bytes of the smallest budget with which it can run. peak: what it takes of the budget; None if it cannot
    run within it.
    """

    name: str
    least: int
    peak: int | None


@dataclass(frozen=True)
class Room:
    """A budget, and the device that it is for. program: bytes on the device that no phase frees, by purpose."""

    budget: Budget
    machine: Machine
    program: Mapping[str, int]

    def phases(self, parts: Iterable[Part]) -> list[Phase]:
        """The phases in the order of their first parts."""
        found: dict[str, Phase] = {}
        for part in parts:
            least, peak = self._of(part)
            before = found.get(part.phase, Phase(part.phase, 0, 0))
            peaks = None if peak is None or before.peak is None else max(peak, before.peak)
            found[part.phase] = Phase(part.phase, max(least, before.least), peaks)
        return list(found.values())

    def _of(self, part: Part) -> tuple[int, int | None]:
        needs, limit = part.needs, self.budget.device
        if isinstance(needs, Reserved):
            used = sum(self.program.values()) + part.beside + needs.workspace
            fitting = next((size for size in needs.sizes if used + size <= limit), None)
            return used + min(needs.sizes), None if fitting is None else used + fitting
        workspace = max(WORKSPACE, needs.activations // 20)
        fixed = {**self.program, "kept": part.beside, "activations": needs.activations, "workspace": workspace}
        workload = needs.workload(fixed)
        least = smallest_budget(workload, self.machine)
        return least, plan(workload, self.budget, self.machine).peak_bytes if least <= limit else None


def too_large(phases: Sequence[Phase], budget: int) -> list[Phase]:
    """Those that cannot run within the budget, the largest first."""
    return sorted((phase for phase in phases if phase.least > budget), key=lambda phase: -phase.least)
