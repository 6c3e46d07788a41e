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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F

from ...cancel import check_cancelled
from ...conditioning.text import tokenize_t5
from ...errors import InputError, Interrupted
from ...io.saving import write_whole
from ...memory.phases import Phase
from ...models.flux import Flux
from ...quant.workspace import release as release_scratch
from ...runtime.handles import Autoencoder, FluxModel, TextEncoders
from .adapter import chosen_layers, parameter_count
from .batches import Example, TrainingSet, shapes
from .buckets import Bucket, bucket_for, buckets
from .cache import Cache, PictureCache, TextCache, digest_of_weights
from .checkpoint import GENERATIONS, Checkpoints
from .disk import check_space, writing
from .folder import TABLE, TrainingFolder, read_folder
from .optimiser import bytes_a_number, check_installed
from .phases import Task, planned
from .ready import Foreseen, Pictures
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
    pixels: int = 0  # of the largest picture file
    phases: tuple[Phase, ...] = ()
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
        examples, unreadable, small, pixels = self._sorted(folder, pictures)
        if not examples:
            raise InputError(
                f"No picture in {folder.path} can be read, of {len(folder.pictures)}: {unreadable[0]}. Check that they "
                "open in an image viewer, and save them again as PNG or JPEG."
            )
        used = [example.picture for example in examples]
        captions = ["", *dict.fromkeys(caption for picture in used for caption in picture.captions)]
        read = {**parts.text.clip_weights.tensors, **parts.text.t5_weights.tensors}
        texts = TextCache(cache, parts.text, digest_of_weights(read), captions, kept_type(parts.model.dtype))
        with torch.device("meta"):
            layers = chosen_layers(Flux(parts.model.weights.config), settings.layers)
        found = Found(folder, examples, unreadable, small, texts, pictures, layers, pixels)
        found.phases, found.foreseen = planned(parts, self.task(found), lambda rank, size: self.task(found, rank, size))
        found.notes = list(self._notes(found))
        self._check_disk(found)
        return found

    def heaviest(self, found: Found) -> Pictures:
        """The shapes of the largest batch."""
        bucket = max((example.bucket for example in found.examples), key=lambda each: each.tokens)
        return self._shapes(found, self.settings, bucket)

    def _shapes(self, found: Found, settings: LoraSettings, bucket: Bucket) -> Pictures:
        config = self.parts.model.weights.config
        masked = any(example.picture.mask for example in found.examples)
        return shapes(
            settings, bucket, found.texts.length, config.context_dim, config.vec_dim, config.in_channels,
            config.guidance, masked,
        )  # fmt: skip

    def task(self, found: Found, rank: int | None = None, size: int | None = None) -> Task:
        """All that the memory of the training depends on; with another rank and size, if they are given."""
        settings = replace(self.settings, rank=rank or self.settings.rank, size=size or self.settings.size)
        heaviest = self.heaviest(found)
        if size is not None:
            heaviest = self._shapes(found, settings, max(buckets(size), key=lambda each: each.tokens))
        return Task(
            settings,
            found.layers,
            heaviest,
            self.loss,
            captions=bool(found.texts.missing()),
            rows=2 if found.texts.weighted else 1,
            pictures=bool(_without_latent(found)),
            pixels=found.pixels,
            prompts=max((len(tokenize_t5(self.parts.text, prompt).tokens) for prompt in settings.prompts), default=0),
        )

    def _sorted(self, folder: TrainingFolder, pictures: PictureCache) -> tuple[list[Example], list[str], int, int]:
        """Images with their buckets, the unreadable ones, the number of those that are smaller than their bucket, and
        the pixels of the largest.
        """
        from PIL import Image, ImageOps

        among, examples, unreadable, small, most = buckets(self.settings.size), [], [], 0, 0
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
            most = max(most, width * height)
            small += width < bucket.width or height < bucket.height
            examples.append(Example(picture, bucket, pictures.key(picture, bucket)))
        return examples, unreadable, small, most

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
        done = self.checkpoints.steps()
        if done > self.settings.steps:
            raise InputError(
                f"The training in {self.out} has {done} steps already, more than --steps {self.settings.steps}. Give "
                f"{done} or more, take a LoRA of an earlier step from that folder, or start again with --fresh."
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
        settings, config = self.settings, self.parts.model.weights.config
        numbers = parameter_count(found.layers.values(), settings.rank)
        saved = numbers * bytes_a_number(settings.optimiser, torch.float32)
        before = len(self.checkpoints.generations()) if self.going_on else 0
        early = settings.steps // settings.save_every + 2 - (len(self._written()) if self.going_on else 0)
        cells = sum(example.bucket.tokens * 4 for example in _without_latent(found))
        text = found.texts.length * config.context_dim * found.texts.dtype.itemsize
        caches = len(found.texts.missing()) * text + 4 * cells * config.in_channels
        check_space(
            self.out,
            max(1, GENERATIONS + 1 - before) * saved + max(1, early) * 2 * numbers,
            caches,
            settings.save_every,
        )

    # -- the training --------------------------------------------------------------------------------------------------

    def run(self, found: Found | None = None) -> Path:
        """Train to the end. Returns the path of the LoRA file.

        Raises Interrupted if the user stopped it, with a checkpoint of all finished steps; NotFinite if the loss became
        infinite; SluiceError if its files cannot be written.
        """
        from .steps import Steps

        found = found or self.look()
        guidance = self.parts.model.weights.config.guidance
        with writing(self.out):
            if not self.going_on:
                self._delete_earlier()
            self.out.mkdir(parents=True, exist_ok=True)
            write_whole(self.out / "settings.json", self.settings.to_json().encode())
            self._encode(found)
            training_set = TrainingSet(self.settings, found.examples, found.pictures, found.texts, guidance)
            Steps(self, found, training_set).run()
        return self.final

    def _delete_earlier(self) -> None:
        """Delete what an earlier training with this name has written, except its caches."""
        for old in ("state", "samples"):
            shutil.rmtree(self.out / old, ignore_errors=True)
        for file in self._written():
            file.unlink()

    def _written(self) -> list[Path]:
        """The LoRA files that a training with this name has written."""
        found = self.out.iterdir() if self.out.is_dir() else ()
        steps = (file for file in found if file.stem.removeprefix(f"{self.settings.name}-").isdigit())
        return [file for file in (self.final, *steps) if file.suffix == ".safetensors" and file.is_file()]

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
        missing = found.texts.missing()
        if missing:
            self.watcher.phase("encode captions", len(missing))
            for caption in missing:
                check_cancelled()
                found.texts.get(caption)
                self.parts.text.encodings.clear()  # it is on disk; in memory it would only take room
                self.watcher.advance()
                self.let_others_first()
        self._release_text()
        left = _without_latent(found)
        if left:
            self.watcher.phase("encode pictures", len(left))
            for example in left:
                check_cancelled()
                found.pictures.get(example.picture, example.bucket, example.key)
                self.watcher.advance()
                self.let_others_first()
        self.parts.autoencoder.weights.unload()

    def release_encoders(self) -> None:
        """Free all that text encoders and autoencoder hold."""
        self._release_text()
        self.parts.autoencoder.weights.unload()

    def _release_text(self) -> None:
        """Free all that the text encoders hold."""
        text = self.parts.text
        text.clip_weights.unload()
        text.t5_weights.unload()
        text.encodings.clear()
        release_scratch()


def _without_latent(found: Found) -> list[Example]:
    """The pictures whose latents are not in the cache."""
    return [example for example in found.examples if not found.pictures.cache.has(example.key)]


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
