"""The memory and work of a transformer's training step at one size, observed on the meta device without file and
weights.

The same code that trains is run there, and the same planner makes the plan: its schedule visits every weight twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ...models.flux import Flux
from ...models.flux_config import FluxConfig
from ...runtime.flux_needs import FluxNeeds, Job, flux_needs
from ...runtime.meta_results import META
from .adapter import TrainedLora, chosen_layers, parameter_count
from .batches import shapes
from .buckets import Bucket
from .kept import DEVICE, RAM
from .ready import kept_bytes, observe_walk, with_gradients
from .settings import LoraSettings


@dataclass(frozen=True)
class TrainingNeeds:
    """needs: with the uses and the peak of a whole step. Also the bytes of block inputs, and the number of values of
    the LoRA.
    """

    needs: FluxNeeds
    kept_bytes: int
    numbers: int


def training_needs(config: FluxConfig, job: Job, settings: LoraSettings, place: str) -> TrainingNeeds:
    """place: where block inputs are stored (kept.py). Raises InputError for layers that the model does not have."""
    return _observed(config, job, settings, DEVICE if place == DEVICE else RAM)


@lru_cache(maxsize=16)
def _observed(config: FluxConfig, job: Job, settings: LoraSettings, place: str) -> TrainingNeeds:
    with torch.device(META):
        flux = Flux(config).to(job.dtype).requires_grad_(False)
    layers = chosen_layers(flux, settings.layers)
    lora = TrainedLora(layers, settings.rank, settings.scale_alpha, META, job.dtype)
    bucket = Bucket(job.width, job.height)
    sizes = replace(settings, batch=job.batch)
    heaviest = shapes(
        sizes, bucket, job.text_tokens, config.context_dim, config.vec_dim, config.in_channels, config.guidance
    )
    run = observe_walk(lora.beside(flux), heaviest, place, job.dtype)
    numbers = parameter_count(layers.values(), settings.rank)
    run = replace(run, peak=with_gradients(run.peak, numbers, job.dtype, settings.accumulate))
    return TrainingNeeds(
        replace(flux_needs(config, job), run=run), kept_bytes(flux, lora, heaviest, job.dtype), numbers
    )
