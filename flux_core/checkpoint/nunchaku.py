"""The files of nunchaku (SVDQuant for FLUX.1, AWQ for T5): how they are recognised, what their modules are called, and
which tensors they need.

Such a file is brought into plain order before it is used (convert/nunchaku_plain.py). Uses no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from math import prod

from .complete import missing
from .names import flux_diffusers
from .stored import TensorEntry, WeightFile

SVDQUANT, AWQ = "nunchaku (SVDQuant)", "nunchaku (AWQ)"
_BLOCK_MATRIX = re.compile(r"^(single_)?transformer_blocks\.0\.(qkv_proj|norm1?\.linear)\.qweight$")
_BLOCK = re.compile(r"^((?:single_)?transformer_blocks\.\d+\.)")
_T5_MATRIX = re.compile(r"^encoder\.block\.0\.layer\.0\.SelfAttention\.q\.qweight$")

# nunchaku's module of a block -> BFL's
DOUBLE = {
    "qkv_proj": "img_attn.qkv", "qkv_proj_context": "txt_attn.qkv", "out_proj": "img_attn.proj",
    "out_proj_context": "txt_attn.proj", "mlp_fc1": "img_mlp.0", "mlp_fc2": "img_mlp.2",
    "mlp_context_fc1": "txt_mlp.0", "mlp_context_fc2": "txt_mlp.2",
}  # fmt: skip
DOUBLE_MODULATION = {"norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin"}
NORMS = {
    "norm_q": "img_attn.norm.query_norm", "norm_k": "img_attn.norm.key_norm",
    "norm_added_q": "txt_attn.norm.query_norm", "norm_added_k": "txt_attn.norm.key_norm",
}  # fmt: skip


def quantised_flux(names: Collection[str]) -> bool:
    """Whether these are names of a FLUX.1 transformer of nunchaku."""
    return "x_embedder.weight" in names and sum(bool(_BLOCK_MATRIX.match(name)) for name in names) > 1


def quantised_t5(names: Collection[str]) -> bool:
    """Whether these are names of a T5 of nunchaku."""
    return any(_T5_MATRIX.match(name) for name in names)


# -- what is wrong with a file -----------------------------------------------------------------------------------------

Shape = tuple[int, ...]
GROUP_INT4, GROUP_FP4, GROUP_AWQ, GROUP_AWQ_T5 = 64, 16, 64, 128  # columns that share a scale
_OTHER_NAMES = {"smooth": "smooth_factor", "lora_down": "proj_down", "lora_up": "proj_up"}  # of newer files
_CONTEXT = ("mlp_context_fc1", "mlp_context_fc2", "qkv_proj_context", "out_proj_context")
_IMAGE = ("mlp_fc1", "mlp_fc2", "qkv_proj", "out_proj")  # also of single blocks


class _Wrong(Exception):
    """What is wrong, as the end of a sentence that begins with the file's name."""


def problem(file: WeightFile) -> str:
    """A sentence about the first tensor that a file of nunchaku lacks or that does not fit; "" if all fit.

    A file with a problem cannot be brought into plain order.
    """
    try:
        (_check_flux if quantised_flux(file.entries) else _check_t5)(file.entries)
    except _Wrong as wrong:
        return f"{file.path.name} {wrong}. Fetch it again, or take another one."
    return ""


def _check_flux(entries: Mapping[str, TensorEntry]) -> None:
    outside = {name: flux_diffusers(name) for name in entries if not _BLOCK.match(name)}
    if unknown := next((name for name, found in outside.items() if found is None), None):
        raise _Wrong(f"has a tensor {unknown}, which nunchaku does not write")
    lacking = missing("flux", [found[0] for found in outside.values() if found is not None])
    if lacking:
        raise _Wrong(f"is incomplete: the tensor that becomes {lacking[0]} is missing")
    embedder = entries["x_embedder.weight"].shape
    if len(embedder) != 2:
        raise _Wrong(f"is damaged: x_embedder.weight is {list(embedder)} and should be a matrix")
    hidden = embedder[0]
    for block in dict.fromkeys(found[0] for found in map(_BLOCK.match, entries) if found):
        single = block.startswith("single")
        for parts in (_IMAGE,) if single else (_IMAGE, _CONTEXT):
            fc1, fc2, qkv, out = (f"{block}{part}" for part in parts)
            mlp = _low_rank(entries, fc1, None, hidden)
            _low_rank(entries, fc2, hidden, mlp)
            _low_rank(entries, qkv, 3 * hidden, hidden)
            _low_rank(entries, out, hidden, hidden)
        for part, count in {"norm.linear": 3}.items() if single else dict.fromkeys(DOUBLE_MODULATION, 6).items():
            _awq(entries, f"{block}{part}", ("wscales", "wzeros"), GROUP_AWQ, (count * hidden, hidden))
            _fits(entries, f"{block}{part}.bias", (count * hidden,))
        for norm in ("norm_q", "norm_k") if single else NORMS:
            _there(entries, f"{block}{norm}.weight")


