"""Every format in which weights are stored, and two functions that decode them: `decode` and `decode_into`.

One row per format of codes; an `Encoding` names the row and gives the positions of its side tensors. Decoded values are
exact: the stored number, rounded once to the requested type.

Independent of: where bytes come from, what matrices are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import FileFormatError
from .encoding import Encoding, Part
from .floats import decode_bnb4, decode_mxfp8, decode_nvfp4
from .fp8 import FP8, decode_fp8, half_to_bfloat
from .gguf_blocks import BLOCKS, decode_blocks
from .integers import decode_awq4, decode_int4, decode_int8, decode_w4a8, decode_w6a8
from .low_rank import decode_low_rank
from .sides import codes_of, side_of
from .sizes import BLOCK
from .workspace import chunk_values, fill_rows, scratch

PLAIN = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip

Row = Callable[[Tensor, Tensor, Encoding], None]  # (raw uint8 [bytes], out of the matrix's shape): writes all of out


def decode_into(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
    """Write the values of `raw` into `out`, on the device both are on.

    raw    uint8 [bytes], contiguous; aligned to the format's numbers (a multiple of 8 bytes always is)
    out    has the matrix's shape, contiguous, float32, float16 or bfloat16
    Works in a fixed scratch of a few MB per thread. Raises FileFormatError for a format without a row, ValueError if
    the sizes do not match.
    """
    if encoding.format not in FORMATS:
        raise FileFormatError(
            f"Weights stored as {encoding.format} cannot be used. Choose a file in {', '.join(FORMATS)}."
        )
    if raw.numel() != encoding.nbytes(out.shape) or not out.is_contiguous():
        raise ValueError(f"{raw.numel()} bytes of {encoding.format} do not fill {list(out.shape)} values")
    raw, out = raw.detach(), out.detach()
    if encoding.parts:
        _decode_parts(raw, out, encoding.parts)
        return
    FORMATS[encoding.format](raw, out, encoding)
    if encoding.scale is not None:
        out.mul_(encoding.scale)
    if encoding.swapped:
        out.copy_(torch.cat(out.chunk(2)[::-1]))


def decode(raw: Tensor, encoding: Encoding, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """The values of `raw` as a tensor of `shape`; a view of `raw` where no conversion is needed.

    dtype None keeps the type of the file: its own plain type, float16 for GGUF blocks, bfloat16 for all others.
    """
    dtype = dtype or stored_dtype(encoding.format)
    if PLAIN.get(encoding.format) == dtype and encoding.as_is:
        return raw.view(dtype).view(tuple(shape))
    out = torch.empty(tuple(shape), dtype=dtype, device=raw.device)
    decode_into(raw, out, encoding)
    return out


def _decode_parts(raw: Tensor, out: Tensor, parts: Sequence[Part]) -> None:
    row = byte = 0
    for part in parts:
        decode_into(raw[byte : byte + part.nbytes], out[row : row + part.rows], part.encoding)
        row, byte = row + part.rows, byte + part.nbytes


def stored_dtype(format: str) -> torch.dtype:
    """The plain type that is closest to the stored format."""
    return PLAIN.get(format) or (torch.float16 if format in BLOCKS else torch.bfloat16)


def _plain(dtype: torch.dtype) -> Row:
    """Decoder of numbers in ordinary types."""

    def decode_plain(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
        numbers, values = raw.view(dtype), out.view(-1)
        if dtype is torch.float16 and out.dtype is torch.bfloat16 and raw.device.type == "cpu":
            half_to_bfloat(numbers, values)
        else:
            values.copy_(numbers)

    return decode_plain


def _fp8(format: str) -> Row:
    """Decoder of fp8 codes, with a number for each row if there is a side tensor of the role "scale"."""

    def decode_codes(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
        scale = side_of(raw, encoding, "scale")
        if scale is None:
            decode_fp8(raw, out.view(-1), format)
            return
        codes, by_row = codes_of(raw, encoding).view(out.shape), scale.reshape(-1, 1).expand(out.shape[0], 1)

        def fill(rows: slice, floats: Tensor) -> None:
            decode_fp8(codes[rows].reshape(-1), floats.view(-1), format)
            floats.mul_(by_row[rows])

        fill_rows(out, fill)

    return decode_codes


def _blocks(format: str) -> Row:
    """Decoder of blocks, a chunk at a time: to float32 in the scratch (or in `out` itself), from there to the requested
    type.
    """
    values, nbytes = BLOCK[format]

    def decode_all(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
        blocks, rows = raw.view(-1, nbytes), out.view(-1, values)
        chunk = chunk_values(raw.device) // values
        for start in range(0, blocks.shape[0], chunk):
            target = rows[start : start + chunk]
            spare = scratch("spare", (3, *target.shape), torch.uint8, raw.device)
            direct = out.dtype is torch.float32
            floats = target if direct else scratch("floats", tuple(target.shape), torch.float32, raw.device)
            decode_blocks(BLOCKS[format], blocks[start : start + chunk], floats, spare)
            if not direct:
                target.copy_(floats)

    return decode_all


FORMATS: dict[str, Row] = {
    **{format: _plain(dtype) for format, dtype in PLAIN.items()},
    **{format: _fp8(format) for format in FP8},
    **{format: _blocks(format) for format in BLOCKS},
    "INT8": decode_int8,
    "INT4": decode_int4,
    "W4A8": decode_w4a8,
    "W6A8": decode_w6a8,
    "AWQ4": decode_awq4,
    "NF4": decode_bnb4,
    "FP4": decode_bnb4,
    "NVFP4": decode_nvfp4,
    "SVDQ_INT4": decode_low_rank,
    "SVDQ_FP4": decode_low_rank,
    "MXFP8": decode_mxfp8,
}
