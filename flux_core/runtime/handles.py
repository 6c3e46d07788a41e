"""Files to ready models: the handles that travel on wires.

A handle is small and immutable: which file, which settings. What is heavy stands behind it (`weights.py`), is shared by
all handles of the same file in the same state, is read at first use, and goes when the last handle does.

    load_flux, load_text, load_autoencoder, load_checkpoint     path -> handle; only headers are read
    FluxModel      what sampling asks of a model           (sampling/guider.py: Model)
    TextEncoders   what encoding asks of text encoders     (text/encode.py: Encoders)
    Autoencoder    images to latents and back

Each belongs to the runtime (runtime.py) that its file was loaded into: its device, number types and memory budget.

Independent of: nodes, prompts, solvers, and how bytes become parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..adapters.apply import adapted
from ..adapters.lora import LoraUse
from ..checkpoint.detect import detect, refuse
from ..checkpoint.files import open_weights
from ..checkpoint.kinds import Detected
from ..checkpoint.load import Tensors
from ..checkpoint.stored import WeightFile
from ..conditioning.embeddings import lookup
from ..conditioning.text import Cache, TextOptions
from ..conditioning.tokenizer import ClipTokenizer, Lookup, T5Tokenizer
from ..conditioning.tokenizer_files import clip_tokenizer, t5_tokenizer
from ..errors import FileFormatError, InputError, NotFinite
from ..limits import check_room
from ..memory.manager import Manager
from ..models.autoencoder import Autoencoder as AutoencoderModule
from ..models.flux import with_controlnets, with_sharing
from ..models.latents import CELL, patches
from ..sampling.guider import Network, Run
from ..sampling.inpaint import MaskFunction
from ..sampling.schedule import Sampling, default_sampling
from ..sampling.step_cache import StepCache
from .autoencoder import Conversion, ManagedAutoencoder
from .device import total_bytes
from .encoder import ManagedEncoder
from .flux_needs import controlnet_tensors
from .loaded_whole import ReportedEncoder, reported_flux
from .runtime import Runtime
from .sound import unsound
from .weights import AutoencoderWeights, ClipWeights, ControlNetWeights, FluxWeights, T5Weights

log = logging.getLogger(__name__)

WEIGHT_DTYPES = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
Tiles = tuple[int, int]  # length and overlap, in pixels
OnTile = Callable[[int, int], None] | None  # (tiles done, of how many)
DECODE_TILES: Tiles = (512, 128)  # once a whole image was too much for the device
ENCODE_TILES: Tiles = (512, 64)
ENCODE = Conversion("encode_image", axes=(1, 2), scale=1)
DECODE = Conversion("decode_image", axes=(2, 3), scale=CELL)


@dataclass(frozen=True)
class FluxModel:
    """A transformer with everything that patch nodes change about it (by `dataclasses.replace`)."""

    weights: FluxWeights
    sampling: Sampling
    loras: tuple[LoraUse, ...] = ()
    mask_function: MaskFunction | None = None
    compute_dtype: torch.dtype | None = None  # None: the runtime's
    own_step_cache: StepCache | None = None  # None: the runtime's
    own_compute: str | None = None  # a word of settings.COMPUTES; None: the runtime's

    @property
    def runtime(self) -> Runtime:
        return self.weights.runtime

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def dtype(self) -> torch.dtype:
        return self.compute_dtype or self.runtime.model_dtype

    @property
    def step_cache(self) -> StepCache | None:
        return self.own_step_cache or self.runtime.step_cache

    @property
    def compute(self) -> str:
        return self.own_compute or self.runtime.compute

    def emit(self, event: dict[str, Any]) -> None:
        self.runtime.events.emit(event)

    @property
    def in_channels(self) -> int:
        """Channels of the latent that goes in; control LoRAs widen it."""
        width = 4 * self.weights.config.in_channels
        return max([width, *(use.lora.input_width("img_in", width) for use in self.loras if use.strength)]) // 4

    @contextmanager
    def open(self, run: Run) -> Iterator[Network]:
        """The network, ready for one run; in a job that can be paused its evaluations are kept on disk.

        Raises InputError for an image that no memory here could hold.
        """
        self._check_room(*run.shape)
        log = self.runtime.evaluations
        with self._opened(run) as network:
            if log is None:
                yield network
                return
            loras = tuple(use.identity for use in self.loras if use.strength)
            depends_on = self.weights.identity, loras, self.dtype, self.compute, self.device.type
            with log.recorded(network, run, depends_on) as recorded:
                yield recorded

    @contextmanager
    def _opened(self, run: Run) -> Iterator[Network]:
        team = self.runtime.team
        if team is None:
            with self._opened_here(run) as network:
                yield network
            return
        team.settings.split.check(self.weights.config.heads)
        share = team.start()
        if self.runtime.share is not share:  # a team that was started anew talks over new connections
            self.weights.unload()
            self.runtime.share = share
        with team.opened(self.description, run, self._opened_here(run)) as network:
            yield network

    @property
    def description(self) -> Description:
        """What another process needs to open the same model."""
        names = {dtype: name for name, dtype in WEIGHT_DTYPES.items()}
        uses = tuple(use for use in self.loras if use.strength)
        return Description(str(self.weights.path), names[self.weights.round_to], uses, self.dtype, self.compute)

    @contextmanager
    def _opened_here(self, run: Run) -> Iterator[Network]:
        nets = self._controlnets(run)
        if nets and self.runtime.share is not None:
            raise InputError("ControlNets cannot be computed on several devices yet. Use one device for this workflow.")
        nbytes = self.weights.nbytes + sum(net.nbytes for net in nets)
        manager = self.runtime.manager(self.device, nbytes)
        if manager is None:
            loaded = self.weights.module(self.device, self.dtype, self.compute)
            module = adapted(loaded, self.loras, self.device, self.dtype)
            if nets:
                parts = {net.key: net.module(self.device, self.dtype, self.compute) for net in nets}
                module = with_controlnets(module, parts)
            if self.runtime.share is not None:
                module = with_sharing(module, self.runtime.share.tokens)
            if not self.runtime.events.has_listeners:
                yield module
                return
            tensors = {**self.weights.tensors, **controlnet_tensors({net.key: net.tensors for net in nets})}
            with reported_flux(module, self.runtime, tensors, run, self.dtype) as network:
                yield network
            return
        managed = self.weights.managed(manager, self.dtype, self.compute)
        _reclaim(manager, self.loras, self.device, self.dtype)
        uses = [use for use in self.loras if use.strength]
        with managed.opened(run, uses, [net.managed(manager, self.dtype, self.compute) for net in nets]) as network:
            yield network

    def _controlnets(self, run: Run) -> list[ControlNetWeights]:
        """The ControlNets of a run, in the order in which they are applied. Raises InputError for one that is too wide
        or too narrow for this transformer."""
        nets = list(dict.fromkeys(control.weights for c in run.conditions for control in c.controls))
        for net in nets:
            if net.config.body.hidden != self.weights.config.hidden:
                raise InputError(
                    f"{net.path.name} was made for a transformer {net.config.body.hidden} wide, and "
                    f"{self.weights.path.name} is {self.weights.config.hidden} wide. Choose a ControlNet for it."
                )
        return nets

    def unsound(self) -> str | None:
        """What of the transformer's file is no number, looked for in it."""
        return unsound(self.weights.tensors)

    def _check_room(self, batch: int, _: int, height: int, width: int) -> None:
        """The least a block holds at once: its stream, queries, keys and values, and the wide middle of its MLP."""
        config, tokens = self.weights.config, batch * patches(height) * patches(width)
        needed = tokens * (4 * config.hidden + config.mlp) * self.dtype.itemsize
        check_room(
            f"Denoising a batch of {batch} at {width * CELL}x{height * CELL} pixels", needed, total_bytes(self.device)
        )