def _low_rank(entries: Mapping[str, TensorEntry], layer: str, rows: int | None, columns: int) -> int:
    """Check the tensors of a matrix [rows, columns] of SVDQuant; rows None: any number. Returns the rows."""
    codes = _there(entries, f"{layer}.qweight")
    rows = codes.shape[0] if rows is None and codes.shape else rows or 0
    _fits(entries, f"{layer}.qweight", (rows, columns // 2), ("I8", "U8"))
    four = _there(entries, f"{layer}.wscales").format == "F8_E4M3"
    _fits(entries, f"{layer}.wscales", (columns // (GROUP_FP4 if four else GROUP_INT4), rows))
    names = {kind: newer if f"{layer}.{newer}" in entries else kind for kind, newer in _OTHER_NAMES.items()}
    down = _there(entries, f"{layer}.{names['lora_down']}")
    rank = down.shape[-1] if down.shape else 0
    _fits(entries, down.name, (columns, rank))
    _fits(entries, f"{layer}.{names['lora_up']}", (rows, rank))
    _fits(entries, f"{layer}.{names['smooth']}", (columns,))
    _fits(entries, f"{layer}.bias", (rows,))
    if f"{layer}.wcscales" in entries:
        _fits(entries, f"{layer}.wcscales", (rows,))
    if f"{layer}.wtscale" in entries and prod(entries[f"{layer}.wtscale"].shape) != 1:
        raise _Wrong(f"is damaged: {layer}.wtscale is {list(entries[f'{layer}.wtscale'].shape)} and should be 1 number")
    return rows


def _check_t5(entries: Mapping[str, TensorEntry]) -> None:
    names = {name.replace(".qweight", ".weight").replace("encoder.embed_tokens", "shared") for name in entries}
    if lacking := missing("t5", names):
        raise _Wrong(f"is incomplete: {lacking[0]} is missing")
    for name in entries:
        if name.endswith(".qweight"):
            _awq(entries, name.removesuffix(".qweight"), ("scales", "scaled_zeros"), GROUP_AWQ_T5)


def _awq(
    entries: Mapping[str, TensorEntry],
    layer: str,
    sides: tuple[str, str],
    group: int,
    shape: tuple[int, int] | None = None,
) -> None:
    """Check the tensors of a matrix of AWQ. Without its shape the scales may have rows that are not used."""
    codes, scale = _there(entries, f"{layer}.qweight"), _there(entries, f"{layer}.{sides[0]}")
    rows = shape[0] if shape else scale.shape[-1] if scale.shape else 0
    columns = shape[1] if shape else 2 * codes.nbytes // rows if rows else 0
    words = codes.format in ("I16", "I32") and len(codes.shape) == 2
    if not words or 2 * codes.nbytes != rows * columns or codes.shape[0] * 4 != rows:
        raise _Wrong(f"is damaged: {codes.name} is {codes.format} {list(codes.shape)}, with scales for {rows} rows")
    groups = columns // group
    enough = scale.shape[:1] == (groups,) if shape else scale.shape[0] >= groups
    if len(scale.shape) != 2 or scale.shape[1] != rows or not enough:
        raise _Wrong(f"is damaged: {scale.name} is {list(scale.shape)} and should be {[groups, rows]}")
    _fits(entries, f"{layer}.{sides[1]}", scale.shape)


def _there(entries: Mapping[str, TensorEntry], name: str) -> TensorEntry:
    if name not in entries:
        raise _Wrong(f"is incomplete: {name} is missing")
    return entries[name]


def _fits(entries: Mapping[str, TensorEntry], name: str, shape: Shape, formats: Collection[str] = ()) -> None:
    entry = _there(entries, name)
    if entry.shape != shape or (formats and entry.format not in formats):
        wanted = f"{' or '.join(formats)} {list(shape)}".strip()
        raise _Wrong(f"is damaged: {name} is {entry.format} {list(entry.shape)} and should be {wanted}")
