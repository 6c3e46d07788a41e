"""LoRAs beside the Linears of a model, for one run.

The base weights are never changed: `adapted` makes a copy of the model that has the branches and shares the weights. So
any number of runs with different LoRAs and strengths can use one set of weights at the same time.

Independent of: files, where weights are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from ..errors import InputError
from ..models.copies import shallow, with_parts
from ..models.linear import Linear
from .branches import Branch, Constant, LowRank, Product, Reweighing, merge
from .lora import LoraUse
from .lora_families import Change
from .rotations import Rotation

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

MISFIT = "%s was made for another kind of model: its change of %s, %s, does not fit and is left out."


def adapted(model: Module, uses: Sequence[LoraUse], device: torch.device, dtype: torch.dtype) -> Module:
    """The model with LoRAs beside its Linears, for one run: a copy that shares every weight (models/copies.py).

    The model itself stays unchanged, so runs with other LoRAs may use it at the same time. Copies of the LoRAs' tensors
    on `device` in `dtype` exist as long as the result. Strength 0 costs nothing. Raises InputError for a LoRA that
    changes something other than a linear layer of this model.
    """
    uses = [use for use in uses if use.strength]
    parts: dict[str, nn.Module] = {}
    for path, there in _by_module(uses).items():
        linear = model.get_submodule(path)
        if not isinstance(linear, Linear):
            raise InputError(f"A LoRA changes {path}, which is not a linear layer of this model.")
        fitting = _fitting(path, (linear.out_features, linear.in_features), there)
        parts[path] = changed = shallow(linear)
        changed.reweighings, changed.branches = _inside_and_beside([c.to(device, dtype).times(s) for c, s in fitting])
    for use in uses:
        for name, scale in use.lora.scales.items():
            path, _, attribute = name.rpartition(".")
            norm = parts.get(path) or shallow(model.get_submodule(path))
            if getattr(norm, attribute).shape != scale.shape:
                log.warning(MISFIT, use.lora.name, name, list(scale.shape))
                continue
            setattr(norm, attribute, nn.Parameter(scale.to(device, dtype), requires_grad=False))
            parts[path] = norm
    return with_parts(model, parts) if parts else model


def reweighed(model: nn.Module) -> set[str]:
    """The names of the matrices on which a change of a LoRA depends, in a result of `adapted`."""
    linears = ((name, part) for name, part in model.named_modules() if isinstance(part, Linear))
    return {f"{name}.weight" for name, linear in linears if linear.reweighings}


def _by_module(uses: Sequence[LoraUse]) -> dict[str, list[tuple[Change, LoraUse]]]:
    changes: dict[str, list[tuple[Change, LoraUse]]] = {}
    for use in uses:
        for path, all_ in use.lora.changes.items():
            changes.setdefault(path, []).extend((change, use) for change in all_)
    return changes


def _fitting(path: str, shape: tuple[int, int], there: Sequence[tuple[Change, LoraUse]]) -> list[tuple[Change, float]]:
    """The changes that fit a layer's shape [out, in], with their strengths. Others cause a warning and are left out.

    A LoRA for dev changes 64 columns of img_in, of which Fill has 384: it is used for these 64, as in ComfyUI. Once a
    control LoRA has widened a layer, later LoRAs must have the new width.
    """
    fitting, (outputs, inputs) = [], shape
    for change, use in there:
        start, end = change.rows or (0, outputs)
        if _widens(change):
            inputs = max(inputs, change.shape[1])
        if end > outputs or not _has_shape(change, end - start, inputs):
            log.warning(MISFIT, use.lora.name, path, list(change.shape))
            continue
        fitting.append((change, use.strength))
    return fitting


def _has_shape(change: Change, outputs: int, inputs: int) -> bool:
    if isinstance(change, Rotation):
        return change.fits(outputs, inputs)
    return change.shape == ((outputs,) if isinstance(change, Constant) else (outputs, inputs))


def _inside_and_beside(
    changes: Sequence[Change],
) -> tuple[tuple[Product | Reweighing | Rotation, ...], tuple[Branch, ...]]:
    """The changes of the matrix itself, in order, and the branches that are added to its product.

    A reweighing depends on the changes before it; changes after the last one can be added to the product.
    """
    last = max((i for i, change in enumerate(changes) if isinstance(change, (Reweighing, Rotation))), default=-1)
    inside, beside = [], list[Branch]()
    for i, change in enumerate(changes):
        if isinstance(change, (Reweighing, Rotation)) or (
            i < last and isinstance(change, Product) and not _widens(change)
        ):
            inside.append(change)
        else:
            beside.append(change)
    return tuple(inside), _merged(beside)


def _widens(change: Change) -> bool:
    return isinstance(change, LowRank) and change.widens


def _merged(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """Low-rank branches of the same rows and input width become one pair of matrices."""
    groups: dict[object, list[LowRank]] = {}
    others: list[Branch] = []
    for branch in branches:
        if isinstance(branch, LowRank):
            groups.setdefault((branch.rows, branch.down.shape[1]), []).append(branch)
        else:
            others.append(branch)
    return (*(merge(group) for group in groups.values()), *others)