@dataclass(frozen=True)
class Description:
    """A FluxModel without what is loaded of it, for a process on another device."""

    path: str
    weight_dtype: str
    loras: tuple[LoraUse, ...]
    dtype: torch.dtype
    compute: str


def described(runtime: Runtime, given: Description) -> FluxModel:
    """The model of a description, in this process. Raises as `load_flux`."""
    model = load_flux(runtime, given.path, given.weight_dtype)
    return replace(model, loras=given.loras, compute_dtype=given.dtype, own_compute=given.compute)


@dataclass(frozen=True)
class TextEncoders:
    """Both text encoders with their tokenizers. Tokenizers are looked for beside the files, then in `tokenizers`."""

    clip_weights: ClipWeights
    t5_weights: T5Weights
    options: TextOptions = TextOptions()
    on_cpu: bool = False
    tokenizers: tuple[Path, ...] = ()
    embedding_folders: tuple[Path, ...] = ()
    clip_loras: tuple[LoraUse, ...] = ()
    t5_loras: tuple[LoraUse, ...] = ()

    @property
    def runtime(self) -> Runtime:
        return self.t5_weights.runtime

    @property
    def encodings(self) -> Cache:
        return self.runtime.encodings

    @property
    def clip_identity(self) -> Hashable:
        return self.clip_weights.identity, tuple(use.identity for use in self.clip_loras), self.device

    @property
    def t5_identity(self) -> Hashable:
        return self.t5_weights.identity, tuple(use.identity for use in self.t5_loras), self.device

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.on_cpu else self.runtime.device

    @property
    def clip_tokenizer(self) -> ClipTokenizer:
        config = self.clip_weights.config
        return clip_tokenizer(self.clip_weights.path, self.tokenizers, config.vocabulary, config.positions)

    @property
    def t5_tokenizer(self) -> T5Tokenizer:
        return t5_tokenizer(self.t5_weights.path, self.tokenizers, self.t5_weights.config.vocabulary)

    def clip(self) -> Any:
        return self._ready(self.clip_weights, self.clip_loras)

    def t5(self) -> Any:
        return self._ready(self.t5_weights, self.t5_loras)

    def _ready(self, weights: ClipWeights | T5Weights, loras: tuple[LoraUse, ...]) -> Any:
        manager, dtype = self.runtime.manager(self.device, weights.nbytes), self.runtime.text_dtype
        if manager is not None:
            return _Managed(weights.managed(manager, dtype), loras, self.device, dtype)
        module = adapted(weights.module(self.device, dtype), loras, self.device, dtype)
        if not self.runtime.events.has_listeners:
            return module
        label = "CLIP-L" if weights is self.clip_weights else "T5"
        return ReportedEncoder(label, module, self.runtime, self.device, weights.tensors, dtype)

    def embeddings(self, encoder: str) -> Lookup | None:
        return lookup(self.embedding_folders, encoder) if self.embedding_folders else None

    def unsound(self, encoder: str) -> str | None:
        """What of an encoder's file is no number, looked for in it."""
        return unsound((self.clip_weights if encoder == "clip_l" else self.t5_weights).tensors)


