"""A LoRA file, read for one model: which layers it changes, and how.

Nothing here has a strength: handles have a `LoraUse`, and apply.py adds it to a model.

Independent of: nodes, models as modules, the names themselves (lora_names.py), what a family computes
(lora_families.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoint.lora_keys import place_of
from ..errors import InputError
from .branches import LowRank
from .lora_families import REFUSED, Change, Group, changes_of
from .lora_names import Targets


@dataclass(frozen=True, eq=False)
class Lora:
    """The changes of one file to one model. Tensors are in their stored format, on the CPU; a run has copies on its
    device.
    """

    name: str
    changes: Mapping[str, tuple[Change, ...]]  # module path -> changes of its output or matrix
    scales: Mapping[str, Tensor]  # scales of the q/k norms that replace the model's own, at any strength
    unmatched: tuple[str, ...] = ()
    identity: Hashable = field(default_factory=object)  # equal for equal numbers; holds no reference to them

    def copied_bytes(self, device: torch.device, dtype: torch.dtype) -> int:
        """Bytes of its copies on a device."""
        tensors = [tensor for all_ in self.changes.values() for change in all_ for tensor in change.tensors]
        moved = [tensor for tensor in tensors if (tensor.device, tensor.dtype) != (device, dtype)]
        return sum(tensor.numel() for tensor in moved) * dtype.itemsize

    def input_width(self, module: str, width: int) -> int:
        """The number of input columns of a module with this LoRA: control LoRAs widen img_in."""
        return max([width, *(c.shape[1] for c in self.changes.get(module, ()) if isinstance(c, LowRank) and c.widens)])


@dataclass(frozen=True)
class LoraUse:
    """A LoRA with a strength, as handles have it."""

    lora: Lora
    strength: float

    @property
    def identity(self) -> Hashable:
        return self.lora.identity, self.strength


def parse(
    name: str, tensors: Mapping[str, Tensor], targets: Mapping[str, Targets], identity: Hashable | None = None
) -> dict[str, Lora]:
    """Sort the tensors of a file by the model and the matrix that they change.

    name: for messages. targets: of each model that the file may change (checkpoint/lora_keys.py: FLUX, CLIP, T5), from
    lora_names. identity: of file and models, if known. Returns a Lora for each of the models. Tensors that no model
    used, and those that duplicate an earlier one, are listed as unmatched in each. Raises InputError for families that
    cannot be used, and for numbers that are not finite.
    """
    refused = next((key for key in tensors if key.endswith(REFUSED)), None)
    if refused:
        raise InputError(
            f"{name} holds {refused}: this kind of adapter (GLoRA or a convolutional LoRA) is not supported. "
            "LoRA, LoHa, LoKr, DoRA, OFT, BOFT and full differences are."
        )
    originals: dict[str, dict[str, str]] = {model: {} for model in targets}  # model -> plain name -> name in the file
    for original in tensors:
        model, key = place_of(original)
        if model in originals:
            originals[model].setdefault(key, original)
    found: dict[str, _Matched] = {}
    matched: set[str] = set()
    for model, names in originals.items():
        found[model] = _matched({key: tensors[original] for key, original in names.items()}, targets[model])
        used = {names[key]: tensors[names[key]] for key in found[model].used}
        _check_numbers(name, used)
        matched.update(used)
    unmatched = tuple(original for original in tensors if original not in matched)
    whole = object() if identity is None else identity
    return {model: Lora(name, each.changes, each.scales, unmatched, (whole, model)) for model, each in found.items()}


class _Matched(NamedTuple):
    """The changes from the tensors of one model, and the names of the tensors that were used."""

    changes: Mapping[str, tuple[Change, ...]]
    scales: Mapping[str, Tensor]
    used: set[str]


def _matched(tensors: Mapping[str, Tensor], targets: Targets) -> _Matched:
    found: dict[tuple[str, tuple[int, int] | None, str], Change] = {}
    scales: dict[str, Tensor] = {}
    used: set[str] = set()
    for prefix in dict.fromkeys(_prefixes(tensors, targets)):
        target = targets[prefix]
        for kind, change, keys in changes_of(Group(prefix, target, tensors)):
            found[target.module, change.rows, kind] = change
            used.update(keys)
        for key in (prefix, prefix + ".set_weight"):
            if target.parameter.endswith(".scale") and key in tensors:
                scales[target.parameter] = tensors[key]
                used.add(key)
    changes: dict[str, list[Change]] = {}
    for (module, _, _), change in found.items():
        changes.setdefault(module, []).append(change)
    return _Matched({module: tuple(all_) for module, all_ in changes.items()}, scales, used)


def _check_numbers(name: str, tensors: Mapping[str, Tensor]) -> None:
    """A single number that is not finite makes the whole image black. Raises InputError for it."""
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor.sum(dtype=torch.float64)):  # every sum with NaN or infinity is not finite
            raise InputError(
                f"{name}: {key} holds numbers that are not finite (NaN or infinity), so it cannot give an image. "
                "Fetch the file again, or leave this LoRA out; its training may have diverged."
            )


def _prefixes(tensors: Mapping[str, Tensor], targets: Targets) -> Iterator[str]:
    """The targets with whose names some tensor's name begins, in the order of the file."""
    for key in tensors:
        stem = key
        while stem:
            if stem in targets:
                yield stem
                break
            cut = max(stem.rfind("."), stem.rfind("_"))
            stem = stem[: max(cut, 0)]
