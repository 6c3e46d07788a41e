"""Matrices of four bits with a low-rank part beside them, as SVDQuant makes them (Li et al. 2024, arXiv 2411.05007).

    w = level(code) scale channel / smooth + up down

    codes    [N, K / 2], even column in the low half: two's complement ("SVDQ_INT4") or E2M1 ("SVDQ_FP4")
    scale    [N, groups], one for K / groups neighbouring columns
    channel  [N, S], one for K / S neighbouring columns; may be absent
    smooth   [K], what the inputs are divided by before they are quantised
    up, down [N, R] and [R, K]

Everything is computed in float32 and rounded once. Independent of: files, the order in which nunchaku stores them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .encoding import Encoding
from .floats import E2M1
from .lookup import nibbles_into
from .sides import codes_of, needed, side_of
from .workspace import fill_rows

TWOS_COMPLEMENT = tuple(float(code if code < 8 else code - 16) for code in range(16))
LEVELS = {"SVDQ_INT4": TWOS_COMPLEMENT, "SVDQ_FP4": E2M1}


def decode_low_rank(raw: Tensor, out: Tensor, encoding: Encoding) -> None:
    """The matrix [N, K] that inputs are multiplied by."""
    codes = codes_of(raw, encoding).view(out.shape[0], -1)
    levels = torch.tensor(LEVELS[encoding.format], device=raw.device)
    scale, smooth, up, down = (needed(raw, encoding, role) for role in ("scale", "smooth", "up", "down"))
    channel = side_of(raw, encoding, "channel")

    def fill(rows: slice, floats: Tensor) -> None:
        nibbles_into(codes[rows].reshape(-1), levels, floats)
        floats.view(len(floats), scale.shape[1], -1).mul_(scale[rows, :, None])
        if channel is not None:
            floats.view(len(floats), channel.shape[1], -1).mul_(channel[rows, :, None])
        floats.div_(smooth).addmm_(up[rows], down)

    fill_rows(out, fill)