def _reclaim(manager: Manager, uses: Sequence[LoraUse], device: torch.device, dtype: torch.dtype) -> None:
    """Free weights for what these LoRAs will take: what stays of models may have been chosen without them."""
    nbytes = sum(use.lora.copied_bytes(device, dtype) for use in uses if use.strength)
    if nbytes:
        manager.reclaim(" and ".join(use.lora.name for use in uses), nbytes)


class _Managed:
    """A text encoder under a memory manager, with its LoRAs while it runs."""

    def __init__(
        self, managed: ManagedEncoder, uses: tuple[LoraUse, ...], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.managed, self.uses, self.device, self.dtype = managed, uses, device, dtype
        self.config, self.embed = managed.module.config, managed.module.embed

    def __call__(self, *args: Any) -> Any:
        _reclaim(self.managed.manager, self.uses, self.device, self.dtype)
        module = adapted(self.managed.module, self.uses, self.device, self.dtype)
        return self.managed.run(*args, module=module)


@dataclass(frozen=True)
class Autoencoder:
    """Images and latents as they travel on wires: float32 on the CPU. One at a time goes through the device."""

    weights: AutoencoderWeights

    @property
    def runtime(self) -> Runtime:
        return self.weights.runtime

    def encode_image(self, image: Tensor) -> Tensor:
        """Image [B, H, W, C >= 3] in 0..1 -> latent [B, 16, H//8, W//8]. In tiles if the device is too small."""
        managed = self._managed()
        _check_numbers("picture", image)
        return self._sound(managed.convert(ENCODE, image) if managed else self._each(image, ENCODE, ENCODE_TILES))

    def decode_image(self, latent: Tensor) -> Tensor:
        """Latent [B, 16, h, w] -> image [B, 8h, 8w, 3] in 0..1. In tiles if the device is too small."""
        managed = self._managed()
        _check_numbers("latent", latent)
        return self._sound(managed.convert(DECODE, latent) if managed else self._each(latent, DECODE, DECODE_TILES))

    def encode_image_tiled(self, image: Tensor, tile: int = 512, overlap: int = 64, on_tile: OnTile = None) -> Tensor:
        """`encode_image` in tiles; `tile` and `overlap` in pixels."""
        _check_numbers("picture", image)
        return self._tiled(ENCODE, image, (tile, overlap), on_tile)

    def decode_image_tiled(self, latent: Tensor, tile: int = 512, overlap: int = 64, on_tile: OnTile = None) -> Tensor:
        """`decode_image` in tiles; `tile` and `overlap` in pixels of the image."""
        _check_numbers("latent", latent)
        return self._tiled(DECODE, latent, (tile, overlap), on_tile)

    @torch.no_grad()
    def _each(self, batch: Tensor, conversion: Conversion, tiles: Tiles) -> Tensor:
        module = self._module()
        done = []
        for one in batch.split(1):
            try:
                done.append(conversion.run(module, one.to(self.runtime.device)).cpu())
                continue
            except torch.cuda.OutOfMemoryError:
                log.warning("The device has too little memory for an image of this size at once; tiles are used.")
            torch.cuda.empty_cache()
            done.append(conversion.tiled(module, one.to(self.runtime.device), *tiles).cpu())
        return torch.cat(done)

    @torch.no_grad()
    def _tiled(self, conversion: Conversion, batch: Tensor, tiles: Tiles, on_tile: OnTile) -> Tensor:
        managed = self._managed()
        if managed:
            return self._sound(managed.convert(conversion, batch, *tiles, on_tile))
        return self._sound(conversion.tiled(self._module(), batch.to(self.runtime.device), *tiles, on_tile).cpu())

    def _sound(self, made: Tensor) -> Tensor:
        """What came of it, if all of it are numbers. Raises NotFinite."""
        if torch.isfinite(made).all():
            return made
        reason = unsound(self.weights.tensors) or "Compute the autoencoder in float32 or bfloat16."
        raise NotFinite(f"The autoencoder made numbers that are not finite (NaN or infinity). {reason}")

    def _managed(self) -> ManagedAutoencoder | None:
        runtime = self.runtime
        manager = runtime.manager(runtime.device, self.weights.nbytes)
        if manager is None:
            return None
        return ManagedAutoencoder(manager, self.weights, runtime.autoencoder_dtype, runtime.activations)

    def _module(self) -> AutoencoderModule:
        return self.weights.module(self.runtime.device, self.runtime.autoencoder_dtype)


def _check_numbers(noun: str, numbers: Tensor) -> None:
    if not torch.isfinite(numbers).all():
        raise NotFinite(f"The {noun} for the autoencoder holds numbers that are not finite (NaN or infinity).")


# -- from paths ------------------------------------------------------------------------------------------------------


def load_flux(runtime: Runtime, path: str | Path, weight_dtype: str = "default") -> FluxModel:
    """The transformer of a file: BFL or diffusers layout, GGUF, or out of an all-in-one checkpoint.

    weight_dtype: a name of WEIGHT_DTYPES. Raises MissingFileError, and FileFormatError that says what the file is.
    """
    if weight_dtype not in WEIGHT_DTYPES:
        raise InputError(f"There is no weight_dtype {weight_dtype!r}; choose {', '.join(WEIGHT_DTYPES)}.")
    file, found = _open(path)
    if "flux" not in found.parts:
        refuse(file.path, found, "flux")
    return _flux(runtime, file, found, weight_dtype)


def load_text(
    runtime: Runtime,
    paths: Sequence[str | Path],
    device: str = "default",
    tokenizers: Sequence[Path] = (),
    embeddings: Sequence[Path] = (),
) -> TextEncoders:
    """Both text encoders out of one or more files, in any order. device "cpu" keeps them off the accelerator.

    tokenizers, embeddings: the folders of that kind. Raises MissingFileError and FileFormatError.
    """
    opened = [_open(path) for path in paths]
    parts: dict[str, tuple[WeightFile, Tensors]] = {}
    for file, found in opened:
        if found.refusals.keys() & {"clip_l", "t5"} or not found.parts.keys() & {"clip_l", "t5"}:
            refuse(file.path, found, "clip_l")
        parts |= {kind: (file, found.parts[kind]) for kind in ("clip_l", "t5") if kind in found.parts}
    if len(parts) < 2:
        names = " and ".join(file.path.name for file, _ in opened)
        there, missing = ("CLIP-L", "T5-XXL") if "clip_l" in parts else ("T5-XXL", "CLIP-L")
        raise FileFormatError(
            f"FLUX.1 needs two text encoders, CLIP-L and T5-XXL; {names} hold{'s' if len(opened) == 1 else ''} only "
            f"{there}. Choose a {missing} file as well, in DualCLIPLoader."
        )
    return _text(runtime, parts, device == "cpu", tokenizers, embeddings)


def load_autoencoder(runtime: Runtime, path: str | Path) -> Autoencoder:
    """The autoencoder of a file, BFL or diffusers layout. Raises MissingFileError and FileFormatError."""
    file, found = _open(path)
    if "autoencoder" not in found.parts:
        refuse(file.path, found, "autoencoder")
    return _autoencoder(runtime, file, found)


def load_checkpoint(
    runtime: Runtime, path: str | Path, tokenizers: Sequence[Path] = (), embeddings: Sequence[Path] = ()
) -> tuple[FluxModel, TextEncoders, Autoencoder]:
    """Everything out of one file. What it does not hold is given as something that says so when it is used."""
    file, found = _open(path)
    if "flux" not in found.parts:
        refuse(file.path, found, "checkpoint")
    parts = {kind: (file, found.parts[kind]) for kind in ("clip_l", "t5") if kind in found.parts}
    text: Any = _Absent(file, TEXT, found.refusals.get("clip_l") or found.refusals.get("t5"))
    autoencoder: Any = _Absent(file, PICTURES, found.refusals.get("autoencoder"))
    if len(parts) == 2:
        text = _text(runtime, parts, False, tokenizers, embeddings)
    if "autoencoder" in found.parts:
        autoencoder = _autoencoder(runtime, file, found)
    return _flux(runtime, file, found, "default"), text, autoencoder


TEXT = ("text encoders (CLIP-L and T5-XXL)", "DualCLIPLoader")
PICTURES = ("autoencoder (VAE)", "Load VAE")


class _AbsentPart(InputError, AttributeError):
    """So that `hasattr` of something absent is False."""


class _Absent:
    """Stands for a part that a checkpoint does not hold, or that cannot be used; whoever asks for anything is told."""

    def __init__(self, file: WeightFile, part: tuple[str, str], refusal: str | None) -> None:
        self._file, self._part, self._refusal = file.path.name, part, refusal

    def __getattr__(self, name: str) -> NoReturn:
        noun, node = self._part
        reason = self._refusal or f"The checkpoint {self._file} holds no {noun}."
        raise _AbsentPart(f"{reason} Load it from a file of its own with {node}.")


def _open(path: str | Path) -> tuple[WeightFile, Detected]:
    file = open_weights(path)
    return file, detect(file)


def _flux(runtime: Runtime, file: WeightFile, found: Detected, weight_dtype: str) -> FluxModel:
    tensors, prefix = found.parts["flux"], found.facts["prefix"]
    identity = file.identity, "flux", weight_dtype, prefix
    weights = runtime.weights.get(
        identity, lambda: FluxWeights(runtime, tensors, identity, WEIGHT_DTYPES[weight_dtype])
    )
    return FluxModel(weights, default_sampling(weights.config.guidance))


def _text(
    runtime: Runtime,
    parts: Mapping[str, tuple[WeightFile, Tensors]],
    on_cpu: bool,
    tokenizers: Sequence[Path],
    embeddings: Sequence[Path],
) -> TextEncoders:
    (clip_file, clip), (t5_file, t5) = parts["clip_l"], parts["t5"]
    clip_identity, t5_identity = (clip_file.identity, "clip_l"), (t5_file.identity, "t5")
    return TextEncoders(
        runtime.weights.get(clip_identity, lambda: ClipWeights(runtime, clip, clip_identity)),
        runtime.weights.get(t5_identity, lambda: T5Weights(runtime, t5, t5_identity)),
        on_cpu=on_cpu,
        tokenizers=tuple(tokenizers),
        embedding_folders=tuple(embeddings),
    )


def _autoencoder(runtime: Runtime, file: WeightFile, found: Detected) -> Autoencoder:
    identity = file.identity, "autoencoder"
    tensors = found.parts["autoencoder"]
    return Autoencoder(runtime.weights.get(identity, lambda: AutoencoderWeights(runtime, tensors, identity)))
