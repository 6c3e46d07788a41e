"""One LoRA training from its folder to its file: phases, checkpoints, samples; a stopped training can be continued.

    read captions and pictures -> encode captions -> encode pictures -> train -> NAME.safetensors

All its files are in one folder:

    settings.json   the settings                               loss.csv, loss.svg ...   curve.py
    state/          checkpoints (checkpoint.py)                samples/                 images of the prompts
    cache/          latents and embeddings (cache.py)          NAME-000250.safetensors  intermediate LoRAs

Independent of the command line and of nodes: a `Watcher` receives progress, a `Sampler` makes images.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F

from ...cancel import check_cancelled
from ...errors import BudgetTooSmall, InputError, Interrupted, SluiceError
from ...io.saving import write_whole
from ...models.flux import Flux
from ...runtime.handles import Autoencoder, FluxModel, TextEncoders
from .adapter import TrainedLora, chosen_layers, parameter_count
from .batches import Example, TrainingSet, shapes
from .buckets import bucket_for, buckets
from .cache import Cache, PictureCache, TextCache, digest_of_weights
from .checkpoint import Checkpoints
from .folder import TABLE, TrainingFolder, read_folder
from .optimiser import check_installed
from .ready import Foreseen, Pictures, foreseen
from .settings import LoraSettings, differences, settings_from
from .walk import Loss, squared

LOSS_FUNCTIONS: dict[str, Loss] = {
    "l2": squared,
    "l1": lambda velocity, target: (velocity - target).abs(),
    "huber": lambda velocity, target: F.huber_loss(velocity, target, reduction="none"),
}


class Watcher(Protocol):
    """Receives the progress of a training."""

    def phase(self, name: str, total: int, done: int = 0) -> None: ...
    def advance(self, count: int = 1, note: str = "") -> None: ...
    def note(self, text: str) -> None: ...


class Silent:
    """Ignores all progress."""

    def phase(self, name: str, total: int, done: int = 0) -> None: ...
    def advance(self, count: int = 1, note: str = "") -> None: ...
    def note(self, text: str) -> None: ...


class Sampler(Protocol):
    """Makes the sample pictures of a step, with a LoRA file or (None) without one."""

    def __call__(self, lora: Path | None, step: int) -> None: ...
    def made(self, step: int) -> bool: ...


@dataclass(frozen=True)
class Parts:
    """The frozen models."""

    model: FluxModel
    text: TextEncoders
    autoencoder: Autoencoder


@dataclass
class Found:
    """The content of a folder, and the resulting training."""

    folder: TrainingFolder
    examples: list[Example]
    unreadable: list[str]
    small: int  # images that must be enlarged
    texts: TextCache
    pictures: PictureCache
    layers: dict[str, tuple[int, int]]
    foreseen: Foreseen | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images per bucket, "512x512"."""
        counted = Counter(f"{each.bucket.width}x{each.bucket.height}" for each in self.examples)
        return dict(sorted(counted.items()))

    @property
    def views(self) -> int:
        """Images per epoch, with repeats."""
        return sum(example.picture.repeats for example in self.examples)


