"""The images, captions, noise levels and noise of each step, as a function of only the seed and the step's number.

So a continued run needs no state of a generator, the modulation rows of later steps can be computed in advance, and the
order of earlier draws has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...models.latents import CELL
from ...sampling.schedule import FluxShift
from .buckets import Bucket
from .cache import Encoded, PictureCache, TextCache
from .folder import Picture
from .ready import Pictures
from .settings import LoraSettings


@dataclass(frozen=True)
class Example:
    """An image of the training set: its bucket, and its key in the cache."""

    picture: Picture
    bucket: Bucket
    key: str


@dataclass(frozen=True)
class Drawn:
    """The random choices for one image of a batch."""

    example: int
    caption: str
    time: float
    noise_seed: tuple[int, ...]


class TrainingSet:
    """The batches of a training."""

    def __init__(
        self, settings: LoraSettings, examples: Sequence[Example], pictures: PictureCache, texts: TextCache,
        guidance: bool,
    ) -> None:  # fmt: skip
        """guidance: whether the model has a guidance input."""
        self.settings, self.examples, self.guidance = settings, list(examples), guidance
        self.pictures, self.texts = pictures, texts
        self._epochs: dict[int, list[list[int]]] = {}
        self.steps_an_epoch = len(self._epoch(0))

    def drawn(self, number: int) -> list[Drawn]:
        """The random choices for the batch with this number."""
        epoch, place = divmod(number, self.steps_an_epoch)
        rng = rng_of(self.settings.seed, "batch", number)
        found = []
        for index, example in enumerate(self._epoch(epoch)[place]):
            picture = self.examples[example].picture
            caption = picture.captions[int(rng.integers(len(picture.captions)))]
            if rng.random() < self.settings.dropout:
                caption = ""
            time = self._shifted(self._time(rng), self.examples[example].bucket)
            found.append(Drawn(example, caption, time, (number, index)))
        return found

    def batch(self, number: int) -> Pictures:
        return self._made(self.drawn(number), "noise")

    def call(self, number: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The values on which the modulation rows of a batch depend, without its images."""
        drawn = self.drawn(number)
        pooled = torch.stack([self.texts.pooled(each.caption) for each in drawn])
        return torch.tensor([each.time for each in drawn]), pooled, self._guidance(len(drawn))

    def validation(self) -> list[Pictures]:
        """The fixed triples of image, noise level and noise, one by one: the levels are spread over the range."""
        count = self.settings.validate if self.examples else 0
        found = []
        for number in range(count):
            example = (
                number * len(self.examples) // count if len(self.examples) > count else number % len(self.examples)
            )
            time = self._shifted(_sigmoid(_normal_quantile((number + 0.5) / count)), self.examples[example].bucket)
            caption = self.examples[example].picture.captions[0]
            found.append(self._made([Drawn(example, caption, time, (number,))], "validation"))
        return found

    def heaviest(self) -> Pictures:
        """The shapes of the largest possible batch."""
        bucket = max((example.bucket for example in self.examples), key=lambda bucket: bucket.tokens)
        return shapes(
            self.settings, bucket, self.texts.length, *self._widths(), self._channels(), self.guidance,
            any(example.picture.mask for example in self.examples),
        )  # fmt: skip

    def _widths(self) -> tuple[int, int]:
        context, pooled = self.texts.get("")
        return context.shape[-1], pooled.shape[-1]

    def _channels(self) -> int:
        example = self.examples[0]
        return self.pictures.get(example.picture, example.bucket, example.key).latent.shape[0]

    def _made(self, drawn: Sequence[Drawn], purpose: str) -> Pictures:
        encoded = [self._encoded(each) for each in drawn]
        clean = torch.stack([each.latent for each in encoded])
        shape = tuple(clean.shape[1:])
        noise = torch.stack([_noise(self.settings.seed, purpose, each.noise_seed, shape) for each in drawn])
        times = torch.tensor([each.time for each in drawn])
        t = times[:, None, None, None]
        texts = [self.texts.get(each.caption) for each in drawn]
        weights = None
        if any(each.weights is not None for each in encoded):
            ones = torch.ones(1, *shape[1:])
            weights = torch.stack([ones if each.weights is None else each.weights for each in encoded])
        return Pictures(
            (1 - t) * clean + t * noise, times, torch.stack([text[0] for text in texts]),
            torch.stack([text[1] for text in texts]), self._guidance(len(drawn)), noise - clean, weights,
        )  # fmt: skip

    def _encoded(self, drawn: Drawn) -> Encoded:
        example = self.examples[drawn.example]
        return self.pictures.get(example.picture, example.bucket, example.key)

    def _guidance(self, count: int) -> Tensor | None:
        return torch.full((count,), self.settings.guidance) if self.guidance else None

    def _time(self, rng: np.random.Generator) -> float:
        if self.settings.time == "uniform":
            return float(rng.uniform(0.001, 1))
        if self.settings.time == "mode":  # Esser et al. 2024, section 3.1, with s = 1.29
            u = float(rng.uniform(0.001, 0.999))
            return 1 - u - 1.29 * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
        return _sigmoid(float(rng.standard_normal()))

    def _shifted(self, time: float, bucket: Bucket) -> float:
        time = min(max(time, 1e-3), 1.0)
        if self.settings.shift == "size":
            return float(FluxShift.for_size(bucket.width, bucket.height).sigma(time))
        shift = float(self.settings.shift)
        return shift * time / (1 + (shift - 1) * time)

    def _epoch(self, number: int) -> list[list[int]]:
        """The batches of one epoch: every image as often as its repeats, the images of a batch from one bucket."""
        if number not in self._epochs:
            rng = rng_of(self.settings.seed, "order", number)
            by_bucket: dict[Bucket, list[int]] = {}
            for index, example in enumerate(self.examples):
                by_bucket.setdefault(example.bucket, []).extend([index] * example.picture.repeats)
            made: list[list[int]] = []
            for bucket in sorted(by_bucket):
                order = [by_bucket[bucket][place] for place in rng.permutation(len(by_bucket[bucket]))]
                made += [
                    order[start : start + self.settings.batch] for start in range(0, len(order), self.settings.batch)
                ]
            self._epochs = {number: [made[place] for place in rng.permutation(len(made))]}
        return self._epochs[number]


def shapes(
    settings: LoraSettings, bucket: Bucket, text: int, context: int, pooled: int, channels: int, guidance: bool,
    masked: bool = False,
) -> Pictures:  # fmt: skip
    """A batch of these sizes without memory, on the meta device, for planning."""
    batch, height, width = settings.batch, bucket.height // CELL, bucket.width // CELL
    with torch.device("meta"):
        x, target = torch.empty(batch, channels, height, width), torch.empty(batch, channels, height, width)
        one = torch.empty(batch)
        weights = torch.empty(batch, 1, height, width) if masked else None
        return Pictures(
            x,
            one,
            torch.empty(batch, text, context),
            torch.empty(batch, pooled),
            one if guidance else None,
            target,
            weights,
        )


def rng_of(seed: int, purpose: str, *number: int) -> np.random.Generator:
    """The random generator for one purpose within one step."""
    return np.random.default_rng([seed, *purpose.encode(), *number])


def _noise(seed: int, purpose: str, number: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng_of(seed, purpose, *number).standard_normal(shape, np.float32))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _normal_quantile(share: float) -> float:
    """The value below which this share of a standard normal distribution lies."""
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * share - 1, dtype=torch.float64)))
