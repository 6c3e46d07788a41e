"""nunchaku's files in plain order: written once, beside other copies in a cache folder, and streamed from there.

The transformer gets BFL's names, T5 keeps its own. Every quantised matrix has a `comfy_quant` that names how it is
stored: ours for SVDQuant (quant/low_rank.py), ComfyUI's for AWQ. Nothing is rounded: codes and scales are moved, and
what nunchaku adds to biases and zeros is taken away in float32.

Independent of: which models run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..cancel import check_cancelled
from ..checkpoint import nunchaku
from ..checkpoint.files import open_weights
from ..checkpoint.load import read
from ..checkpoint.names import SWAPPED, flux_diffusers
from ..checkpoint.stored import WeightFile, whole
from ..errors import FileFormatError, SluiceError
from . import nunchaku_order
from .targets import Written
from .writers import safetensors_writer

log = logging.getLogger(__name__)

FOLDER = "SLUICE_CACHE"  # the environment variable that names another cache folder
NAMES = {torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3", torch.bfloat16: "BF16", torch.float16: "F16",
         torch.float32: "F32"}  # fmt: skip
TYPES = {**{name: dtype for dtype, name in NAMES.items()}, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32}
Tensors = Mapping[str, Tensor]
Take = Callable[[str], Tensor]  # the tensor of this name in nunchaku's file


def is_nunchaku(file: WeightFile) -> bool:
    """Whether the file has to be brought into plain order before it can be used."""
    return nunchaku.quantised_flux(file.entries) or nunchaku.quantised_t5(file.entries)


def plain_copy(file: WeightFile) -> Path:
    """The same weights in plain order, written if they are not in the cache yet.

    Raises FileFormatError if tensors are missing or do not fit, SluiceError if the disk has no room, Interrupted.
    """
    if wrong := nunchaku.problem(file):
        raise FileFormatError(wrong)
    digest = hashlib.sha256(repr(file.identity).encode()).hexdigest()[:16]
    path = cache_folder() / f"{file.path.stem}-{digest}.safetensors"
    if path.exists():
        return path
    log.warning(
        "%s is in nunchaku's order. It is written once in plain order, as %s (%.1f GB).",
        file.path.name, path, file.size / 1e9,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    if free_bytes(path.parent) < file.size * 1.1:
        raise SluiceError(
            f"{path.parent} has no room for {file.path.name} in plain order ({file.size / 1e9:.1f} GB). Make room "
            f"there, or name another folder in the environment variable {FOLDER}."
        )
    _write(file, path)
    return path


def free_bytes(place: Path) -> int:
    """On the disk of this folder."""
    return shutil.disk_usage(place).free


def cache_folder() -> Path:
    """Where such copies are: they can be deleted at any time."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "sluice" / "plain"


def _write(file: WeightFile, path: Path) -> None:
    """Two passes over the tensors: the header needs the sizes of all of them."""
    try:
        with torch.device("meta"):
            outline = [Written(name, NAMES[x.dtype], tuple(x.shape)) for name, x in _tensors(file, sizes_only=True)]
        with safetensors_writer(path, outline, {"format": "pt"}) as writer:
            for tensor, (_, x) in zip(outline, _tensors(file), strict=True):
                check_cancelled()
                for _ in writer.tensor(tensor, iter([x.contiguous().view(-1).view(torch.uint8)])):
                    pass
    except (KeyError, RuntimeError) as error:
        raise FileFormatError(
            f"{file.path.name} is not as nunchaku writes such files ({error}). Fetch it again, or take another one."
        ) from error
    except SluiceError:
        if not path.exists():  # otherwise another process has written the same
            raise


