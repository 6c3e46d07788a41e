"""The phases of a LoRA training under a memory budget, checked from the headers of files before anything large is read.

    encode captions    T5 and CLIP-L                      only if a caption is not in the cache
    encode pictures    the autoencoder, whole or in tiles      only if a picture is not
    modulation rows    one pass over the adaLN matrices for the next steps
    training steps     forward and backward through the blocks
    samples            prompt, rows, sampling steps, decoding, while the LoRA and its moments stay in memory
    checkpoints        written and read as a whole

What one phase leaves in memory for the next is counted: the LoRA with its moments, tables, scratch memory, and with
RAM as the budget also the data of the validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ...errors import BudgetTooSmall
from ...memory.budget import format_size
from ...memory.manager import Manager
from ...memory.phases import Part, Phase, Reserved, Streamed, too_large
from ...memory.workload import MiB, Workload
from ...models.latents import CELL
from ...runtime.autoencoder import sizes_of
from ...runtime.autoencoder_handle import DECODE, ENCODE
from ...runtime.encoder_needs import EncoderNeeds, needs_of_file
from ...runtime.flux_needs import Job, flux_needs
from ...runtime.handles import Autoencoder, TextEncoders
from ...runtime.streamed_flux import ManagedFlux
from .adapter import TrainedLora, parameter_count
from .kept import DISK
from .optimiser import bytes_a_number
from .ready import Foreseen, Pictures, foreseen, managed_of, step_needs, tokens_of_one
from .settings import LoraSettings
from .walk import Loss

if TYPE_CHECKING:
    from .training import Parts

CAPTIONS, PICTURES, ROWS, STEPS = "encode captions", "encode pictures", "modulation rows", "training steps"
SAMPLES, CHECKPOINTS = "samples", "checkpoints"
LOOK_AHEAD = 32  # steps whose modulation rows are computed at once
MARGIN = 65 / 64  # of what is needed: the program itself takes some more in one run than in another
PIXEL = 31  # bytes of RAM for each pixel of a picture while it is read
RANKS = (256, 128, 64, 32, 16, 8, 4, 1)
SIZES = (1024, 768, 512, 384, 256, 128, 64)


@dataclass(frozen=True)
class Task:
    """All that the memory of a training depends on.

    captions, pictures   whether some must still be encoded
    rows                 of tokens that T5 encodes together: two if a caption has weights
    pixels               of the largest picture file
    prompts              tokens of the longest prompt of the samples; 0 if there are none
    """

    settings: LoraSettings
    layers: Mapping[str, tuple[int, int]]
    heaviest: Pictures
    loss: Loss
    captions: bool = False
    rows: int = 1
    pictures: bool = False
    pixels: int = 0
    prompts: int = 0

    @property
    def numbers(self) -> int:
        """Values of the LoRA."""
        return parameter_count(self.layers.values(), self.settings.rank)

    def lora(self, dtype: torch.dtype) -> TrainedLora:
        """On the meta device."""
        rank = self.settings.rank
        return TrainedLora(self.layers, rank, float(rank), torch.device("meta"), dtype)


def planned(
    parts: Parts, task: Task, others: Callable[[int, int], Task] | None = None
) -> tuple[tuple[Phase, ...], Foreseen | None]:
    """The phases, and the plan of the steps; none for a model that is loaded whole.

    others: makes the task with another rank and size, to name settings that would fit. Raises BudgetTooSmall, before
    any rate is measured, if a phase does not fit.
    """
    managed = managed_of(parts.model)
    if managed is None:
        return (), None
    manager = managed.manager
    needs = list(_parts(parts, managed, task))
    room = manager.room()
    phases = room.phases(needs)
    if too_large(phases, manager.limit):
        option, settings = "--vram" if manager.device.type == "cuda" else "--ram", task.settings
        fits = None if others is None else _fit(manager, parts, managed, others)
        raise BudgetTooSmall(refusal(phases, manager.limit, option, settings.rank, settings.size, fits))
    manager.machine(managed.blocks, tokens_of_one(task.heaviest), backward=True)  # measures, which takes memory too
    growth = sum(room.program.values()) - (sum(manager.room().program.values()) - manager.memory.growth_bytes)
    beside = _kept(managed, task) + _table(managed, task) + max(0, growth)
    steps = foreseen(parts.model, task.lora(parts.model.dtype), task.heaviest, task.loss, beside,
                     task.settings.accumulate)  # fmt: skip
    assert steps is not None
    found = replace(room, machine=steps.plan.machine).phases(needs)
    peak = steps.plan.peak_bytes
    return tuple(replace(phase, peak=peak) if phase.name == STEPS else phase for phase in found), steps


def _fit(
    manager: Manager, parts: Parts, managed: ManagedFlux, others: Callable[[int, int], Task]
) -> Callable[[int, int], bool]:
    """Whether a training with another rank and size fits."""

    def fits(rank: int, size: int) -> bool:
        return not too_large(manager.room().phases(_parts(parts, managed, others(rank, size))), manager.limit)

    return fits


def refusal(
    phases: Sequence[Phase], limit: int, option: str, rank: int, size: int, fits: Callable[[int, int], bool] | None
) -> str:
    """The error about phases that do not fit within `limit` bytes. option: of the command line, for the budget.

    fits: whether another rank and size fit; None if they cannot be chosen.
    """
    large = too_large(phases, limit)
    least = -(-int(large[0].least * MARGIN) // MiB)
    told = ", ".join(f"{phase.name} ({format_size(phase.least)})" for phase in large)
    ways = [] if fits is None else list(_ways(fits, rank, size))
    otherwise = f", or choose {' or '.join(ways)}" if ways else "; a smaller rank or size is not enough"
    return (
        f"This training needs at least {least} MiB, and the budget is {format_size(limit)}. What does not fit: {told}. "
        f"Allow {least}M or more ({option}, or the Memory tab){otherwise}."
    )


def _ways(fits: Callable[[int, int], bool], rank: int, size: int) -> Iterator[str]:
    """The largest rank, the largest size, or (if neither is enough) both together that fit."""
    ranks = [each for each in RANKS if each < rank]
    sizes = [each for each in SIZES if each < size]
    smaller = _first(ranks, lambda each: fits(each, size))
    if smaller is not None:
        yield f"rank {smaller}"
    narrower = _first(sizes, lambda each: fits(rank, each))
    if narrower is not None:
        yield f"size {narrower}"
    if smaller is None and narrower is None and ranks and sizes:
        both = _first(sizes, lambda each: fits(ranks[-1], each))
        if both is not None:
            yield f"rank {ranks[-1]} with size {both}"


def _first(values: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The first that fits, of values that need less and less memory; the last is asked first."""
    if not values or not fits(values[-1]):
        return None
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(values[middle]) else (middle + 1, high)
    return values[low]