class LoraTraining:
    """The training of a LoRA file from settings, models and a folder of images."""

    def __init__(
        self, settings: LoraSettings, parts: Parts, source: Path, out: Path, watcher: Watcher | None = None,
        sampler: Sampler | None = None,
    ) -> None:  # fmt: skip
        """out: the folder of this training. Raises InputError for models that cannot be trained this way."""
        self.settings, self.parts, self.source, self.out = settings, parts, source, out
        self.watcher, self.sampler = watcher or Silent(), sampler
        self.going_on = True  # False: ignore an earlier training with this name
        self.others_wait: Callable[[], bool] = lambda: False  # asked between steps: whether to stop and go on later
        self.checkpoints = Checkpoints(out / "state")
        self.loss = LOSS_FUNCTIONS[settings.loss]
        check_model(parts.model)

    # -- before anything is computed -----------------------------------------------------------------------------------

    def look(self) -> Found:
        """Read names, captions and headers, and plan. Writes nothing, reads no weights.

        Raises InputError, BudgetTooSmall and the errors of `read_folder`.
        """
        settings, parts = self.settings, self.parts
        folder = read_folder(self.source, settings.trigger, settings.repeats)
        check_installed(settings.optimiser)
        self._check_before()
        seen = digest_of_weights(dict(parts.autoencoder.weights.tensors))
        cache = Cache(self.out / "cache")
        pictures = PictureCache(cache, parts.autoencoder, seen)
        examples, unreadable, small = self._sorted(folder, pictures)
        if not examples:
            raise InputError(
                f"None of the {len(folder.pictures)} pictures in {folder.path} can be read: {unreadable[0]}. "
                "Check that they open in an image viewer, and save them again as PNG or JPEG."
            )
        used = [example.picture for example in examples]
        captions = ["", *dict.fromkeys(caption for picture in used for caption in picture.captions)]
        read = {**parts.text.clip_weights.tensors, **parts.text.t5_weights.tensors}
        texts = TextCache(cache, parts.text, digest_of_weights(read), captions, kept_type(parts.model.dtype))
        with torch.device("meta"):
            layers = chosen_layers(Flux(parts.model.weights.config), settings.layers)
        found = Found(folder, examples, unreadable, small, texts, pictures, layers)
        found.foreseen = plan_of(parts.model, settings, layers, self.heaviest(found), self.loss)
        found.notes = list(self._notes(found))
        self._check_disk(found)
        return found

    def heaviest(self, found: Found) -> Pictures:
        """The shapes of the largest batch."""
        config = self.parts.model.weights.config
        bucket = max((example.bucket for example in found.examples), key=lambda each: each.tokens)
        masked = any(example.picture.mask for example in found.examples)
        return shapes(
            self.settings, bucket, found.texts.length, config.context_dim, config.vec_dim, config.in_channels,
            config.guidance, masked,
        )  # fmt: skip

    def _sorted(self, folder: TrainingFolder, pictures: PictureCache) -> tuple[list[Example], list[str], int]:
        """Images with their buckets, the unreadable ones, and the number of those that are smaller than their
        bucket.
        """
        from PIL import Image, ImageOps

        among, examples, unreadable, small = buckets(self.settings.size), [], [], 0
        for picture in folder.pictures:
            read = picture.path
            try:
                with Image.open(read) as image:
                    image.load()
                    width, height = ImageOps.exif_transpose(image).size
                if picture.mask is not None:
                    read = picture.mask
                    with Image.open(read) as mask:
                        mask.load()
            except Exception as error:  # Pillow's readers raise various errors, depending on the format
                what = f"{picture.path.name}" if read == picture.path else f"the mask of {picture.path.name}"
                unreadable.append(f"{what}: {error}")
                continue
            bucket = bucket_for(width, height, among)
            small += width < bucket.width or height < bucket.height
            examples.append(Example(picture, bucket, pictures.key(picture, bucket)))
        return examples, unreadable, small

    def _check_before(self) -> None:
        """Raise InputError for settings that differ from those of the checkpoint, and a file where a folder must be."""
        file = next((place for place in (self.out, *self.out.parents) if place.is_file()), None)
        if file is not None:
            raise InputError(f"{file} is a file, so {self.out} cannot become a folder. Choose another --out or --name.")
        path = self.out / "settings.json"
        if not self.going_on or not path.is_file() or not self.checkpoints.generations():
            return
        try:
            before = settings_from(json.loads(path.read_text("utf-8")))
        except (ValueError, OSError) as error:
            raise InputError(
                f"{path} cannot be read ({error}). Start again with --fresh, or with another --name."
            ) from error
        different = differences(before, self.settings)
        if different:
            raise InputError(
                f"The training in {self.out} was started with other settings: {'; '.join(different)}. Give the same "
                "again to continue it, --fresh to start again, or another --name."
            )

    def _notes(self, found: Found) -> Iterator[str]:
        settings = self.settings
        if found.unreadable:
            yield f"{_counted(len(found.unreadable))} cannot be read, left out: {'; '.join(found.unreadable[:3])}"
        if found.folder.not_there:
            first, *more = found.folder.not_there
            yield f"{TABLE} has captions for {_counted(1 + len(more))} not there: {first}" + (" ..." if more else "")
        if found.small:
            yield f"{_counted(found.small)} smaller than {settings.size}x{settings.size} will be enlarged."
        if not self.parts.model.weights.config.guidance:
            yield "This is a schnell model, distilled to a few steps: a LoRA trained on it may undo some of that."
        elif settings.guidance != 1:
            yield f"Guidance {settings.guidance:g}: at another value than 1 a LoRA also learns to undo the guidance."

    def _check_disk(self, found: Found) -> None:
        """Raise SluiceError if the disk has too little space for the files that will be written."""
        numbers = parameter_count(found.layers.values(), self.settings.rank)
        files = self.settings.steps // self.settings.save_every + 2
        needed = 3 * 12 * numbers + files * 2 * numbers
        there = next(place for place in (self.out, *self.out.parents) if place.is_dir())
        free = shutil.disk_usage(there).free
        if free < needed:
            raise SluiceError(
                f"{there} has room for {free / 1e9:.2f} GB, and this training will write {needed / 1e9:.2f} GB: "
                f"checkpoints, and a LoRA every {self.settings.save_every} steps. Make room, save more rarely "
                "(--save-every), or choose a smaller --rank."
            )

    # -- the training --------------------------------------------------------------------------------------------------

    def run(self, found: Found | None = None) -> Path:
        """Train to the end. Returns the path of the LoRA file.

        Raises Interrupted if the user stopped it, with a checkpoint of all finished steps; NotFinite if the loss became
        infinite.
        """
        from .steps import Steps

        found = found or self.look()
        if not self.going_on:
            for old in ("state", "samples"):
                shutil.rmtree(self.out / old, ignore_errors=True)
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.out / "settings.json", self.settings.to_json().encode())
        self._encode(found)
        training_set = TrainingSet(
            self.settings, found.examples, found.pictures, found.texts, self.parts.model.weights.config.guidance
        )
        Steps(self, found, training_set).run()
        return self.final

    def let_others_first(self) -> None:
        """Raise Interrupted if other jobs are to go first. What is done is kept: embeddings, latents, steps."""
        if self.others_wait():
            raise Interrupted("Other jobs go first.")

    @property
    def final(self) -> Path:
        return self.out / f"{self.settings.name}.safetensors"

    def early(self, step: int) -> Path:
        """The LoRA file of an intermediate step."""
        return self.out / f"{self.settings.name}-{step:06}.safetensors"

    def _encode(self, found: Found) -> None:
        """Fill the caches, one encoder after the other, and release the encoders."""
        captions = ["", *dict.fromkeys(c for example in found.examples for c in example.picture.captions)]
        missing = [caption for caption in captions if not found.texts.cache.has(found.texts.key(caption))]
        if missing:
            self.watcher.phase("encode captions", len(missing))
            for caption in missing:
                check_cancelled()
                found.texts.get(caption)
                self.watcher.advance()
                self.let_others_first()
        self.parts.text.clip_weights.unload()
        self.parts.text.t5_weights.unload()
        self.parts.text.encodings.clear()
        left = [example for example in found.examples if not found.pictures.cache.has(example.key)]
        if left:
            self.watcher.phase("encode pictures", len(left))
            for example in left:
                check_cancelled()
                found.pictures.get(example.picture, example.bucket, example.key)
                self.watcher.advance()
                self.let_others_first()
        self.parts.autoencoder.weights.unload()


