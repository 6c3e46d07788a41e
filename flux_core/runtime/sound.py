"""Finds a tensor of a model's files that is not finite, after a run has failed, so that the message can name it.

Independent of: what a model computes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from ..checkpoint.load import read
from ..checkpoint.stored import Stored
from ..quant.formats import PLAIN, decode

SECONDS = 20.0  # seconds of searching: enough to read a whole model from a fast disk, and not too long to wait


def unsound(tensors: Mapping[str, Stored], seconds: float = SECONDS) -> str | None:
    """A sentence about the first tensor with NaN or infinity; None if there is none or the search takes too long."""
    end = time.monotonic() + seconds
    for stored in sorted(tensors.values(), key=lambda stored: stored.nbytes):
        dtype = PLAIN.get(stored.format, torch.bfloat16)
        values = decode(read(stored), stored.encoding, stored.shape, dtype)
        if values.is_floating_point() and not bool(torch.isfinite(values.sum(dtype=torch.float32))):
            return (
                f"{stored.name} in {stored.file.path.name} contains numbers that are not finite: the file is damaged. "
                "Fetch it again, or choose another one."
            )
        if time.monotonic() > end:
            break
    return None
