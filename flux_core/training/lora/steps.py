"""The steps of one training: batches to gradients to updates, with checkpoints, validation and samples between them.

The checkpoint of a step is written before anything else is done with it, and also if the steps end for any reason
except a kill.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ...errors import InputError, NotFinite
from .adapter import TrainedLora
from .cache import digest
from .checkpoint import Saved
from .curve import Curve, Row
from .kept import DEVICE
from .lora_file import metadata_of, write_lora
from .optimiser import load_state, optimiser_for, rate_at, state_of, update
from .phases import LOOK_AHEAD
from .ready import Pictures, Ready, ready
from .walk import mean_of

if TYPE_CHECKING:
    from .training import Found, LoraTraining

Call = tuple[Tensor, Tensor, Tensor | None]


class Batches(Protocol):
    """The data of a training: batches by their number, the inputs of their modulation, a fixed set for validation."""

    def batch(self, number: int) -> Pictures: ...
    def call(self, number: int) -> Call: ...
    def validation(self) -> Sequence[Pictures]: ...


class Steps:
    """The remaining steps of one training."""

    def __init__(self, training: LoraTraining, found: Found, training_set: Batches) -> None:
        self.training, self.found, self.set = training, found, training_set
        self.settings, model = training.settings, training.parts.model
        self.lora = TrainedLora(
            found.layers, self.settings.rank, self.settings.scale_alpha, model.device, model.dtype, self.settings.seed
        )
        self.optimiser = optimiser_for(self.settings, self.lora.masters)
        self.shapes = {name: tuple(stored.shape) for name, stored in model.weights.tensors.items()}
        self.facts = {"layers": digest(found.layers), "device": model.device.type, "dtype": str(model.dtype)}
        self.facts |= {"data": digest([example.key for example in found.examples])}
        self.done = self._resume()
        self.curve = Curve(training.out, self.done)
        self.validation = training_set.validation()

    def run(self) -> None:
        settings, watcher, resumed = self.settings, self.training.watcher, self.done
        self._write_missing()
        self._sample_before()
        while self.done < settings.steps:
            until = min(settings.steps, (self.done // settings.sample_every + 1) * settings.sample_every)
            with self._saving_when_stopped(), self._ready() as model:
                if self.done == 0:
                    self._validate(model)
                watcher.phase("train", settings.steps, self.done)
                while self.done < until:
                    self._step(model)
                    if self.done % settings.validate_every == 0 or self.done == settings.steps:
                        self._validate(model)
                    if self.done % settings.save_every == 0 and self.done < settings.steps:
                        self._save()
                        self._write(self.training.early(self.done))
                    if self.done < until:
                        self.training.let_others_first()
            self._save()
            if self.done < settings.steps:
                self._write(self.training.early(self.done))
                self._sample(self.training.early(self.done))
        self._write(self.training.final)
        if resumed < settings.steps or not self._has_samples():
            self._sample(self.training.final)

    def _step(self, model: Ready) -> None:
        settings, began = self.settings, time.perf_counter()
        numbers = range(self.done * settings.accumulate, (self.done + 1) * settings.accumulate)
        batches = [self.set.batch(number) for number in numbers]
        found = mean_of([model.step(batch, lambda: self._upcoming(numbers.start)) for batch in batches])
        losses = found.losses.tolist()
        loss = float(found.losses.mean())
        self.lora.take_gradients(model.walk.trained, found.gradients)
        rate = rate_at(settings, self.done)
        norm = update(self.optimiser, self.lora.masters, rate, settings.clip)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(self._not_finite())
        self.lora.refresh()
        del found
        model.measure(batches)
        self.done += 1
        seconds = time.perf_counter() - began
        times = torch.cat([batch.timesteps for batch in batches])
        for t, each in zip(times.tolist(), losses, strict=True):
            self.curve.add(Row(self.done, t, each, rate, seconds, norm))
        self.training.watcher.advance(1, f"loss {self._recent():.4f}")

    def _recent(self) -> float:
        rows = self.curve.rows[-50:]
        return sum(row.loss for row in rows) / len(rows)

    def _upcoming(self, number: int) -> Sequence[Call]:
        last = self.settings.steps * self.settings.accumulate
        return [self.set.call(each) for each in range(number, min(number + LOOK_AHEAD, last))] + [
            pictures.call for pictures in self.validation
        ]

    def _validate(self, model: Ready) -> None:
        if self.validation:
            calls = [pictures.call for pictures in self.validation]
            losses = [model.losses(pictures, lambda: calls) for pictures in self.validation]
            self.curve.add_validation(self.done, float(torch.cat(losses).mean()))
            self.curve.save()

    @contextmanager
    def _ready(self) -> Iterator[Ready]:
        place = self.found.foreseen.place if self.found.foreseen else DEVICE
        training = self.training
        with ready(
            training.parts.model, self.lora, training.heaviest(self.found), place, training.out, training.loss,
            self.settings.accumulate,
        ) as model:  # fmt: skip
            yield model

    @contextmanager
    def _saving_when_stopped(self) -> Iterator[None]:
        """If the steps end for any reason except a kill, the finished ones are saved."""
        try:
            yield
        except NotFinite:
            raise
        except BaseException:
            if self.done:
                self._save()
            raise

    def _save(self) -> None:
        tensors, others = state_of(self.optimiser, self.lora.names)
        self.training.checkpoints.save(Saved(self.done, self.lora.state(), tensors, others, self.facts))
        self.curve.save()

    def _resume(self) -> int:
        saved = self.training.checkpoints.newest()
        if saved is None:
            return 0
        different = [name for name, value in self.facts.items() if saved.facts.get(name) != value]
        if different:
            nouns = {"layers": "other layers", "device": "another device", "dtype": "another number type",
                     "data": "other pictures"}  # fmt: skip
            raise InputError(
                f"The training in {self.training.out} was started with {' and '.join(nouns[n] for n in different)}. "
                "Start again with --fresh, or choose another --name."
            )
        self.lora.load(saved.lora)
        load_state(self.optimiser, self.lora.names, saved.moments, saved.others)
        steps = self.settings.steps
        self.training.watcher.note(
            f"Continuing after step {saved.step} of {steps}." if saved.step < steps else f"All {steps} steps are done."
        )
        return saved.step

    def _write(self, path: Path) -> None:
        model = self.training.parts.model
        metadata = metadata_of(
            self.settings, self.found.folder, model.weights.path.name, model.weights.config.guidance,
            self.found.sizes, self.done,
        )  # fmt: skip
        write_lora(path, self.lora.state(), self.settings, self.shapes, metadata)

    def _write_missing(self) -> None:
        """The LoRA file of the step to continue from, if the training was killed after its checkpoint."""
        due = self.done % self.settings.save_every == 0 or self.done % self.settings.sample_every == 0
        path = self.training.early(self.done)
        if 0 < self.done < self.settings.steps and due and not path.is_file():
            self._write(path)

    def _sample_before(self) -> None:
        """Samples without the LoRA, or those of the step to continue from if the training was stopped in them."""
        path = self.training.early(self.done)
        if self.done == 0:
            self._sample(None)
        elif self.done % self.settings.sample_every == 0 and self.done < self.settings.steps and path.is_file():
            if not self._has_samples():
                self._sample(path)

    def _has_samples(self) -> bool:
        """Whether the samples of this step exist, if there should be any."""
        sampler = self.training.sampler
        return sampler is None or sampler.made(self.done)

    def _sample(self, path: Path | None) -> None:
        """Must be called after the checkpoint has been written."""
        if self.training.sampler is not None and self.settings.prompts:
            try:
                self.training.sampler(path, self.done)
            finally:
                self.training.release_encoders()

    def _not_finite(self) -> str:
        saved = self.training.checkpoints.generations()
        there = f"The checkpoint {saved[-1].name} is good" if saved else "There is no checkpoint yet"
        return (
            f"The loss is not a finite number at step {self.done + 1}: the training has diverged. {there}; start again "
            f"with --fresh and a lower rate, for example --rate {self.settings.rate / 3:.1g}."
        )
