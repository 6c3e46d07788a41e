"""Prepares a transformer for training steps: loaded whole, or streamed under a budget in the training's own schedule.

Under a budget the step is first observed on the meta device, like a sampling run, and uses the same planner, ring and
executor: the schedule only visits weights twice. Modulation rows come from the same table: the next batches are known,
so one pass over the adaLN matrices serves many steps. Uses no data set and no optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import BudgetTooSmall
from ...memory.plan import Plan
from ...memory.running import RunningModel
from ...memory.workload import Machine, Workload
from ...models.denoiser_inputs import DenoiserInputs
from ...models.flux import Flux
from ...models.tensor_trees import map_tensors, shapes_of
from ...runtime.dry_run import DryRun, branch_shapes, dry_run, shape_of
from ...runtime.flux_needs import tokens_of
from ...runtime.handles import FluxModel
from ...runtime.meta_results import META
from ...runtime.modulation import Rows, rows_like
from ...runtime.modulation_rows import Call, RunRows
from ...runtime.streamed_flux import ManagedFlux
from .adapter import TrainedLora
from .kept import DEVICE, DISK, RAM, Elsewhere, Kept, OnDevice, kept
from .walk import Attempt, Batch, Gradients, Loss, Walk, at_once, squared

UPDATE_BYTES = 100  # read and written for each value: norm, clipping, AdamW's operations one by one, the copy
UPDATE_CALLS = 20  # operations for each of the LoRA's tensors


@dataclass(frozen=True)
class Pictures:
    """The noisy images of one step.

    x          [B, C, h, w] noisy scaled latents, float32 on the CPU as all of this
    timesteps  [B]
    context    [B, L, context_dim]
    pooled     [B, vec_dim]
    guidance   [B], or None
    target     [B, C, h, w]
    weights    [B, 1, h, w] in 0..1, or None
    """

    x: Tensor
    timesteps: Tensor
    context: Tensor
    pooled: Tensor
    guidance: Tensor | None
    target: Tensor
    weights: Tensor | None = None

    @property
    def call(self) -> Call:
        """The values on which their modulation rows depend."""
        return self.timesteps, self.pooled, self.guidance


Upcoming = Callable[[], Sequence[Call]]  # those of this step and of later steps


def none_upcoming() -> Sequence[Call]:
    return ()


class Ready:
    """Training steps of one model with one LoRA."""

    def __init__(self, bare: Flux, lora: TrainedLora, model: FluxModel, keeper: Kept, loss: Loss) -> None:
        self.bare, self.lora, self.device, self.dtype = bare, lora, model.device, model.dtype
        self.walk = Walk(lora.beside(bare), keeper, loss)
        self._modulated = any("mod" in path for path in lora.shapes)

    def step(self, pictures: Pictures, upcoming: Upcoming = none_upcoming) -> Gradients:
        """Losses, and gradients of the LoRA's copies in the order of `walk.trained`."""
        batch = self._batch(pictures, upcoming)
        return self._run(lambda attempt: self.walk(batch, attempt))

    def measure(self, pictures: Sequence[Pictures]) -> None:
        """To be called after an update with the gradients of these images: later steps need the memory it needed."""

    def losses(self, pictures: Pictures, upcoming: Upcoming = none_upcoming) -> Tensor:
        """The loss of each image [B], without gradients."""
        batch = self._batch(pictures, upcoming)
        return self._run(lambda attempt: Gradients(self.walk.losses(batch, attempt), ())).losses

    def _run(self, work: Callable[[Attempt], Gradients]) -> Gradients:
        return work(at_once)

    @torch.no_grad()
    def _rows(self, call: Call, upcoming: Upcoming) -> Rows:
        return self.bare.modulations(self.bare.vector(*call, self.dtype))

    def _batch(self, pictures: Pictures, upcoming: Upcoming) -> Batch:
        rows = tuple(row.clone() if row.is_inference() else row for row in self._rows(pictures.call, upcoming))
        active = None
        if self._modulated:
            with torch.no_grad():
                active = F.silu(self.bare.vector(*pictures.call, self.dtype))
        there = map_tensors(pictures, lambda tensor: tensor.to(self.device, non_blocking=True))
        inputs = DenoiserInputs(
            there.x.to(self.dtype), there.timesteps, there.context.to(self.dtype), there.pooled, there.guidance
        )
        return Batch(inputs, rows, there.target, active, there.weights)


