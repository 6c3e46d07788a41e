"""The workload of a published FLUX model, as `sluice plan` makes it: observed, without a file."""

from __future__ import annotations

from math import prod

from sluice.flux_core.memory.workload import ObservedUse, Weight, Workload, decode_traffic, observed_workload
from sluice.flux_core.runtime.flux_needs import FluxNeeds, Job, flux_needs, half_block
from sluice.flux_core.runtime.published import Published, published


def flux_workload(name: str, job: Job | None = None, modulation: bool = False) -> Workload:
    """One step. modulation: the adaLN matrices stream too, each in front of its block; else a table has their rows."""
    model, job = published(name), job or Job()
    assert model is not None
    needs = flux_needs(model.config, job)
    if modulation:
        return _with_modulation(model, needs, job)

    def nbytes(matrix: str) -> int:
        return model.nbytes(needs.matrices[matrix])

    return needs.workload(name, nbytes, lambda matrix: model.decoded, job.itemsize)


def _with_modulation(model: Published, needs: FluxNeeds, job: Job) -> Workload:
    uses: list[ObservedUse] = []
    waiting = list(needs.modulation)
    for use in needs.run.uses:
        block = ".".join(use.name.split(".")[:2]) + "."
        for name in [name for name in waiting if name.startswith(block)]:
            waiting.remove(name)
            uses.append(ObservedUse(name, 2.0 * prod(needs.matrices[name]) * job.batch, 0.0))
        uses.append(use)

    def group_of(name: str) -> str:
        return name if name in needs.modulation else half_block(name)

    def traffic(name: str) -> int:
        shape = needs.matrices[name]
        return decode_traffic(model.nbytes(shape), prod(shape), job.itemsize) if model.decoded else 0

    groups: dict[str, int] = {}
    blocks = {*needs.streamed, *needs.modulation} - set(waiting)
    names = dict.fromkeys(use.name for use in uses if use.name in blocks)
    weights = [
        Weight(name, groups.setdefault(group_of(name), len(groups)), model.nbytes(needs.matrices[name]))
        for name in names
    ]
    return observed_workload(model.name, weights, uses, traffic, {})
