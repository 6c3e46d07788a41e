"""Files to the handles that travel on links.

A handle is small and immutable: a file and settings. The weights (`weights.py`) are shared by all handles of the same
file in the same state, are read at first use, and are dropped with the last handle.

    load_flux, load_text, load_autoencoder, load_checkpoint     path -> handle; only headers are read
    FluxModel      flux_handle.py           TextEncoders      text_handle.py
    Autoencoder    autoencoder_handle.py

Each handle belongs to the runtime (runtime.py) into which its file was loaded: its device, number types and memory
budget.

Independent of: nodes, prompts, solvers, and how bytes become parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ..checkpoint.detect import detect, refuse
from ..checkpoint.kinds import Detected
from ..checkpoint.load import Tensors
from ..checkpoint.stored import Stored, WeightFile
from ..convert.nunchaku_plain import open_plain
from ..errors import FileFormatError, InputError
from ..sampling.schedule import default_sampling
from .autoencoder_handle import Autoencoder
from .flux_handle import WEIGHT_DTYPES, Description, FluxModel
from .model_weights import AutoencoderWeights, ClipWeights, FluxWeights, T5Weights, Taef1Weights
from .runtime import Runtime
from .text_handle import EncoderOf, TextEncoders, ready

__all__ = [
    "WEIGHT_DTYPES", "Autoencoder", "Description", "FluxModel", "TextEncoders", "described", "load_autoencoder",
    "load_checkpoint", "load_flux", "load_text", "told_encoder",
]  # fmt: skip


def load_flux(runtime: Runtime, path: str | Path, weight_dtype: str = "default") -> FluxModel:
    """The transformer of a file: BFL or diffusers layout, GGUF, or part of an all-in-one checkpoint.

    weight_dtype: a name of WEIGHT_DTYPES. Raises MissingFileError, or FileFormatError with the kind of the file.
    """
    if weight_dtype not in WEIGHT_DTYPES:
        raise InputError(f"There is no weight_dtype {weight_dtype!r}; choose {', '.join(WEIGHT_DTYPES)}.")
    file, found = _open(path)
    if "flux" not in found.parts:
        refuse(file.path, found, "flux")
    return _flux(runtime, file, found, weight_dtype)


def described(runtime: Runtime, given: Description) -> FluxModel:
    """The model of a description, in this process. Raises the errors of `load_flux`."""
    model = load_flux(runtime, given.path, given.weight_dtype)
    return replace(model, loras=given.loras, compute_dtype=given.dtype, own_compute=given.compute)


def told_encoder(runtime: Runtime, given: EncoderOf) -> Any:
    """The text encoder that another process tells, in this one. Raises the errors of `load_text`."""
    file, found = _open(given.path)
    return ready(_encoder(runtime, given.kind, file, found.parts[given.kind]), given.loras, runtime.device)


def load_text(
    runtime: Runtime,
    paths: Sequence[str | Path],
    device: str = "default",
    tokenizers: Sequence[Path] = (),
    embeddings: Sequence[Path] = (),
) -> TextEncoders:
    """Both text encoders from one or more files, in any order. device "cpu" keeps them off the accelerator.

    tokenizers, embeddings: the folders of these kinds. Raises MissingFileError and FileFormatError.
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


def load_autoencoder(runtime: Runtime, path: str | Path, *beside: str | Path) -> Autoencoder:
    """The autoencoder of a file, BFL or diffusers layout, or TAEF1. beside: its other half, if it has two files.

    Raises MissingFileError and FileFormatError.
    """
    file, found = _open(path)
    if "taef1" in found.parts:
        return _taef1(runtime, [(file, found), *map(_open, beside)])
    if "autoencoder" not in found.parts:
        refuse(file.path, found, "autoencoder")
    return _autoencoder(runtime, file, found)


def load_checkpoint(
    runtime: Runtime, path: str | Path, tokenizers: Sequence[Path] = (), embeddings: Sequence[Path] = ()
) -> tuple[FluxModel, TextEncoders, Autoencoder]:
    """All models of one file. A missing one is represented by an object that raises an error when it is used."""
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
    """Makes `hasattr` of an absent part return False."""


class _Absent:
    """Represents a part that a checkpoint lacks or that cannot be used; any use raises an error with the reason."""

    def __init__(self, file: WeightFile, part: tuple[str, str], refusal: str | None) -> None:
        self._file, self._part, self._refusal = file.path.name, part, refusal

    def __getattr__(self, name: str) -> NoReturn:
        noun, node = self._part
        reason = self._refusal or f"The checkpoint {self._file} contains no {noun}."
        raise _AbsentPart(f"{reason} Load it from a file of its own with {node}.")


def _open(path: str | Path) -> tuple[WeightFile, Detected]:
    file = open_plain(path)
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
    return TextEncoders(
        _encoder(runtime, "clip_l", *parts["clip_l"]),
        _encoder(runtime, "t5", *parts["t5"]),
        on_cpu=on_cpu,
        tokenizers=tuple(tokenizers),
        embedding_folders=tuple(embeddings),
    )


def _encoder(runtime: Runtime, kind: str, file: WeightFile, tensors: Tensors) -> Any:
    """ClipWeights or T5Weights."""
    identity = file.identity, kind
    made = ClipWeights if kind == "clip_l" else T5Weights
    return runtime.weights.get(identity, lambda: made(runtime, tensors, identity))


def _taef1(runtime: Runtime, opened: Sequence[tuple[WeightFile, Detected]]) -> Autoencoder:
    tensors: dict[str, Stored] = {}
    for file, found in opened:
        if "taef1" not in found.parts:
            refuse(file.path, found, "taef1")
        tensors |= found.parts["taef1"]
    identity = (*(file.identity for file, _ in opened), "taef1")
    return Autoencoder(runtime.weights.get(identity, lambda: Taef1Weights(runtime, tensors, identity)))


def _autoencoder(runtime: Runtime, file: WeightFile, found: Detected) -> Autoencoder:
    identity = file.identity, "autoencoder"
    tensors = found.parts["autoencoder"]
    return Autoencoder(runtime.weights.get(identity, lambda: AutoencoderWeights(runtime, tensors, identity)))