class ReadyStreamed(Ready):
    """Training steps under a budget: every block may be run again, the plan follows the budget between steps."""

    def __init__(
        self, managed: ManagedFlux, lora: TrainedLora, model: FluxModel, keeper: Kept, loss: Loss,
        running: RunningModel, tokens: int,
    ) -> None:  # fmt: skip
        """tokens: of the largest batch, for which the plan was made."""
        super().__init__(managed.module, lora, model, keeper, loss)
        self.running, self.tokens = running, tokens
        self._rows_of = RunRows(managed.rows, managed.module, ())

    def measure(self, pictures: Sequence[Pictures]) -> None:
        if max(_tokens(each) for each in pictures) >= self.tokens:
            self.running.measure()

    def _run(self, work: Callable[[Attempt], Gradients]) -> Gradients:
        self.running.follow_budget()
        return self.running.step(lambda: work(self._attempt))

    def _attempt(self, work: Callable[[], object]) -> object:
        stream = self.running.model.stream
        assert stream is not None
        self.running.report.report_ring(stream.in_ring)
        return self.running.attempt(work)

    def _rows(self, call: Call, upcoming: Upcoming) -> Rows:
        if not self._rows_of.has_call(call):
            self.running.model.park()
            self._rows_of.expect([call, *upcoming()])
            self.running.replan()
        return self._rows_of.of_call(call)


@contextmanager
def ready(
    model: FluxModel, lora: TrainedLora, heaviest: Pictures, place: str, folder: Path, loss: Loss = squared,
    accumulate: int = 1,
) -> Iterator[Ready]:  # fmt: skip
    """The model with the LoRA, ready for steps with images up to the size of `heaviest`.

    place: where block inputs are stored (kept.py); folder: for those on disk. accumulate: how many batches' gradients
    are combined for one update. Raises BudgetTooSmall.
    """
    keeper = kept(place, model.device, folder)
    managed = managed_of(model)
    if managed is None:
        yield Ready(model.weights.module(model.device, model.dtype), lora, model, keeper, loss)
        return
    observed, key = _observed(managed, lora, heaviest, place, loss, accumulate)
    taken = managed.manager.memory.taken_bytes(observed.peak)
    nbytes = with_gradients(taken, lora.numbers, model.dtype, accumulate)
    with managed.walking(observed, key, tokens_of_one(heaviest), nbytes) as running:
        yield ReadyStreamed(managed, lora, model, keeper, loss, running, _tokens(heaviest))


@dataclass(frozen=True)
class Foreseen:
    """The needs of a step, before any data is moved."""

    plan: Plan
    place: str  # where block inputs are stored
    kept_bytes: int  # of block inputs
    update: float = 0.0  # seconds of an update besides the steps through the model: the optimiser, the next batch

    def seconds(self, accumulate: int) -> float:
        """Seconds of an update with this many batches."""
        return self.plan.seconds * accumulate + self.update


def foreseen(
    model: FluxModel, lora: TrainedLora, heaviest: Pictures, loss: Loss = squared, beside: int = 0, accumulate: int = 1
) -> Foreseen | None:
    """The fastest plan within the budget, over the places for block inputs; None for a model that is loaded whole.

    lora: may be on the meta device. beside: bytes that will also be on the device but are not yet. accumulate: as for
    `ready`. Raises BudgetTooSmall if there is no plan.
    """
    managed = managed_of(model)
    if managed is None:
        return None
    nbytes = kept_bytes(managed.module, lora, heaviest, model.dtype)
    link = managed.manager.machine(managed.blocks, tokens_of_one(heaviest)).link
    found: list[Foreseen] = []
    refused: Exception | None = None
    for place in (DEVICE, RAM, DISK) if link is not None else (DEVICE, DISK):
        observed, key = _observed(managed, lora, heaviest, place, loss, accumulate)
        taken = managed.manager.memory.taken_bytes(observed.peak)
        expected = with_gradients(taken, lora.numbers, model.dtype, accumulate)
        try:
            plan = managed.foreseen(observed, key, tokens_of_one(heaviest), beside, expected)
        except BudgetTooSmall as error:
            refused = refused or error
            continue
        moved = {DEVICE: 0.0, RAM: 2 * nbytes / (link or 1), DISK: 2 * nbytes / plan.machine.disk}[place]
        update = update_seconds(plan.machine, lora)
        found.append(Foreseen(replace(plan, seconds=plan.seconds + moved), place, nbytes, update))
    if not found:
        assert refused is not None
        raise refused
    return min(found, key=lambda each: each.plan.seconds)