# -- the parts ---------------------------------------------------------------------------------------------------------


def _parts(parts: Parts, managed: ManagedFlux, task: Task) -> Iterator[Part]:
    """The parts of all phases, in their order."""
    settings, kept = task.settings, _kept(managed, task)
    if task.captions:
        yield from _text_parts(CAPTIONS, parts.text, task.heaviest.context.shape[1], task.rows, 0)
    if task.pictures:
        height, width = (side * CELL for side in task.heaviest.x.shape[-2:])
        yield from _autoencoder_parts(PICTURES, parts.autoencoder, True, (height, width, 3), 0)
        if managed.manager.device.type == "cpu":
            yield Part(PICTURES, Reserved((task.pixels * PIXEL,), 0))
    yield Part(ROWS, Streamed(*managed.rows.needs(managed.module, row_count(settings))), kept)
    lora = task.lora(managed.dtype)
    workload, activations = step_needs(managed, lora, task.heaviest, DISK, task.loss, settings.accumulate)
    yield Part(STEPS, Streamed(workload, activations), kept + _table(managed, task))
    if task.prompts:
        yield from _sample_parts(parts, managed, task)
    copies = copied_bytes(task.numbers, managed.manager.device.type == "cpu")
    yield Part(CHECKPOINTS, Reserved((copies,), 0), kept)


