"""A LoRA file onto handles: the transformer's and the text encoders' share of it.

A file is read once, as long as somebody holds what came of it. The handles get it at a strength; nothing else about
them changes, and no weight is read or touched.

Does not know: nodes, how a branch computes, which names mean what.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .adapters.lora import Lora, LoraUse, parse
from .adapters.lora_names import Target, flux_targets, text_targets
from .assemble import FluxModel, TextEncoders
from .binding import read
from .checkpoint.files import open_weights
from .checkpoint.stored import Stored, WeightFile
from .errors import InputError
from .memory.manager import make_way_in_ram
from .quant.formats import PLAIN, decode

log = logging.getLogger(__name__)

_read: weakref.WeakValueDictionary[Hashable, Lora] = weakref.WeakValueDictionary()


def with_lora(
    model: FluxModel,
    text: TextEncoders | None,
    path: str | Path,
    strength_model: float = 1.0,
    strength_text: float = 1.0,
) -> tuple[FluxModel, TextEncoders | None]:
    """The handles with a LoRA added. Strength 0 leaves a handle as it is.

    Raises MissingFileError, FileFormatError, and InputError for a file that was made for another model.
    """
    if strength_model == 0 and (strength_text == 0 or text is None):
        return model, text
    file = open_weights(path)
    shapes = {name: stored.shape for name, stored in model.weights.tensors.items()}
    tensors: dict[str, Tensor] | None = None

    def part(identity: Hashable, targets_of: str) -> Lora:
        nonlocal tensors
        key = (file.identity, identity, targets_of)
        lora = _read.get(key)
        if lora is None:
            tensors = _tensors(file) if tensors is None else tensors
            lora = _read[key] = parse(file.path.name, tensors, _targets(targets_of, shapes, text), key)
        return lora

    flux = part(model.weights.identity, "flux")
    clip, t5 = None, None
    if text is not None:
        clip, t5 = part(text.clip_weights.identity, "clip"), part(text.t5_weights.identity, "t5")
    _tell(file, [lora for lora in (flux, clip, t5) if lora is not None])
    model = _model_with(model, LoraUse(flux, strength_model))
    if text is not None and clip is not None and t5 is not None:
        text = _text_with(text, LoraUse(clip, strength_text), LoraUse(t5, strength_text))
    return model, text


def _model_with(model: FluxModel, use: LoraUse) -> FluxModel:
    changes = use.strength and (use.lora.changes or use.lora.scales)
    return replace(model, loras=(*model.loras, use)) if changes else model


def _text_with(text: TextEncoders, clip: LoraUse, t5: LoraUse) -> TextEncoders:
    if clip.strength and clip.lora.changes:
        text = replace(text, clip_loras=(*text.clip_loras, clip))
    if t5.strength and t5.lora.changes:
        text = replace(text, t5_loras=(*text.t5_loras, t5))
    return text


def _targets(kind: str, shapes: dict[str, tuple[int, ...]], text: TextEncoders | None) -> dict[str, Target]:
    if kind == "flux" or text is None:
        return flux_targets(shapes)
    clip, t5 = text_targets(text.clip_weights.tensors, text.t5_weights.tensors)
    return clip if kind == "clip" else t5


def _tensors(file: WeightFile) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU; two bytes a value for formats that cannot be computed with."""
    make_way_in_ram(file.path.name, file.size)
    tensors = {}
    for entry in file.entries.values():
        stored = Stored(entry.name, entry.shape, entry.format, ((entry.offset, entry.nbytes),), None, file)
        dtype = PLAIN.get(entry.format, torch.bfloat16)
        tensors[entry.name] = decode(read(stored), entry.format, entry.shape, dtype)
    return tensors


def _tell(file: WeightFile, loras: list[Lora]) -> None:
    if not any(lora.changes or lora.scales for lora in loras):
        raise InputError(
            f"None of the {len(file.entries)} tensors of {file.path.name} belong to this model "
            f"(the first is {next(iter(file.entries), '-')}). Choose a LoRA made for FLUX.1."
        )
    unmatched = set.intersection(*(set(lora.unmatched) for lora in loras))
    if unmatched:
        log.warning(
            "%s: %d of %d tensors were not used, the first is %s.",
            file.path.name, len(unmatched), len(file.entries), min(unmatched),
        )  # fmt: skip
