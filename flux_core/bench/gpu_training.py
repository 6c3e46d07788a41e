"""The part `training` of `sluice bench gpu`: LoRA steps with streamed weights, their bits, peaks and times.

    bits   of small models in every format: gradients streamed, partly resident and resident are equal
    steps  of the full size under the cap: seconds a step against the prediction, the peak against the cap

Attention adds up its gradients in a fixed order here (`torch.use_deterministic_algorithms`), so that bits can be equal.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

from ..errors import BudgetTooSmall
from ..memory.budget import Allowed, format_size
from ..memory.plan import smallest_budget
from ..memory.workload import MiB
from ..models.flux import Flux
from ..models.latents import CELL
from ..runtime import handles
from ..runtime.runtime import Runtime
from ..runtime.settings import Settings
from ..training.lora.adapter import TrainedLora, chosen_layers
from ..training.lora.kept import DEVICE
from ..training.lora.ready import Pictures, foreseen, ready
from .files import path_of
from .gpu_parts import Part, Tell

RANK, TEXT = 16, 512
FEWEST = 2  # steps: the first loads the resident weights, and a new plan is made after it
TRIES = 12  # of budgets, each an eighth of the weights larger
EVERYTHING = 1 << 50


def bits(part: Part, tell: Tell) -> None:
    """Gradients of small models, for each location of their weights."""
    _in_a_fixed_order()
    for file in part.files:
        try:
            _compare(part, file, tell)
        except Exception:
            tell({"file": file, "error": traceback.format_exc()})


def steps(part: Part, tell: Tell) -> None:
    """Steps of the full size, for every size of images."""
    for width, height in part.sizes:
        try:
            tell(_timed(part, width, height))
        except Exception:
            tell({"size": f"{width}x{height}", "error": traceback.format_exc()})


def _compare(part: Part, file: str, tell: Tell) -> None:
    width, height = part.sizes[0]
    runtime = Runtime(Settings(part.setup.device, "bf16"))
    model = handles.load_flux(runtime, path_of(part.setup.folder, file))
    given = _images(model, width, height, part.seed)
    runtime.budget = Allowed(managed=False)
    expected, _ = _gradients(model, given, FEWEST)
    runtime.budget = _allowed(runtime, EVERYTHING)
    planned = foreseen(model, _lora(model), given)
    assert planned is not None
    least = smallest_budget(planned.plan.workload, planned.plan.machine)
    for case, nbytes in (("streamed", least), ("partly resident", least + planned.plan.weight_bytes // 2)):
        found, streamed = _within(model, given, nbytes)
        equal = found == expected
        words = f"{file}, a training step, {case}: {'equal' if equal else 'NOT EQUAL'}"
        tell({"file": file, "training_case": case, "equal": equal, "streamed_bytes": streamed, "line": words})


def _within(model: Any, given: Pictures, nbytes: int) -> tuple[str, int]:
    """`_gradients` under this budget, or one a little larger if it is too small. Raises BudgetTooSmall."""
    for _ in range(TRIES):
        model.runtime.budget = _allowed(model.runtime, nbytes)
        try:
            return _gradients(model, given, FEWEST)
        except BudgetTooSmall:
            nbytes += model.weights.nbytes // 8 + 8 * MiB
    return _gradients(model, given, FEWEST)


def _timed(part: Part, width: int, height: int) -> dict[str, Any]:
    runtime = Runtime(Settings(part.setup.device, "bf16"))
    assert part.cap is not None
    runtime.budget = _allowed(runtime, part.cap)
    model = handles.load_flux(runtime, path_of(part.setup.folder, part.files[0]))
    given = _images(model, width, height, part.seed)
    lora = _lora(model)
    place = _place(model, lora, given)
    with tempfile.TemporaryDirectory() as folder, ready(model, lora, given, place, Path(folder)) as walk:
        for _ in range(max(FEWEST, part.setup.steps)):
            found = walk.step(given, lambda: [given.call])
    report = _report(model)
    finite = all(bool(gradient.isfinite().all()) for gradient in found.gradients)
    seconds, predicted = report.actual, report.plan.seconds
    return {
        "size": f"{width}x{height}", "training_seconds": seconds, "predicted_seconds": predicted, "finite": finite,
        "peak_bytes": report.peak, "streamed_bytes": report.plan.streamed_bytes, "block_inputs": place,
        "file": part.files[0],
        "line": f"a training step at {width}x{height}: {seconds:.3f} s (predicted {predicted:.3f}), "
        f"peak {format_size(report.peak)}, {format_size(report.plan.streamed_bytes)} streamed",
    }  # fmt: skip


def _gradients(model: Any, given: Pictures, count: int) -> tuple[str, int]:
    """A digest of losses and gradients after some equal steps, and the bytes that a step streams."""
    lora = _lora(model)
    place = _place(model, lora, given)
    with tempfile.TemporaryDirectory() as folder, ready(model, lora, given, place, Path(folder)) as walk:
        for _ in range(count):
            found = walk.step(given, lambda: [given.call])
    digest = hashlib.sha256()
    for tensor in (found.losses, *found.gradients):
        digest.update(tensor.float().cpu().numpy().tobytes())
    managed = model.runtime.manager(model.device, model.weights.nbytes) is not None
    return digest.hexdigest(), _report(model).plan.streamed_bytes if managed else 0


def _lora(model: Any) -> TrainedLora:
    """With random numbers in both matrices, so that every gradient counts."""
    with torch.device("meta"):
        layers = chosen_layers(Flux(model.weights.config), "blocks")
    lora = TrainedLora(layers, RANK, float(RANK), model.device, model.dtype)
    generator = torch.Generator().manual_seed(1)
    lora.load({name: 0.02 * torch.randn(value.shape, generator=generator) for name, value in lora.state().items()})
    return lora


def _place(model: Any, lora: TrainedLora, given: Pictures) -> str:
    planned = foreseen(model, lora, given)
    return DEVICE if planned is None else planned.place


def _images(model: Any, width: int, height: int, seed: int) -> Pictures:
    config, generator = model.weights.config, torch.Generator().manual_seed(seed)
    shape = 1, config.in_channels, height // CELL, width // CELL
    x, target = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    context = torch.randn(1, TEXT, config.context_dim, generator=generator)
    pooled = torch.randn(1, config.vec_dim, generator=generator)
    return Pictures(x, torch.tensor([0.5]), context, pooled, torch.ones(1) if config.guidance else None, target)


def _allowed(runtime: Runtime, nbytes: int) -> Allowed:
    return Allowed(vram=nbytes) if runtime.device.type == "cuda" else Allowed(ram=nbytes)


def _report(model: Any) -> Any:
    manager = model.runtime.manager(model.device, model.weights.nbytes)
    return model.weights.managed(manager, model.dtype).report


def _in_a_fixed_order() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
