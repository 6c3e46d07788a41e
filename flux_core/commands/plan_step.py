"""The plan of one step: what it needs on a device (observed on a model without weights), and how it fits there."""

from __future__ import annotations

from argparse import Namespace
from math import prod
from typing import TYPE_CHECKING

from ..errors import InputError
from ..memory.plan import Plan, plan
from ..memory.workload import Budget, GiB, MiB, Workload
from ..runtime.published import picture_size
from ..runtime.settings import HALF_SUMS, INT8, SIXTEEN_BIT
from .plan_model import Beside, Model, decodes
from .plan_target import Target

if TYPE_CHECKING:
    from ..runtime.flux_needs import Job

CONTEXT = 450 * MiB  # of a process on a GPU before its first tensor
HEADROOM = 256 * MiB  # left to the driver and to other programs
PROGRAM = 400 * MiB  # of this program in RAM, PyTorch included
STEPS = 20  # rows of the modulation table that are planned for


def job_of(args: Namespace, target: Target) -> Job:
    width, height = picture_size(args.size)
    if args.batch < 1:
        raise InputError("The batch is at least 1.")
    if args.prompt_tokens < 1:
        raise InputError("A prompt has at least 1 token.")
    from ..runtime.flux_needs import Job

    return Job(height, width, args.batch, args.prompt_tokens, itemsize=target.itemsize)


def plan_for(model: Model, target: Target, job: Job, beside: Beside) -> Plan:
    """Raises BudgetTooSmall."""
    return plan(workload_for(model, target, job, beside), budget_of(target), target.machine)


def program_memory(target: Target) -> dict[str, int]:
    """Bytes on the device that no model takes, by name: of the program itself, or of its context and the driver."""
    return {"program": PROGRAM} if target.cpu else {"context and driver": CONTEXT + HEADROOM}


def budget_of(target: Target, processes: int = 1, kept: int = 0) -> Budget:
    """The memory of one of several processes, which share the RAM. kept: bytes of RAM that hold no weights."""
    ram = target.ram // processes
    room = max(0, ram - PROGRAM - kept)
    pinned = min(room, max(0, target.ram - max(4 * GiB, target.ram // 4)) // processes)
    return Budget(target.memory, 0 if target.cpu else room, 0 if target.cpu else pinned)


def workload_for(model: Model, target: Target, job: Job, beside: Beside) -> Workload:
    """One step, with everything that must be on the device."""
    from ..runtime.flux_needs import controlnet_tensors, flux_needs

    needs = flux_needs(model.config, job, tuple((net.key, net.config) for net in beside.controlnets))
    others = controlnet_tensors({net.key: net.tensors for net in beside.controlnets})

    def is_decoded(name: str) -> bool:
        return decodes(others[name]) if name in others else model.decoded(name)

    def in_integers(name: str) -> bool:
        if name in others or name not in needs.streamed or target.compute in (SIXTEEN_BIT, HALF_SUMS):
            return False
        return model.integers(name) and (target.compute == INT8 or target.machine.integers is not None)

    decoded = [prod(shape) for name, shape in needs.matrices.items() if is_decoded(name) and not in_integers(name)]
    products = {use.name: use.products + use.transposed for use in needs.run.uses}
    codes = [int(products[name] / (2 * needs.matrices[name][0])) for name in needs.streamed if in_integers(name)]
    fixed = {
        **program_memory(target),
        "small weights": needs.small * job.itemsize,
        "activations": needs.run.peak,
        "workspace": max(128 * MiB, needs.run.peak // 20),
        "inputs as integers": max(codes, default=0),
        "decoding": max(decoded, default=0) * job.itemsize,
        "modulation table": STEPS * needs.row_bytes(job),
        "LoRA": beside.loras,
    }

    def nbytes(name: str) -> int:
        return others[name].nbytes if name in others else model.nbytes(name, needs.matrices[name])

    return needs.workload(model.name, nbytes, is_decoded, job.itemsize, fixed, in_integers)