def _tensors(file: WeightFile, sizes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors by name. sizes_only: without memory, on the meta device."""

    def take(name: str) -> Tensor:
        stored = whole(file, file.entries[name])
        if sizes_only:
            return torch.empty(stored.shape, dtype=TYPES[stored.format])
        return read(stored).view(TYPES[stored.format]).view(stored.shape)

    reorder = _flux if nunchaku.quantised_flux(file.entries) else _t5
    yield from reorder(file, take)


def _t5(file: WeightFile, take: Take) -> Iterator[tuple[str, Tensor]]:
    for name in file.entries:
        layer, _, kind = name.rpartition(".")
        if kind == "qweight":
            codes = nunchaku_order.plain_awq(take(name))
            groups = 2 * codes.shape[1] // nunchaku.GROUP_AWQ_T5
            sides = nunchaku_order.awq_sides(take(f"{layer}.scales"), take(f"{layer}.scaled_zeros"), groups)
            yield from _matrix(layer, {"weight": codes, **sides}, format="awq_w4a16", group_size=nunchaku.GROUP_AWQ_T5)
        elif kind not in ("scales", "scaled_zeros"):
            yield name, take(name)


def _flux(file: WeightFile, take: Take) -> Iterator[tuple[str, Tensor]]:
    """Blocks in order, then everything outside of them."""
    blocks = dict.fromkeys(
        ".".join(name.split(".")[:2]) for name in file.entries if name.partition(".")[0].endswith("transformer_blocks")
    )
    for block in blocks:
        yield from (_single if block.startswith("single") else _double)(block, file.entries, take)
    for name in file.entries:
        if ".".join(name.split(".")[:2]) not in blocks:
            target = flux_diffusers(name)
            if target is None:
                raise KeyError(name)
            x = take(name)
            yield target[0], torch.cat(x.chunk(2)[::-1]) if target[0].startswith(SWAPPED) else x


def _double(block: str, names: Collection[str], take: Take) -> Iterator[tuple[str, Tensor]]:
    out = f"double_blocks.{block.rpartition('.')[2]}"
    for theirs, ours in nunchaku.DOUBLE.items():
        part, bias = _low_rank(f"{block}.{theirs}", names, take, shifted=theirs.endswith("fc2"))
        yield from _svd_matrix(f"{out}.{ours}", part)
        yield f"{out}.{ours}.bias", bias
    for theirs, ours in nunchaku.DOUBLE_MODULATION.items():
        yield from _modulation(f"{block}.{theirs}", f"{out}.{ours}", 6, take)
    for theirs, ours in nunchaku.NORMS.items():
        yield f"{out}.{ours}.scale", take(f"{block}.{theirs}.weight")


def _single(block: str, names: Collection[str], take: Take) -> Iterator[tuple[str, Tensor]]:
    out = f"single_blocks.{block.rpartition('.')[2]}"
    biases = []
    for number, theirs in enumerate(("qkv_proj", "mlp_fc1")):
        part, bias = _low_rank(f"{block}.{theirs}", names, take)
        biases.append(bias)
        yield from _svd_matrix(f"{out}.linear1.{number}", part)
    yield f"{out}.linear1.bias", torch.cat(biases)
    parts = [_low_rank(f"{block}.{theirs}", names, take, theirs == "mlp_fc2") for theirs in ("out_proj", "mlp_fc2")]
    yield from _svd_matrix(f"{out}.linear2", nunchaku_order.beside([part for part, _ in parts]))
    yield f"{out}.linear2.bias", sum((bias for _, bias in parts[1:]), parts[0][1])
    yield from _modulation(f"{block}.norm.linear", f"{out}.modulation.lin", 3, take)
    for which in ("query", "key"):
        yield f"{out}.norm.{which}_norm.scale", take(f"{block}.norm_{which[0]}.weight")


def _low_rank(
    layer: str, names: Collection[str], take: Take, shifted: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """A matrix by the names of `decode_low_rank`'s tensors, and its bias as it is to be added."""

    def one(*kinds: str) -> Tensor:
        return take(next((f"{layer}.{kind}" for kind in kinds if f"{layer}.{kind}" in names), f"{layer}.{kinds[0]}"))

    scale = one("wscales")
    part = {
        "weight": nunchaku_order.plain_codes(one("qweight")),
        "weight_scale": nunchaku_order.plain_scales(scale),
        "weight_smooth": nunchaku_order.plain_vector(one("smooth", "smooth_factor")),
        "weight_up": nunchaku_order.plain_up(one("lora_up", "proj_up")),
        "weight_down": nunchaku_order.plain_down(one("lora_down", "proj_down")),
    }
    rows = part["weight"].shape[0]
    if f"{layer}.wcscales" in names:
        part["weight_channel"] = nunchaku_order.plain_vector(one("wcscales")).view(rows, 1)
    if f"{layer}.wtscale" in names:
        whole_scale = one("wtscale").float().reshape(1, 1)
        part["weight_channel"] = part.get("weight_channel", torch.ones(rows, 1)).float() * whole_scale
    elif scale.element_size() == 1 and "weight_channel" not in part:
        part["weight_channel"] = torch.ones(rows, 1)
    bias = nunchaku_order.plain_vector(one("bias")).float()
    return part, bias + _shift(part) if shifted and scale.element_size() > 1 else bias


def _shift(part: Tensors) -> Tensor:
    """What the shift of the inputs of a second MLP layer adds: SHIFT sum over k of code scale / smooth, [N]."""
    codes, scale = part["weight"], part["weight_scale"]
    signed = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1).to(torch.int8)
    numbers = torch.where(signed < 8, signed, signed - 16).double().unflatten(1, (scale.shape[1], -1))
    weights = (numbers * scale.double()[:, :, None]).flatten(1) / part["weight_smooth"].double()
    shift: Tensor = nunchaku_order.SHIFT * weights.sum(1)
    return shift.float()


def _modulation(layer: str, out: str, chunks: int, take: Take) -> Iterator[tuple[str, Tensor]]:
    codes = nunchaku_order.plain_awq(take(f"{layer}.qweight"))
    scales, zeros = take(f"{layer}.wscales"), take(f"{layer}.wzeros")
    sides = nunchaku_order.awq_sides(scales, zeros, scales.shape[0])
    rows = {name: nunchaku_order.chunked_rows(x, chunks, 1) for name, x in sides.items()}
    group = 2 * codes.shape[1] // scales.shape[0]
    yield from _matrix(
        out, {"weight": nunchaku_order.chunked_rows(codes, chunks), **rows}, format="awq_w4a16", group_size=group
    )
    yield f"{out}.bias", nunchaku_order.modulation_bias(take(f"{layer}.bias"), chunks)


def _svd_matrix(layer: str, part: Tensors) -> Iterator[tuple[str, Tensor]]:
    four = part["weight_scale"].element_size() == 1
    options = {"segments": part["weight_channel"].shape[1]} if "weight_channel" in part else {}
    yield from _matrix(
        layer, part, format="sluice_svdq_fp4" if four else "sluice_svdq_int4", rank=part["weight_down"].shape[0],
        group_size=2 * part["weight"].shape[1] // part["weight_scale"].shape[1], **options,
    )  # fmt: skip


def _matrix(layer: str, part: Tensors, **said: object) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"{layer}.{name}", x) for name, x in part.items())
    yield f"{layer}.comfy_quant", torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def open_plain(path: str | Path) -> WeightFile:
    """The file, or its plain copy if it is nunchaku's. Raises what `open_weights` and `plain_copy` raise."""
    file = open_weights(path)
    return open_weights(plain_copy(file)) if is_nunchaku(file) else file
