"""A training on given latents and conditioning: no folder, no encoders, no caches.

For nodes that have both as inputs. The latents, noise levels and noise of a step are a function of the seed and the
step, as in other trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...checkpoint.whole_files import read_tensors
from ...errors import InputError
from ...models.flux import Flux
from ...runtime.handles import FluxModel
from .adapter import chosen_layers
from .folder import TrainingFolder
from .phases import Task, planned
from .ready import Pictures
from .settings import LoraSettings
from .steps import Call, Steps
from .training import Found, LoraTraining, Parts, Watcher


class GivenTraining(LoraTraining):
    """A training on latents [N, C, h, w] in the transformer's scale, with an entry of conditioning for each."""

    def __init__(
        self, settings: LoraSettings, model: FluxModel, latents: Tensor, conditioning: list[list[Any]], out: Path,
        watcher: Watcher | None = None,
    ) -> None:  # fmt: skip
        """out: for checkpoints. Raises InputError for a model that cannot be trained so."""
        nothing: Any = None
        super().__init__(settings, Parts(model, nothing, nothing), out, out, watcher)
        self.batches = GivenSet(settings, model, latents, conditioning)
        self.first: Mapping[str, Tensor] | None = None  # masters to begin with

    def heaviest(self, found: Found) -> Pictures:
        return self.batches.batch(0)

    def train(self) -> tuple[dict[str, Tensor], list[float]]:
        """All steps. Returns the masters by name and the loss of each step. Raises as `LoraTraining.run`."""
        nothing: Any = None
        self.out.mkdir(parents=True, exist_ok=True)
        found = Found(TrainingFolder(self.out, (), 0), [], [], 0, nothing, nothing, self.layers())
        found.phases, found.foreseen = planned(
            self.parts, self.given_task(found), lambda rank, _: self.given_task(found, rank)
        )
        steps = Steps(self, found, self.batches)
        if self.first is not None:
            steps.lora.load(self.first)
        steps.run()
        by_step: dict[int, list[float]] = {}
        for row in steps.curve.rows:
            by_step.setdefault(row.step, []).append(row.loss)
        return steps.lora.state(), [sum(values) / len(values) for values in by_step.values()]

    def given_task(self, found: Found, rank: int | None = None) -> Task:
        """What the memory of the training depends on: there is nothing to encode."""
        return Task(
            replace(self.settings, rank=rank or self.settings.rank), found.layers, self.heaviest(found), self.loss
        )

    def layers(self) -> dict[str, tuple[int, int]]:
        """The layers that the settings choose."""
        with torch.device("meta"):
            return chosen_layers(Flux(self.parts.model.weights.config), self.settings.layers)


def start_from(training: GivenTraining, path: Path) -> None:
    """Begin with the LoRA of a file with kohya's names, as SaveLoRANode writes it. Raises InputError for others."""
    tensors, first = read_tensors(path), dict[str, Tensor]()
    rank, alpha = training.settings.rank, training.settings.scale_alpha
    for layer, (outputs, inputs) in training.layers().items():
        prefix = "lora_unet_" + layer.replace(".", "_")
        down, up = (tensors.get(f"{prefix}.lora_{part}.weight") for part in ("down", "up"))
        if down is None or up is None or tuple(down.shape) != (rank, inputs) or tuple(up.shape) != (outputs, rank):
            raise InputError(
                f"{path.name} cannot be gone on with: {prefix} should have rank {rank}. Set rank to that of the file, "
                f"or choose a LoRA of this model that Save LoRA Weights wrote."
            )
        scale = float(tensors.get(f"{prefix}.alpha", torch.tensor(float(rank)))) / rank
        first[f"{layer}.down"], first[f"{layer}.up"] = down.float(), up.float() * (scale * rank / alpha)
    training.first = first


class GivenSet:
    """Batches of latents; each pass through them has an order of its own."""

    def __init__(
        self, settings: LoraSettings, model: FluxModel, latents: Tensor, conditioning: list[list[Any]]
    ) -> None:
        self.settings, self.model, self.latents = settings, model, latents
        entries = conditioning * len(latents) if len(conditioning) == 1 else conditioning
        longest = max(tokens.shape[1] for tokens, _ in entries)
        self.context = torch.cat(
            [F.pad(tokens[:1].float(), (0, 0, 0, longest - tokens.shape[1])) for tokens, _ in entries]
        ).clone()
        self.pooled = torch.cat([values["pooled_output"][:1].float() for _, values in entries]).clone()
        self.guidance = torch.tensor([float(values.get("guidance", settings.guidance)) for _, values in entries])

    def batch(self, number: int) -> Pictures:
        chosen, times = self._drawn(number)
        latents, t = self.latents[chosen], times[:, None, None, None]
        rng = np.random.default_rng([self.settings.seed, *b"noise", number])
        noise = torch.from_numpy(rng.standard_normal(tuple(latents.shape), np.float32))
        _, pooled, guidance = self.call(number)
        x = (1 - t) * latents + t * noise
        return Pictures(x, times, self.context[chosen], pooled, guidance, noise - latents)

    def call(self, number: int) -> Call:
        chosen, times = self._drawn(number)
        guidance = self.guidance[chosen] if self.model.weights.config.guidance else None
        return times, self.pooled[chosen], guidance

    def validation(self) -> Sequence[Pictures]:
        """None: there is no validation set."""
        return []

    def _drawn(self, number: int) -> tuple[Tensor, Tensor]:
        """The latents and their noise levels: uniform as in ComfyUI, then shifted as in sampling with the model."""
        size, count = self.settings.batch, len(self.latents)
        places = np.arange(number * size, (number + 1) * size)
        orders = {epoch: np.random.default_rng([self.settings.seed, *b"order", int(epoch)]).permutation(count)
                  for epoch in np.unique(places // count)}  # fmt: skip
        chosen = torch.tensor([int(orders[place // count][place % count]) for place in places])
        even = np.random.default_rng([self.settings.seed, *b"time", number]).random(size)
        times = [self.model.sampling.percent_to_sigma(float(share)) for share in even]
        return chosen, torch.tensor(times, dtype=torch.float32)