def check_model(model: FluxModel) -> None:
    """Raise InputError for a transformer whose input is more than an image."""
    config = model.weights.config
    if config.in_channels != config.out_channels:
        raise InputError(
            f"{model.weights.path.name} takes {config.in_channels} channels and gives {config.out_channels}: it is a "
            "Fill, Canny or Depth model, which needs more than images and captions. Train on flux1-dev; the LoRA may "
            "then be used with those too."
        )
    if model.loras:
        raise InputError("The model has LoRAs already. Train on the model without them.")


def _counted(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def kept_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which embeddings are stored for a model that computes in `dtype`."""
    return torch.float32 if dtype == torch.float32 else torch.bfloat16


def plan_of(
    model: FluxModel,
    settings: LoraSettings,
    layers: dict[str, tuple[int, int]],
    heaviest: Pictures,
    loss: Loss = squared,
) -> Foreseen | None:
    """The needs of the steps, with everything that training keeps. Raises BudgetTooSmall with settings that would
    fit.
    """

    def at(rank: int) -> Foreseen | None:
        lora = TrainedLora(layers, rank, float(rank), torch.device("meta"), model.dtype)
        numbers = parameter_count(layers.values(), rank)
        beside = numbers * bytes_a_number(settings.optimiser, model.dtype)
        return foreseen(model, lora, heaviest, loss, beside, settings.accumulate)

    try:
        return at(settings.rank)
    except BudgetTooSmall as error:
        for rank in (rank for rank in (128, 64, 32, 16, 8, 4, 1) if rank < settings.rank):
            try:
                at(rank)
            except BudgetTooSmall:
                continue
            raise BudgetTooSmall(f"{error} --rank {rank} would fit.") from None
        raise BudgetTooSmall(
            f"{error} A smaller --rank alone is not enough; try a smaller --size or --batch."
        ) from None


def bytes_a_number(optimiser: str, dtype: torch.dtype) -> int:
    """Bytes per value of a LoRA in training, besides its gradients: the master, two moments, and the copy for
    products.
    """
    moments = 2 if optimiser == "adamw8bit" else 8
    return 4 + moments + (0 if dtype == torch.float32 else dtype.itemsize)
