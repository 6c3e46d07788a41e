"""On a GPU: streamed weights are the weights, whatever the streams' speeds, and the budget is kept.

One command runs all of it: `python -m pytest tests/gpu -q`. What takes time is measured by
`sluice bench memory --device cuda --vram 8G --format bf16 fp8 --size 512x512 1024x1024 1920x1072` and, for the peers on
the same weights, `sluice bench memory --what peers --vram 8G --size 1024x1024`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sluice.flux_core import assemble
from sluice.flux_core.memory import manager, random_model
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.cuda import CudaDevice
from sluice.flux_core.memory.device import COMPUTE, COPY
from sluice.flux_core.memory.workload import GiB, MiB
from sluice.flux_core.sampling.conditions import Condition
from sluice.flux_core.sampling.guider import Run
from torch import Tensor

CUDA = torch.device("cuda", 0)
SHAPE = (1, 16, 64, 64)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A twelfth of FLUX.1 at its full width: 2 double and 3 single blocks."""
    folder = tmp_path_factory.mktemp("models")
    formats = {"BF16": "bf16", "F8_E4M3": "fp8"}
    for format, name in formats.items():
        random_model.write(folder / f"{name}.safetensors", lambda: random_model.flux(2, 3), format)
    return {name: folder / f"{name}.safetensors" for name in formats.values()}


@pytest.fixture(autouse=True)
def own_process(monkeypatch) -> Iterator[None]:
    assemble.configure("cuda:0", "bf16")
    monkeypatch.setattr(manager, "_managers", {})
    yield
    for held in manager._managers.values():
        held.close()
    manager.configure(Allowed())
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def budget(vram: int, ram: int = 16 * GiB) -> manager.Manager:
    manager.configure(Allowed(vram=vram, ram=ram))
    made = manager.manager_for(CUDA, 1 << 40)
    assert made is not None
    return made


@torch.inference_mode()
def steps(model, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*SHAPE, generator=generator).to(CUDA)
    context, y = (torch.randn(1, *size, generator=generator).to(CUDA) for size in ((512, 4096), (768,)))
    levels = torch.linspace(1, 0, count + 1).tolist()
    with model.open(Run(SHAPE, tuple(levels[:-1]), (Condition(context=context, pooled=y, guidance=3.5),))) as network:
        guidance = torch.full((1,), 3.5, device=CUDA).to(model.dtype)
        for level, following in zip(levels, levels[1:], strict=False):
            times = torch.full((1,), level, device=CUDA)
            x = x + (following - level) * network(x.to(model.dtype), times, context, y, guidance).float()
    return x


def expected(path: Path) -> Tensor:
    manager.configure(Allowed(managed=False))
    return steps(assemble.load_flux(path))


@pytest.mark.parametrize("name", ("bf16", "fp8"))
@pytest.mark.parametrize("ram", (16 * GiB, 1 * GiB), ids=("from-ram", "from-disk"))
def test_streamed_is_resident_bit_for_bit_with_sleeps_on_both_streams(files, name, ram, monkeypatch):
    """Random pauses between commands turn every missing wait into a wrong picture."""
    reference, rng = expected(files[name]), random.Random(0)
    record = CudaDevice.record

    def slow(device: CudaDevice, stream: str, event) -> None:
        for chosen in (COPY, COMPUTE):
            if rng.random() < 0.3:
                with torch.cuda.stream(device._stream(chosen)):
                    torch.cuda._sleep(rng.randrange(1, 3_000_000))
        record(device, stream, event)

    monkeypatch.setattr(CudaDevice, "record", slow)
    model = assemble.load_flux(files[name])
    for vram in (2 * GiB, 2 * GiB + 400 * MiB, 3 * GiB):
        held = budget(vram, ram)
        assert torch.equal(steps(model), reference)
        plan = model.weights.managed(held, model.dtype).report.plan
        assert plan.streamed_bytes > 0 or vram > 2 * GiB
        model.weights.unload()
        manager._managers.clear()


@pytest.mark.parametrize("name", ("bf16", "fp8"))
def test_the_peak_stays_below_the_cap(files, name):
    for vram in (2 * GiB, 3 * GiB):
        held, model = budget(vram), assemble.load_flux(files[name])
        steps(model)
        report = model.weights.managed(held, model.dtype).report
        assert report.peak <= vram
        model.weights.unload()
        manager._managers.clear()


def test_memory_taken_away_in_the_middle_of_a_step_costs_residents_and_not_the_picture(files):
    reference = expected(files["fp8"])
    held, model = budget(4 * GiB), assemble.load_flux(files["fp8"])
    flux = model.weights.managed(held, model.dtype)
    ballast: list[Tensor] = []
    block = list(flux.module.blocks())[2]
    forward = block.forward

    def crowded(*args):
        if not ballast:  # take all that is left: the block's own tensors find no room
            while True:
                try:
                    ballast.append(torch.empty(64 * MiB, dtype=torch.uint8, device=CUDA))
                except torch.OutOfMemoryError:
                    break
        return forward(*args)

    block.forward = crowded
    try:
        assert torch.equal(steps(model), reference)
    finally:
        del block.forward
        ballast.clear()
