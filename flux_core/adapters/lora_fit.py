"""Whether a LoRA file fits a model, judged by the names and shapes in its header. Reads no weights, needs no torch.

Independent of: where files lie, what a page shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from ..checkpoint.lora_keys import FLUX, place_of
from .lora_names import Target, flux_targets

# Suffixes of the two factors of a plain LoRA; other families (LoHa, LoKr, OFT) are judged by names alone.
_UP = (".lora_up.weight", "_lora.up.weight", ".lora_B.weight", ".lora.up.weight", ".lora_B", ".up.weight")
_DOWN = (".lora_down.weight", "_lora.down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_A", ".down.weight")
_WIDENED = "img_in.weight"  # control LoRAs add columns to it


class Fit(NamedTuple):
    """How many tensors for a transformer have a matrix in the model, how many have none, and the first whose shape is
    another one."""

    used: int
    unused: int
    wrong: str

    @property
    def fits(self) -> bool:
        """Whether the model can use the file."""
        return self.used > 0 and not self.wrong


def fit(file: Mapping[str, tuple[int, ...]], parameters: Mapping[str, tuple[int, ...]]) -> Fit:
    """file: tensor name -> shape of a LoRA file. parameters: BFL name -> shape of a FLUX transformer."""
    targets = flux_targets(parameters)
    used = unused = 0
    wrong = ""
    for original, shape in file.items():
        place, key = place_of(original)
        if place != FLUX:
            continue
        stem = _stem(key, targets)
        if stem is None:
            unused += 1
            continue
        used += 1
        if not wrong and not _matches(key[len(stem) :], shape, targets[stem], parameters):
            wrong = original
    return Fit(used, unused, wrong)


def _stem(key: str, targets: Mapping[str, Target]) -> str | None:
    """The longest beginning of a name that is a matrix of the model."""
    stem = key
    while stem:
        if stem in targets:
            return stem
        stem = stem[: max(stem.rfind("."), stem.rfind("_"), 0)]
    return None


def _matches(suffix: str, shape: tuple[int, ...], target: Target, parameters: Mapping[str, tuple[int, ...]]) -> bool:
    matrix = parameters[target.parameter]
    if len(matrix) != 2 or len(shape) < 2:
        return True
    rows = target.rows[1] - target.rows[0] if target.rows else matrix[0]
    if suffix in _UP:
        return shape[0] == rows
    if suffix in _DOWN and target.parameter != _WIDENED:
        return prod(shape[1:]) == matrix[1]
    return True