def step_needs(
    managed: ManagedFlux, lora: TrainedLora, heaviest: Pictures, place: str, loss: Loss, accumulate: int
) -> tuple[Callable[[Mapping[str, int]], Workload], int]:
    """The workload of an update, from what else is on the device, and the bytes of its activations and gradients."""
    observed, _ = _observed(managed, lora, heaviest, place, loss, accumulate)
    taken = managed.manager.memory.taken_bytes(observed.peak)
    return managed.walked(observed), with_gradients(taken, lora.numbers, managed.dtype, accumulate)


def update_seconds(machine: Machine, lora: TrainedLora) -> float:
    """Seconds of an update of the LoRA with clipping."""
    calls = UPDATE_CALLS * 2 * len(lora.shapes) * (machine.call or 0.0)
    return calls + UPDATE_BYTES * lora.numbers / (machine.elementwise or machine.memory)


def kept_bytes(flux: Flux, lora: TrainedLora, heaviest: Pictures, dtype: torch.dtype) -> int:
    """Bytes of the block inputs that are stored between the two halves of a step."""
    first = Walk(lora.beside(flux)).first
    blocks = flux.config.depth + flux.config.depth_single - first
    return blocks * _tokens(heaviest) * flux.config.hidden * dtype.itemsize


def with_gradients(activations: int, numbers: int, dtype: torch.dtype, accumulate: int) -> int:
    """Bytes of tensors that an update needs at once. activations: of one batch's walk, with its gradients.

    During the last walk the gradients of the earlier batches exist too. Afterwards those of all batches do, and their
    mean in float32 for the optimiser. numbers: of the LoRA.
    """
    one = numbers * dtype.itemsize
    copies = 0 if dtype == torch.float32 and accumulate == 1 else 4 * numbers
    return max(activations + (accumulate - 1) * one, accumulate * one + copies)


def observe_walk(flux: Flux, heaviest: Pictures, place: str, dtype: torch.dtype, loss: Loss = squared) -> DryRun:
    """One training step of a model with trainable branches, on the meta device."""
    sample = map_tensors(heaviest, shape_of)
    vector = torch.empty(sample.x.shape[0], flux.config.hidden, dtype=dtype, device=META)
    inputs = DenoiserInputs(
        sample.x.to(dtype), sample.timesteps, sample.context.to(dtype), sample.pooled, sample.guidance
    )
    batch = Batch(inputs, rows_like(flux, vector), sample.target, vector, sample.weights)

    def step(copy: Flux) -> object:
        return Walk(copy, OnDevice() if place == DEVICE else Elsewhere(), loss)(batch)

    return dry_run(flux, step, gradients=True)


def _observed(
    managed: ManagedFlux, lora: TrainedLora, heaviest: Pictures, place: str, loss: Loss, accumulate: int
) -> tuple[DryRun, Hashable]:
    module = lora.beside(managed.module)
    key = (
        "walk",
        shapes_of(heaviest),
        branch_shapes(module),
        place == DEVICE,
        accumulate,
    )  # all places outside the device are equal here
    return managed.observed(key, lambda: observe_walk(module, heaviest, place, managed.dtype, loss)), key


def managed_of(model: FluxModel) -> ManagedFlux | None:
    """The model under its memory manager; None if it is loaded whole."""
    manager = model.runtime.manager(model.device, model.weights.nbytes)
    return None if manager is None else model.weights.managed(manager, model.dtype)


def tokens_of_one(pictures: Pictures) -> int:
    """The tokens of one image with its text."""
    return tokens_of(DenoiserInputs(pictures.x, pictures.timesteps, pictures.context, pictures.pooled))


def _tokens(pictures: Pictures) -> int:
    return tokens_of_one(pictures) * pictures.x.shape[0]
