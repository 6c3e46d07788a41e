"""Every way a weight may be stored, and the two doors to its values: `decode` and `decode_into`.

One row per format. What a row gives is exact: the stored number, rounded once to the type asked for.

Does not know: where bytes come from, what a matrix is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import FileFormatError
from .fp8 import FP8, decode_fp8, half_to_bfloat
from .gguf_blocks import BLOCKS, decode_blocks
from .sizes import BLOCK
from .workspace import chunk_values, scratch

PLAIN = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip

Row = Callable[[Tensor, Tensor], None]  # (raw uint8 [bytes], out [values]): writes all of out


def decode_into(raw: Tensor, out: Tensor, format: str, scale: float | None = None) -> None:
    """Write the values of `raw` into `out`, on the device both are on.

    raw    uint8 [bytes], contiguous; aligned to the format's numbers (a multiple of 8 bytes always is)
    out    any shape, contiguous, float32, float16 or bfloat16, with as many values as raw holds
    scale  multiplies the values afterwards (scaled fp8)
    Works in a fixed scratch of a few MB per thread. Raises FileFormatError for a format without a row, ValueError if
    the sizes do not belong together.
    """
    if format not in FORMATS:
        raise FileFormatError(f"Weights stored as {format} cannot be used. Choose a file in {', '.join(FORMATS)}.")
    values, nbytes = BLOCK[format]
    if raw.numel() * values != out.numel() * nbytes or not out.is_contiguous():
        raise ValueError(f"{raw.numel()} bytes of {format} do not fill {list(out.shape)} values")
    FORMATS[format](raw.detach(), out.detach().view(-1))
    if scale is not None:
        out.detach().mul_(scale)


def decode(
    raw: Tensor, format: str, shape: Sequence[int], dtype: torch.dtype | None = None, scale: float | None = None
) -> Tensor:
    """The values of `raw` as a tensor of `shape`; a view of `raw` where no conversion is needed.

    dtype None keeps what the file stores: its own plain type, bfloat16 for fp8, float16 for GGUF blocks.
    """
    dtype = dtype or stored_dtype(format)
    if PLAIN.get(format) == dtype and scale is None:
        return raw.view(dtype).view(tuple(shape))
    out = torch.empty(tuple(shape), dtype=dtype, device=raw.device)
    decode_into(raw, out, format, scale)
    return out


def stored_dtype(format: str) -> torch.dtype:
    """The plain type that comes closest to how values are stored."""
    return PLAIN.get(format) or (torch.bfloat16 if format in FP8 else torch.float16)


def _plain(dtype: torch.dtype) -> Row:
    """The numbers of ordinary types, converted."""

    def decode_plain(raw: Tensor, out: Tensor) -> None:
        numbers = raw.view(dtype)
        if dtype is torch.float16 and out.dtype is torch.bfloat16 and raw.device.type == "cpu":
            half_to_bfloat(numbers, out)
        else:
            out.copy_(numbers)

    return decode_plain


def _fp8(format: str) -> Row:
    def decode_codes(raw: Tensor, out: Tensor) -> None:
        decode_fp8(raw, out, format)

    return decode_codes


def _blocks(format: str) -> Row:
    """Blocks, a chunk at a time: to float32 in the scratch (or in `out` itself), from there to the type asked for."""
    values, nbytes = BLOCK[format]

    def decode_all(raw: Tensor, out: Tensor) -> None:
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
}
