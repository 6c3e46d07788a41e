"""LoRA files -> side branches on the Linears of a model.

The base weights are never changed: `adapted` makes a copy of the model for one run, which has the branches and shares
the weights. So any number of runs with other LoRAs and strengths use one set of weights, at the same time too.
Understood are LoRA, LoHa, LoKr, DoRA, OFT, BOFT, full differences and the FLUX.1 control LoRAs, in the key layouts of
kohya, diffusers/PEFT, BFL, LyCORIS, OneTrainer and XLabs.

Does not know: nodes, where weights live, the names themselves (lora_names.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.copies import shallow, with_parts
from ..models.linear import Linear
from .branches import Branch, Constant, Dense, Kronecker, LowRank, Product, Reweighing, hadamard, merge
from .lora_names import Target, Targets
from .rotations import BUTTERFLY, COLUMNS, ROWS, Rotation, cayley, cayley_of_triangles, side_of_triangle

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

# suffixes of the two factors of a plain LoRA: (up, down)
_FACTORS = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".up.weight", ".down.weight"),
)
CONTROL = "single_blocks.0.norm.key_norm.scale"  # by this BFL's control LoRAs are known
Change = Branch | Reweighing | Rotation
Has = Callable[..., bool]  # whether a prefix has tensors with these suffixes
Get = Callable[[str], Tensor]
Found = tuple[str, Change, list[str]]  # kind of change, the change, the names of the tensors it was made of
MISFIT = "%s was made for another kind of model: its change of %s, %s, does not fit and is left out."
_REFUSED = (".a1.weight", ".a2.weight", ".lora_mid.weight", ".hada_t1", ".lokr_t2")


@dataclass(frozen=True, eq=False)
class Lora:
    """What one file changes in one model. Tensors are as stored, on the CPU; a device has copies while it computes."""

    name: str
    changes: Mapping[str, tuple[Change, ...]]  # module path -> changes of its output or matrix
    scales: Mapping[str, Tensor]  # q/k-norm scales to put in place of the model's own, whatever the strength
    unmatched: tuple[str, ...] = ()
    identity: Hashable = field(default_factory=object)  # the same for the same numbers; keeps none of them

    def copied_bytes(self, device: torch.device, dtype: torch.dtype) -> int:
        """What its copies there take."""
        tensors = [tensor for all_ in self.changes.values() for change in all_ for tensor in change.tensors]
        moved = [tensor for tensor in tensors if (tensor.device, tensor.dtype) != (device, dtype)]
        return sum(tensor.numel() for tensor in moved) * dtype.itemsize

    def input_width(self, module: str, width: int) -> int:
        """Input columns of a module that has this LoRA: control LoRAs widen img_in."""
        return max([width, *(c.shape[1] for c in self.changes.get(module, ()) if isinstance(c, LowRank) and c.widens)])


@dataclass(frozen=True)
class LoraUse:
    """A LoRA at a strength, as handles carry it."""

    lora: Lora
    strength: float

    @property
    def identity(self) -> Hashable:
        return self.lora.identity, self.strength


def parse(name: str, tensors: Mapping[str, Tensor], targets: Targets, identity: Hashable | None = None) -> Lora:
    """Sort the tensors of a file by what they change.

    name: for messages. targets: from lora_names. identity: of file and model, if they are known. Tensors of other
    models, and those that mean the same as one before them, are listed as unmatched.
    Raises InputError for families that cannot be used, and for numbers that are not finite.
    """
    refused = next((key for key in tensors if key.endswith(_REFUSED)), None)
    if refused:
        raise InputError(
            f"{name} holds {refused}: this kind of adapter (GLoRA or a convolutional LoRA) is not supported. "
            "LoRA, LoHa, LoKr, DoRA, OFT, BOFT and full differences are."
        )
    originals: dict[str, str] = {}
    for original in tensors:
        key = targets.key(original)
        if key is not None:
            originals.setdefault(key, original)
    by_key = {key: tensors[original] for key, original in originals.items()}
    found: dict[tuple[str, tuple[int, int] | None, str], Change] = {}
    scales: dict[str, Tensor] = {}
    used: set[str] = set()
    for prefix in dict.fromkeys(_prefixes(by_key, targets.paths)):
        target = targets.paths[prefix]
        for kind, change, keys in _changes(prefix, target, by_key):
            found[target.module, change.rows, kind] = change
            used.update(keys)
        for key in (prefix, prefix + ".set_weight"):
            if target.parameter.endswith(".scale") and key in by_key:
                scales[target.parameter] = by_key[key]
                used.add(key)
    _check_numbers(name, {originals[key]: by_key[key] for key in used})
    changes: dict[str, list[Change]] = {}
    for (module, _, _), change in found.items():
        changes.setdefault(module, []).append(change)
    matched = {originals[key] for key in used}
    unmatched = tuple(original for original in tensors if original not in matched)
    by_module = {module: tuple(all_) for module, all_ in changes.items()}
    return Lora(name, by_module, scales, unmatched, object() if identity is None else identity)


def _check_numbers(name: str, tensors: Mapping[str, Tensor]) -> None:
    """One number that is none makes the whole picture black. Raises InputError for it."""
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor.sum(dtype=torch.float64)):  # NaN and infinity survive every sum
            raise InputError(
                f"{name}: {key} holds numbers that are not finite (NaN or infinity), so no picture can come of it. "
                "Fetch the file again, or leave this LoRA out; its training may have diverged."
            )


def _prefixes(tensors: Mapping[str, Tensor], targets: Mapping[str, Target]) -> Iterator[str]:
    """The targets that some tensor's name begins with, in the file's order."""
    for key in tensors:
        stem = key
        while stem:
            if stem in targets:
                yield stem
                break
            cut = max(stem.rfind("."), stem.rfind("_"))
            stem = stem[: max(cut, 0)]


def _changes(prefix: str, target: Target, tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    """The changes for one target."""

    def has(*suffixes: str) -> bool:
        return all(prefix + suffix in tensors for suffix in suffixes)

    def get(suffix: str) -> Tensor:
        return tensors[prefix + suffix]

    alpha = float(get(".alpha")) if has(".alpha") else None
    extras = [prefix + suffix for suffix in (".alpha", ".reshape_weight") if has(suffix)]
    rows = target.rows
    widens = has(".reshape_weight") or (prefix == "img_in" and CONTROL in tensors)
    for up, down in _FACTORS:
        if has(up, down):
            branch = LowRank(_flat(get(down)), _swapped(_flat(get(up)), target.swap), 1.0, rows, widens)
            rank = branch.down.shape[0]
            branch = branch.times(alpha / rank if alpha is not None else 1.0)
            keys = [prefix + up, prefix + down, *extras]
            if has(".dora_scale"):
                magnitude = _flat(get(".dora_scale"))
                yield "matrix", Reweighing(branch, magnitude, 1.0, rows), [*keys, prefix + ".dora_scale"]
            else:
                yield "matrix", branch, keys
            if has(".lora_B.bias"):
                yield "bias", Constant(get(".lora_B.bias"), 1.0, rows), [prefix + ".lora_B.bias"]
            break
    else:
        families = (_loha, _lokr, _oft)
        for kind, branch, keys in (found for family in families for found in family(prefix, target, alpha, has, get)):
            yield kind, branch, [*keys, *extras]
    if has(".diff"):
        yield "diff", Dense(_swapped(_flat(get(".diff")), target.swap), 1.0, rows), [prefix + ".diff"]
    if has(".diff_b"):
        yield "diff_b", Constant(_swapped(get(".diff_b"), target.swap), 1.0, rows), [prefix + ".diff_b"]


def _loha(prefix: str, target: Target, alpha: float | None, has: Has, get: Get) -> Iterator[Found]:
    """A Hadamard product of two low-rank products."""
    parts = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
    if has(*parts):
        w1a, w1b, w2a, w2b = (get(suffix).float() for suffix in parts)
        scale = alpha / w1b.shape[0] if alpha is not None else 1.0
        branch = hadamard(_swapped(w1a, target.swap), w1b, _swapped(w2a, target.swap), w2b, scale, target.rows)
        yield "matrix", branch, [prefix + suffix for suffix in parts]


def _lokr(prefix: str, target: Target, alpha: float | None, has: Has, get: Get) -> Iterator[Found]:
    """A Kronecker product of two matrices, each of which may be a low-rank product."""
    factors, keys, rank = [], [], None
    for whole in (".lokr_w1", ".lokr_w2"):
        a, b = f"{whole}_a", f"{whole}_b"
        if has(whole):
            factors.append(get(whole).float())
            keys.append(prefix + whole)
        elif has(a, b):
            factors.append(get(a).float() @ get(b).float())
            keys += [prefix + a, prefix + b]
            rank = get(b).shape[0]
    if len(factors) == 2:
        scale = alpha / rank if alpha is not None and rank else 1.0
        if target.swap:
            yield "matrix", Dense(_swapped(torch.kron(*factors), True), scale, target.rows), keys
        else:
            yield "matrix", Kronecker(*factors, scale, target.rows), keys


def _oft(prefix: str, target: Target, alpha: float | None, has: Has, get: Get) -> Iterator[Found]:
    """Orthogonal blocks: LyCORIS and kohya turn rows, PEFT and OneTrainer columns. alpha limits Q, per output."""
    if has(".oft_R.weight"):
        triangles, keys = get(".oft_R.weight").float(), [".oft_R.weight"]
        if has(".dora_scale") or triangles.ndim != 2 or not side_of_triangle(triangles.shape[1]):
            beside = ", as dora_scale is beside it" if has(".dora_scale") else ""
            raise InputError(
                f"{prefix}.oft_R.weight {list(triangles.shape)} is no OFT known here{beside}. Leave it out."
            )
        if has(".oft_R.scaled_oft"):
            triangles, keys = triangles / triangles.shape[1] ** 0.5, [*keys, ".oft_R.scaled_oft"]
        yield "matrix", Rotation(COLUMNS, cayley_of_triangles(triangles), rows=target.rows), _named(prefix, keys)
    if has(".oft_blocks"):
        blocks, rescale = get(".oft_blocks"), get(".rescale").flatten(1) if has(".rescale") else None
        if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
            raise InputError(f"{prefix}.oft_blocks has the shape {list(blocks.shape)}; an OFT has square blocks. "
                             "Fetch the file again, or leave it out.")  # fmt: skip
        kind, count = (BUTTERFLY, 1) if blocks.ndim == 4 else (ROWS, 0)
        outputs = blocks.shape[count] * blocks.shape[-1]
        turned = Rotation(kind, cayley(blocks, (alpha or 0) * outputs), rescale, rows=target.rows)
        yield "matrix", turned, _named(prefix, [".oft_blocks", *([".rescale"] if has(".rescale") else [])])
    start, number = (target.rows or (0, 0))[0], 0
    while has(f".oft_blocks.{number}"):  # kohya: one for each of the matrices that FLUX joins
        blocks = get(f".oft_blocks.{number}")
        end = start + blocks.shape[0] * blocks.shape[1]
        turned = Rotation(ROWS, cayley(blocks, (alpha or 0) * (end - start)), rows=(start, end))
        yield "matrix", turned, _named(prefix, [f".oft_blocks.{number}"])
        start, number = end, number + 1


def _named(prefix: str, suffixes: Sequence[str]) -> list[str]:
    return [prefix + suffix for suffix in suffixes]


def _flat(matrix: Tensor) -> Tensor:
    return matrix.flatten(1)


def _swapped(rows: Tensor, swap: bool) -> Tensor:
    """diffusers keeps scale before shift where BFL keeps shift before scale."""
    return torch.cat(rows.chunk(2)[::-1]) if swap else rows


def adapted(model: Module, uses: Sequence[LoraUse], device: torch.device, dtype: torch.dtype) -> Module:
    """The model with LoRAs beside its Linears, for one run: a copy that shares every weight (models/copies.py).

    The model itself stays as it is, so runs with other LoRAs may use it at the same time. Copies of the LoRAs' tensors
    on `device` in `dtype` live as long as the result. Strength 0 costs nothing. Raises InputError for a LoRA that
    changes what is no linear layer of this model.
    """
    uses = [use for use in uses if use.strength]
    parts: dict[str, nn.Module] = {}
    for path, there in _by_module(uses).items():
        linear = model.get_submodule(path)
        if not isinstance(linear, Linear):
            raise InputError(f"A LoRA changes {path}, which is no linear layer of this model.")
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


def _by_module(uses: Sequence[LoraUse]) -> dict[str, list[tuple[Change, LoraUse]]]:
    changes: dict[str, list[tuple[Change, LoraUse]]] = {}
    for use in uses:
        for path, all_ in use.lora.changes.items():
            changes.setdefault(path, []).extend((change, use) for change in all_)
    return changes


def _fitting(path: str, shape: tuple[int, int], there: Sequence[tuple[Change, LoraUse]]) -> list[tuple[Change, float]]:
    """The changes of a layer that have its shape [out, in], with their strengths. The others are told and left out.

    A LoRA for dev changes 64 columns of img_in, of which Fill has 384: it is used for the rest, as in ComfyUI. Once
    a control LoRA has widened a layer, those that come after have to be as wide.
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
    """What changes the matrix itself, in order, and what is added beside it.

    A reweighing sees what came before it; what comes after the last one may stay beside.
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
