"""The quantised matrices of ComfyUI's files of 2026: one function for each format that `comfy_quant` may name.

Source: ComfyUI, comfy/quant_ops.py and comfy/ops.py (`_load_quantized_module`): which tensors a format has, and where
its options are. quant/integers.py and quant/floats.py decode the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..quant.encoding import rotates
from .matrix_parts import FLOATS, Matrix, Statement, one_or_rows
from .stored import Stored

# Tensors beside a matrix that change its meaning: a file with one that its scheme does not use is refused.
MEANING = (".weight_scale", ".weight_scale_2", ".weight_zeros", ".weight_s_rel", ".weight_s_channel",
           ".weight_codebook", ".weight_correction", ".pre_quant_scale")  # fmt: skip


def comfy_matrix(matrix: Matrix, conf: Statement) -> Stored:
    """The matrix whose `comfy_quant` (or line of the header) is `conf`.

    Raises UnreadableScheme for a format, an option or a tensor beside it that is not known, FileFormatError for tensors
    that do not fit.
    """
    format = conf.get("format")
    if not isinstance(format, str) or format not in FORMATS:
        raise matrix.unreadable(f"{format!r} (ComfyUI's comfy_quant)")
    stored = FORMATS[format](matrix, conf)
    if _option(conf, "convrot", False) and not stored.encoding.rotation:
        raise matrix.unreadable(f"{format} with rotated columns (convrot)")
    for suffix in MEANING:
        if suffix not in matrix.used and (extra := matrix.entry(suffix)) is not None:
            raise matrix.unreadable(f"{format} with {extra.name}")
    full_precision = bool(conf.get("full_precision_matrix_mult", False))
    return replace(stored, encoding=replace(stored.encoding, full_precision=full_precision))


def _option(conf: Statement, name: str, default: Any) -> Any:
    """ComfyUI reads an option beside the format first, then under `params`."""
    params = conf.get("params")
    return conf.get(name, params.get(name, default) if isinstance(params, Mapping) else default)


def _size(matrix: Matrix, conf: Statement, name: str, default: int) -> int:
    value = _option(conf, name, default)
    if type(value) is not int or value < 1:
        raise matrix.unreadable(f"{conf.get('format')} with {name} {value!r}")
    return value


def _rotation(matrix: Matrix, conf: Statement, columns: int) -> int:
    group = _size(matrix, conf, "convrot_groupsize", 256)
    if not rotates(group) or columns % group:
        raise matrix.unreadable(f"{conf.get('format')}, rotated in groups of {group} of {columns} columns")
    return group


def _fp8(matrix: Matrix, conf: Statement) -> Stored:
    format = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}[conf["format"]]
    rows, columns = matrix.sized(conf["format"], (format, "U8", "I8"))
    if (scale := matrix.single(".weight_scale")) is not None:
        return matrix.stored(format, (rows, columns), scale=scale)
    matrix.add("scale", ".weight_scale", one_or_rows(rows), optional=True)
    return matrix.stored(format, (rows, columns))


def _mxfp8(matrix: Matrix, conf: Statement) -> Stored:
    rows, columns = matrix.sized("mxfp8", ("F8_E4M3", "U8", "I8"))
    if columns % 32:
        raise matrix.contradicts("mxfp8 in blocks of 32")
    matrix.add("scale", ".weight_scale", _tiled(rows, columns // 32), ("F8_E8M0",))
    return matrix.stored("MXFP8", (rows, columns))


def _nvfp4(matrix: Matrix, conf: Statement) -> Stored:
    rows, half = matrix.sized("nvfp4", ("U8", "I8", "F4"))
    columns = half if matrix.codes.format == "F4" else 2 * half
    if columns % 16:
        raise matrix.contradicts("nvfp4 in blocks of 16")
    matrix.add("scale", ".weight_scale", _tiled(rows, columns // 16), ("F8_E4M3",))
    matrix.add("scale_2", ".weight_scale_2", one_or_rows())
    matrix.add("pre", ".pre_quant_scale", [(columns,)], optional=True)
    return matrix.stored("NVFP4", (rows, columns))


def _tiled(rows: int, columns: int) -> list[tuple[int, ...]]:
    """The shapes of scales in the order of tensor cores: whole tiles of 128 x 4, as a matrix or flat."""
    tall, wide = -(-rows // 128) * 128, -(-columns // 4) * 4
    return [(tall, wide), (tall * wide,)]


def _int8(matrix: Matrix, conf: Statement) -> Stored:
    rows, columns = matrix.sized("int8_tensorwise", ("I8",))
    matrix.add("scale", ".weight_scale", one_or_rows(rows))
    rotated = _option(conf, "convrot", False)
    return matrix.stored("INT8", (rows, columns), rotation=_rotation(matrix, conf, columns) if rotated else 0)


def _convrot_w4a4(matrix: Matrix, conf: Statement) -> Stored:
    rows, half = matrix.sized("convrot_w4a4", ("I8", "U8"))
    matrix.add("scale", ".weight_scale", one_or_rows(rows))
    return matrix.stored("INT4", (rows, 2 * half), rotation=_rotation(matrix, conf, 2 * half))


def _asym_w4a8(matrix: Matrix, conf: Statement) -> Stored:
    rows, width = matrix.sized("asym_w4a8_int8", ("I8", "U8"))
    group, relative = _size(matrix, conf, "group_size", 16), matrix.entry(".weight_s_rel")
    groups = relative.shape[1] if relative is not None and len(relative.shape) == 2 else 0
    columns = groups * group
    if relative is not None and width * 8 not in (columns * 4, columns * 6):
        raise matrix.contradicts(f"asym_w4a8_int8 with scales {list(relative.shape)} for groups of {group}")
    six = width * 8 == columns * 6
    matrix.add("s_rel", ".weight_s_rel", [(rows, groups)], ("F8_E4M3", *FLOATS))
    matrix.add("s_channel", ".weight_s_channel", [(rows,), (rows, 1)])
    if not six:
        matrix.add("codebook", ".weight_codebook", [(16,)], optional=True)
    return matrix.stored("W6A8" if six else "W4A8", (rows, columns), rotation=_rotation(matrix, conf, columns))


def _awq(matrix: Matrix, conf: Statement) -> Stored:
    rows, half = matrix.sized("awq_w4a16", ("I8", "U8"))
    group = _size(matrix, conf, "group_size", 64)
    if 2 * half % group:
        raise matrix.contradicts(f"awq_w4a16 in groups of {group}")
    for role, suffix in (("scale", ".weight_scale"), ("zeros", ".weight_zeros")):
        matrix.add(role, suffix, [(2 * half // group, rows)])
    return matrix.stored("AWQ4", (rows, 2 * half))


def _low_rank(matrix: Matrix, conf: Statement) -> Stored:
    """SVDQuant's in plain order, which only we write (convert/nunchaku_plain.py)."""
    rows, half = matrix.sized(conf["format"], ("U8",))
    columns, four = 2 * half, conf["format"] == "sluice_svdq_fp4"
    group, rank = _size(matrix, conf, "group_size", 16 if four else 64), _size(matrix, conf, "rank", 32)
    matrix.add("scale", ".weight_scale", [(rows, columns // group)], ("F8_E4M3",) if four else tuple(FLOATS))
    matrix.add("smooth", ".weight_smooth", [(columns,)])
    matrix.add("up", ".weight_up", [(rows, rank)])
    matrix.add("down", ".weight_down", [(rank, columns)])
    segments = _size(matrix, conf, "segments", 1)
    matrix.add("channel", ".weight_channel", [(rows, segments)], optional=True)
    return matrix.stored("SVDQ_FP4" if four else "SVDQ_INT4", (rows, columns))


FORMATS = {
    "sluice_svdq_int4": _low_rank,
    "sluice_svdq_fp4": _low_rank,
    "float8_e4m3fn": _fp8,
    "float8_e5m2": _fp8,
    "mxfp8": _mxfp8,
    "nvfp4": _nvfp4,
    "int8_tensorwise": _int8,
    "convrot_w4a4": _convrot_w4a4,
    "asym_w4a8_int8": _asym_w4a8,
    "awq_w4a16": _awq,
}
