"""The time below which no step of a model can go on this machine, from rates that are measured in the same process."""

from __future__ import annotations

from typing import Any

import torch

from ..memory import rates
from ..runtime.streamed_flux import ManagedFlux
from .steps import Setup


def physical_limit(flux: ManagedFlux, setup: Setup) -> dict[str, float]:
    """After a run: the seconds of the products and attention of a step alone, or of the transfers that it needs.

    limit_seconds: whichever takes longest.
    """
    assert flux.report is not None
    plan, device, dtype = flux.report.plan, flux.manager.device, flux.dtype
    tokens = rates.measured_tokens(device, setup.height // 16 * (setup.width // 16) + setup.tokens)
    gemm = _best(rates.gemm_rate, device, dtype, tokens, rates.HIDDEN)
    attention = max(plan.machine.attention, _best(rates.attention_rate, device, dtype, max(256, tokens)))
    uses = plan.workload.schedule
    compute = sum(use.products for use in uses) / gemm + sum(use.attention for use in uses) / attention
    if flux.blocks.integers is not None:
        integers = _best(rates.integer_rate, flux.blocks.integers, device, dtype, tokens, rates.HIDDEN)
        compute += sum(use.integers for use in uses) / integers
    disk = max(plan.machine.disk, rates.disk_rate(flux.blocks.source.weights))
    moved = plan.streamed_bytes / (plan.machine.link or disk)
    return {
        "limit_seconds": max(compute, moved, plan.disk_bytes / disk),
        "compute_seconds": compute, "transfer_seconds": moved,
        "gemm_flops": gemm, "disk_bytes_per_second": disk,
        "link_bytes_per_second": plan.machine.link or 0.0,
    }  # fmt: skip


def _best(rate: Any, *what: object) -> float:
    """The higher of two measured rates, from before the steps and from now: the machine may be busy for a moment."""
    before = float(rate(*what))
    try:
        return max(before, float(rate.__wrapped__(*what)))
    except torch.OutOfMemoryError:  # the steps left too little memory for it
        return before
