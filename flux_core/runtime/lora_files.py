"""Adds a LoRA file to handles: its part for the transformer and its part for the text encoders.

A file is read once while its content is referenced. Each handle gets it with a strength; nothing else about the handle
changes, and no weight is read or changed.

Independent of: nodes, how a branch computes, which names mean what.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.few_steps import strength_hint
from ..adapters.lora import Lora, LoraUse, parse
from ..adapters.lora_names import encoder_targets, flux_targets
from ..checkpoint.detect import detect, refuse
from ..checkpoint.files import open_weights
from ..checkpoint.kinds import Detected
from ..checkpoint.load import read
from ..checkpoint.lora_keys import CLIP, FLUX, T5
from ..checkpoint.stored import WeightFile, whole
from ..errors import InputError
from ..quant.formats import PLAIN, decode
from .handles import FluxModel, TextEncoders

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraFile:
    """The changes of one file in a transformer and, if they were given, in text encoders."""

    flux: Lora
    clip: Lora | None = None
    t5: Lora | None = None

    def added_to(
        self, model: FluxModel, text: TextEncoders | None, strength_model: float = 1.0, strength_text: float = 1.0
    ) -> tuple[FluxModel, TextEncoders | None]:
        """The handles with this LoRA. Strength 0 leaves a handle as it is."""
        hint = strength_hint(self.flux.name, strength_model)
        if hint is not None:
            log.warning(hint)
        if text is not None and self.clip is not None and self.t5 is not None:
            text = _text_with(text, LoraUse(self.clip, strength_text), LoraUse(self.t5, strength_text))
        return _model_with(model, LoraUse(self.flux, strength_model)), text


def read_lora(model: FluxModel, text: TextEncoders | None, path: str | Path) -> LoraFile:
    """The content of the file for these models. It is read again only if it is no longer referenced.

    Raises MissingFileError, FileFormatError, InputError for a file that was made for another model, and BudgetTooSmall.
    """
    file = open_weights(path)
    encoders = text and (text.clip_weights.identity, text.t5_weights.identity)
    key = file.identity, model.weights.identity, encoders
    return model.runtime.loras.get(key, lambda: _parsed(file, key, model, text))


def _parsed(file: WeightFile, key: Hashable, model: FluxModel, text: TextEncoders | None) -> LoraFile:
    kind = detect(file)
    if kind.kind == "other":
        refuse(file.path, kind, "lora")
    model.runtime.make_room_in_ram(file.path.name, file.size)
    tensors, name = _tensors(file), file.path.name
    targets = {FLUX: flux_targets({name: stored.shape for name, stored in model.weights.tensors.items()})}
    if text is not None:
        targets |= {CLIP: encoder_targets(text.clip_weights.tensors), T5: encoder_targets(text.t5_weights.tensors)}
    loras = parse(name, tensors, targets, key)
    _check_use(file, kind, [*loras.values()])
    return LoraFile(loras[FLUX], loras.get(CLIP), loras.get(T5))


def _model_with(model: FluxModel, use: LoraUse) -> FluxModel:
    changes = use.strength and (use.lora.changes or use.lora.scales)
    return replace(model, loras=(*model.loras, use)) if changes else model


def _text_with(text: TextEncoders, clip: LoraUse, t5: LoraUse) -> TextEncoders:
    if clip.strength and clip.lora.changes:
        text = replace(text, clip_loras=(*text.clip_loras, clip))
    if t5.strength and t5.lora.changes:
        text = replace(text, t5_loras=(*text.t5_loras, t5))
    return text


def _tensors(file: WeightFile) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU; formats without arithmetic are converted to two bytes a value."""
    tensors = {}
    for entry in file.entries.values():
        stored, dtype = whole(file, entry), PLAIN.get(entry.format, torch.bfloat16)
        tensors[entry.name] = decode(read(stored), stored.encoding, stored.shape, dtype)
    return tensors


def _check_use(file: WeightFile, kind: Detected, loras: list[Lora]) -> None:
    """Raise InputError if no tensor of the file was used; warn if some were not."""
    if not any(lora.changes or lora.scales for lora in loras):
        if kind.kind != "lora":
            refuse(file.path, kind, "lora")
        if len(loras) == 1 and "transformer" not in str(kind.facts.get("changes")):
            raise InputError(
                f"{file.path.name} is {kind.noun}: it changes nothing of the transformer. Load it with Load LoRA, "
                "which takes the text encoders as well, or leave it out."
            )
        raise InputError(
            f"None of the {len(file.entries)} tensors of {file.path.name} belong to this model "
            f"(the first is {next(iter(file.entries), '-')}). Choose a LoRA made for FLUX.1."
        )
    unmatched = loras[0].unmatched
    if unmatched:
        log.warning(
            "%s: %d of %d tensors were not used, the first is %s.",
            file.path.name, len(unmatched), len(file.entries), min(unmatched),
        )  # fmt: skip
