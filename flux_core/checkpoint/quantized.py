"""Which quantisation a weight is stored in: what the file states about it, and where its side tensors are.

Shapes are not used to recognise a scheme: a matrix of integers is read only if the file names its scheme, because a
rotation, a zero point or an order of codes cannot be seen. A scheme that is named but not supported is refused by name.

    ComfyUI          `L.comfy_quant` (JSON as bytes), or `_quantization_metadata` in the header: format and options
    scaled fp8       `L.scale_weight`, the form of 2024
    bitsandbytes     `L.weight.quant_state.bitsandbytes__nf4` (JSON as bytes) and statistics beside it
    quanto           `L.weight._data` and `L.weight._scale`

Independent of: models, how values are decoded (quant/).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

from ..errors import FileFormatError
from .comfy_quant import comfy_matrix
from .matrix_parts import INSTEAD, Matrix, Statement, UnreadableScheme, one_or_rows, parsed, small_bytes
from .stored import Stored, TensorEntry, WeightFile, whole

COMFY, METADATA = ".comfy_quant", "_quantization_metadata"
BNB_STATE, BNB_KINDS = ".weight.quant_state.bitsandbytes__", ("nf4", "fp4")
NOT_NUMBERS = (
    "I8",
    "U8",
    "I16",
    "U16",
    "I32",
    "U32",
    "I64",
    "U64",
    "BOOL",
    "C64",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "F8_E8M0",
)
SCALES = (".scale_weight", ".weight_scale")  # factors of the weight beside it: ComfyUI's first and second form
SIDES = re.compile(
    r"\.(scale_weight|scale_input|input_scale|output_scale|comfy_quant|pre_quant_scale"
    r"|weight_(scale|scale_2|zeros|s_rel|s_channel|codebook|correction|smooth|up|down|channel)|comfy_attention\.config"
    r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*|_scale|_shift))$|^scaled_fp8$"
)


def statements(file: WeightFile, prefix: str = "") -> dict[str, Statement]:
    """Layer -> ComfyUI's statement about it, for the layers below `prefix`. Reads only these small tensors.

    Raises FileFormatError if one is not JSON.
    """
    found: dict[str, Statement] = {}
    if METADATA in file.metadata:
        layers = parsed(file, METADATA, file.metadata[METADATA]).get("layers")
        for layer, conf in layers.items() if isinstance(layers, Mapping) else ():
            full = layer if f"{layer}.weight" in file.entries else prefix + layer
            found[full] = {"format": conf} if isinstance(conf, str) else conf
    for name, entry in file.entries.items():
        if name.startswith(prefix) and name.endswith(COMFY):
            found[name.removesuffix(COMFY)] = parsed(file, name, small_bytes(file, entry))
    for layer, conf in found.items():
        if not isinstance(conf, Mapping):
            raise FileFormatError(
                f"{file.path.name}: its statement about {layer} is not a JSON object. The file is damaged."
            )
    return found


def quantised(file: WeightFile, entry: TensorEntry, said: Mapping[str, Statement]) -> Stored:
    """A tensor with everything needed to decode it. said: the result of `statements`.

    Raises FileFormatError for scales that are missing, of another shape or not finite, UnreadableScheme for a scheme
    that is unknown or not named.
    """
    name = entry.name.removesuffix("._data")
    layer = name.removesuffix(".weight")
    if layer == name:
        return whole(file, entry)
    schemes = [*_schemes(file, entry, layer, said)]
    if len(schemes) > 1:
        raise FileFormatError(
            f"{file.path.name}: {name} has the marks of two quantisations, {schemes[0]} and {schemes[1]}; only one "
            "of them can be right. Fetch the file again, or use another one."
        )
    matrix = Matrix(file, layer, entry)
    if schemes in ([], ["scaled fp8"]) and len(entry.shape) == 2 and entry.format in NOT_NUMBERS:
        raise _unsaid(matrix)
    if not schemes:
        return whole(file, entry)
    if schemes == ["quanto"]:
        return _quanto(matrix)
    if schemes == ["scaled fp8"]:
        return _scaled(matrix)
    if schemes == ["ComfyUI"]:
        return comfy_matrix(matrix, said[layer])
    return _bitsandbytes(matrix, schemes[0].removeprefix("bitsandbytes "))


def _schemes(file: WeightFile, entry: TensorEntry, layer: str, said: Mapping[str, Statement]) -> Iterator[str]:
    """The marks of quantisations that a weight has."""
    there = file.entries
    if layer in said:
        yield "ComfyUI"
    yield from (f"bitsandbytes {kind}" for kind in BNB_KINDS if f"{layer}{BNB_STATE}{kind}" in there)
    if entry.name.endswith("._data"):
        yield "quanto"
    if f"{layer}.scale_weight" in there:
        yield "scaled fp8"
    elif f"{layer}.weight_scale" in there and layer not in said and entry.format.startswith("F8"):
        yield "scaled fp8"


# -- the schemes -----------------------------------------------------------------------------------------------------


def _scaled(matrix: Matrix) -> Stored:
    suffix = next(suffix for suffix in SCALES if matrix.entry(suffix) is not None)
    if (scale := matrix.single(suffix)) is not None:
        stored = whole(matrix.file, matrix.codes)
        return replace(stored, encoding=replace(stored.encoding, scale=scale))
    rows, columns = matrix.sized("fp8 with a scale for each row", ("F8_E4M3", "F8_E5M2"))
    matrix.add("scale", suffix, [(rows,), (rows, 1)])
    return matrix.stored(matrix.codes.format, (rows, columns))


def _quanto(matrix: Matrix) -> Stored:
    if matrix.entry(".weight._shift") is not None or matrix.codes.format not in ("I8", "F8_E4M3", "F8_E5M2"):
        raise matrix.unreadable("packed integers of optimum-quanto (qint4 or qint2)")
    rows, columns = matrix.sized("quanto's", ("I8", "F8_E4M3", "F8_E5M2"))
    matrix.add("scale", ".weight._scale", one_or_rows(rows))
    return matrix.stored("INT8" if matrix.codes.format == "I8" else matrix.codes.format, (rows, columns))


def _bitsandbytes(matrix: Matrix, kind: str) -> Stored:
    entry = matrix.entry(BNB_STATE + kind)
    assert entry is not None
    state = parsed(matrix.file, entry.name, small_bytes(matrix.file, entry))
    shape, block = state.get("shape"), state.get("blocksize")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)
            and type(block) is int and block > 0):  # fmt: skip
        raise FileFormatError(f"{matrix.file.path.name}: {entry.name} contains no shape and blocksize. "
                              "The file is damaged: fetch it again.")  # fmt: skip
    count = prod(shape)
    if count % block or matrix.codes.nbytes * 2 != count:
        raise matrix.contradicts(f"{kind} {shape} in blocks of {block}")
    blocks = count // block
    if "nested_offset" in state:
        wide = state.get("nested_blocksize")
        if type(wide) is not int or wide < 1:
            raise FileFormatError(f"{matrix.file.path.name}: {entry.name} contains no nested_blocksize. "
                                  "The file is damaged: fetch it again.")  # fmt: skip
        matrix.add("absmax", ".weight.absmax", [(blocks,)], ("U8",), block)
        matrix.add("nested_absmax", ".weight.nested_absmax", [(-(-blocks // wide),)], block=wide)
        matrix.add("nested_map", ".weight.nested_quant_map", [(256,)])
    else:
        matrix.add("absmax", ".weight.absmax", [(blocks,)], block=block)
    matrix.add("map", ".weight.quant_map", [(16,)])
    return matrix.stored(kind.upper(), (shape[0], shape[1]), offset=float(state.get("nested_offset", 0.0)))


def _unsaid(matrix: Matrix) -> UnreadableScheme:
    """A matrix of bytes about which the file states nothing."""
    own = (f"{matrix.layer}.weight", f"{matrix.layer}.bias")
    beside = next(
        (name for name in matrix.file.entries if name.startswith(f"{matrix.layer}.") and name not in own), None
    )
    return UnreadableScheme(
        f"{matrix.name} contains bytes ({matrix.codes.format}{f', beside them {beside}' if beside else ''}), but the "
        "file does not say how to decode them: it has no comfy_quant for them, and integers may be rotated or shifted. "
        + INSTEAD
    )