def _text_parts(phase: str, text: TextEncoders, tokens: int, rows: int, beside: int) -> Iterator[Part]:
    both = [needs_of_file(each.config, each.tensors, tokens, rows) for each in (text.t5_weights, text.clip_weights)]
    stay = beside + text_bytes(both)
    for needs in both:
        yield Part(phase, Streamed(needs.workload, needs.run.peak), stay)


def text_bytes(encoders: Sequence[EncoderNeeds]) -> int:
    """What the encoders hold while they are in use, besides what is streamed."""
    return sum(needs.small for needs in encoders) + max(needs.scratch for needs in encoders)


def _autoencoder_parts(
    phase: str, autoencoder: Autoencoder, encodes: bool, shape: tuple[int, ...], beside: int
) -> Iterator[Part]:
    runtime, weights = autoencoder.runtime, autoencoder.weights
    if runtime.manager(runtime.device, weights.nbytes) is None:
        return
    conversion, kind = ENCODE if encodes else DECODE, runtime.device.type
    sizes = sizes_of(weights, conversion, shape, runtime.autoencoder_dtype, kind, runtime.activations)
    yield Part(phase, Reserved(sizes), beside)


def _sample_parts(parts: Parts, managed: ManagedFlux, task: Task) -> Iterator[Part]:
    settings, config, side = task.settings, managed.config, task.settings.size
    beside = _kept(managed, task) + task.numbers * managed.dtype.itemsize  # and the LoRA of the file
    yield from _text_parts(SAMPLES, parts.text, task.prompts, 1, beside)
    encoders = (parts.text.t5_weights, parts.text.clip_weights)
    beside += text_bytes([needs_of_file(each.config, each.tensors, 1) for each in encoders])
    yield Part(SAMPLES, Streamed(*managed.rows.needs(managed.module, settings.sample_steps)), beside)
    needs = flux_needs(config, Job(side, side, 1, task.prompts, managed.dtype.itemsize))

    def workload(fixed: Mapping[str, int]) -> Workload:
        return managed.blocks.workload(needs.run.uses, fixed)

    taken = managed.manager.memory.taken_bytes(needs.run.peak)
    yield Part(SAMPLES, Streamed(workload, taken), beside + managed.rows.nbytes(settings.sample_steps))
    latent = (config.in_channels, side // CELL, side // CELL)
    yield from _autoencoder_parts(SAMPLES, parts.autoencoder, False, latent, beside)


def copied_bytes(numbers: int, cpu: bool) -> int:
    """Bytes of copies of a LoRA while its file is written (bfloat16), or a checkpoint is read, which happens in RAM."""
    return numbers * (4 + 8 if cpu else 2)


def row_count(settings: LoraSettings) -> int:
    """Modulation rows that are computed at once."""
    return min(LOOK_AHEAD, settings.steps * settings.accumulate) * settings.batch + settings.validate


def _table(managed: ManagedFlux, task: Task) -> int:
    """Bytes of modulation rows during the steps."""
    return managed.rows.nbytes(row_count(task.settings))


def _kept(managed: ManagedFlux, task: Task) -> int:
    """Bytes that stay from the first step to the last, whatever runs."""
    held = task.numbers * bytes_a_number(task.settings.optimiser, managed.dtype) + managed.blocks.scratch_bytes(
        managed.as_integers
    )
    if managed.manager.device.type == "cpu":
        heaviest = task.heaviest
        held += task.settings.validate * (heaviest.context.nbytes // len(heaviest.x) + 3 * heaviest.x[:1].nbytes)
    return held
