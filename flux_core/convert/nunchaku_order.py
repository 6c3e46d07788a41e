"""nunchaku's tensors in plain order.

Its quantised matrices are stored in the order of a tensor core's tiles, biases and low-rank parts too; modulations are
one row of each chunk after the other, with 1 added to the biases of scales. Source: nunchaku, lora/flux/packer.py and
models/text_encoders/tinychat_utils.py.

Independent of: files and names.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

SHIFT = 0.171875  # added to the inputs of a second MLP layer of integers, which are quantised without a sign

# -- tiles to rows ---------------------------------------------------------------------------------------------------


def plain_codes(packed: Tensor) -> Tensor:
    """qweight int8 [N, K / 2] -> uint8 [N, K / 2], even column in the low half. N is a multiple of 128, K of 64."""
    rows, half = packed.shape
    words = packed.contiguous().view(torch.int32).view(rows // 128, half // 32, 8, 8, 4, 2, 2)
    return words.permute(0, 2, 5, 3, 1, 6, 4).contiguous().view(torch.uint8).view(rows, half)


def plain_scales(packed: Tensor) -> Tensor:
    """wscales [groups, N] -> [N, groups]: 16-bit numbers for groups of 64, or e4m3 for groups of 16."""
    groups, rows = packed.shape
    if packed.element_size() == 1:
        tiles = packed.contiguous().view(torch.uint8).view(rows // 128, groups // 4, 8, 4, 4, 4)
        return tiles.permute(0, 4, 3, 2, 1, 5).reshape(rows, groups).view(packed.dtype)
    return packed.reshape(rows // 128, groups, 8, 4, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(rows, groups)


def plain_vector(packed: Tensor) -> Tensor:
    """bias, smooth or wcscales [n] in the order of rows."""
    return packed.reshape(-1, 8, 4, 2, 2).permute(0, 1, 3, 2, 4).reshape(-1)


def plain_down(packed: Tensor) -> Tensor:
    """lora_down [K, R] -> [R, K]."""
    columns, rank = packed.shape
    tiles = packed.reshape(columns // 16, rank // 16, 8, 4, 2, 2, 2)
    return tiles.permute(1, 4, 2, 0, 5, 3, 6).reshape(rank, columns)


def plain_up(packed: Tensor) -> Tensor:
    """lora_up [N, R] -> [N, R] in the order of rows."""
    rows, rank = packed.shape
    return packed.reshape(rows // 16, rank // 16, 8, 4, 2, 2, 2).permute(0, 4, 2, 1, 5, 3, 6).reshape(rows, rank)


def plain_awq(packed: Tensor) -> Tensor:
    """AWQ's qweight, 16-bit words of [N / 4, K] codes -> uint8 [N, K / 2], even column in the low half.

    Four rows lie interleaved in runs of 64 columns; code a of word b is column 8 a + b of its 32.
    """
    words = packed.contiguous().view(torch.int16)
    quarter, columns = packed.shape[0], words.numel() // packed.shape[0]
    words = words.view(quarter, columns // 64, 4, 16).permute(0, 2, 1, 3).reshape(4 * quarter, columns // 32, 8)
    codes = torch.stack([(words >> 4 * a & 15).to(torch.uint8) for a in range(4)], dim=2).view(4 * quarter, columns)
    return codes[:, ::2] | codes[:, 1::2] << 4


# -- parts of a block ------------------------------------------------------------------------------------------------


def awq_sides(scales: Tensor, zeros: Tensor, groups: int) -> dict[str, Tensor]:
    """For w = (c - 8) scale + zeros, of w = c scale + zeros. Further groups are padding. Exact in float32."""
    scales, zeros = scales[:groups], zeros[:groups]
    return {"weight_scale": scales, "weight_zeros": zeros.float() + 8 * scales.float()}


def chunked_rows(x: Tensor, chunks: int, axis: int = 0) -> Tensor:
    """Rows d * chunks + j, as nunchaku stores modulations -> chunk j's rows one after the other."""
    rows: Tensor = x.movedim(axis, 0).unflatten(0, (-1, chunks)).transpose(0, 1).flatten(0, 1)
    return rows.movedim(0, axis).contiguous()


def modulation_bias(bias: Tensor, chunks: int) -> Tensor:
    """The bias [chunks * D] in chunks, without the 1 that was added to every scale (chunks 1 and 4)."""
    rows = chunked_rows(bias.float(), chunks).view(chunks, -1)
    rows[1::3] -= 1
    return rows.flatten()


def beside(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Matrices of the same rows, one beside the other, as one: y = sum of x_i W_i^T."""
    if len(parts) == 1:
        return parts[0]
    rank = sum(part["weight_down"].shape[0] for part in parts)
    columns = sum(part["weight_down"].shape[1] for part in parts)
    down = torch.zeros(rank, columns, dtype=parts[0]["weight_down"].dtype)
    row = column = 0
    for part in parts:
        block = part["weight_down"]
        down[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    joined: dict[str, Tensor] = {}
    for name in ("weight", "weight_scale", "weight_up"):
        joined[name] = torch.cat([_bytes(part[name]) for part in parts], dim=1).view(parts[0][name].dtype)
    joined |= {"weight_smooth": torch.cat([part["weight_smooth"] for part in parts]), "weight_down": down}
    if "weight_channel" in parts[0]:
        widths = [part["weight_down"].shape[1] for part in parts]
        step = gcd(*widths)
        spread = [part["weight_channel"].expand(-1, width // step) for part, width in zip(parts, widths, strict=True)]
        joined["weight_channel"] = torch.cat(spread, dim=1)
    return joined


def _bytes(x: Tensor) -> Tensor:
    """Types that `cat` does not know, as their bytes."""
    return x.view(torch.uint8) if x.element_size() == 1 else x
