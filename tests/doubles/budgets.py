"""Runtimes with a memory budget to the byte, so that models of a few MB stream as large ones do."""

from __future__ import annotations

import torch
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.runtime.runtime import Runtime

from .simulated import SimulatedMemory

CPU = torch.device("cpu")


class SimulatedManager(Manager):
    """A manager whose accounts are those of SimulatedMemory."""

    memory: SimulatedMemory


def budget(runtime: Runtime, nbytes: int) -> SimulatedManager:
    """A budget of so many bytes in addition to the predicted workspace."""
    runtime.budget = Allowed(ram=nbytes)
    made = SimulatedManager(CPU, runtime.budget, emit=runtime.events.emit)
    made.memory = SimulatedMemory(nbytes + 128 * MiB)
    runtime.managers[CPU] = made
    return made


def no_budget(runtime: Runtime) -> None:
    runtime.budget = Allowed(managed=False)
