"""Finds the tensor of a model's files that made a run fail, so that the message can name it: with numbers that are not
finite, or so large that products with them are not.

Independent of: what a model computes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch

from ..checkpoint.load import read
from ..checkpoint.stored import Stored
from ..quant.formats import PLAIN, decode

LARGEST = 1e6  # no weight of a sound model is near it: most are below 1, norms below 1000
SECONDS = 20.0  # seconds of searching: enough to read a whole model from a fast disk, and not too long to wait


def unsound(tensors: Mapping[str, Stored], seconds: float = SECONDS) -> str | None:
    """A sentence about the first tensor with NaN or infinity, or else the first with numbers above LARGEST; None if
    there is none or the search takes too long.
    """
    end = time.monotonic() + seconds
    large = None
    for stored in sorted(tensors.values(), key=lambda stored: stored.nbytes):
        dtype = PLAIN.get(stored.format, torch.bfloat16)
        values = decode(read(stored), stored.encoding, stored.shape, dtype)
        if values.is_floating_point() and values.numel():
            peak = float(values.abs().amax())
            if not math.isfinite(peak):
                return _told(stored, "numbers that are not finite")
            if peak > LARGEST and large is None:
                large = _told(stored, f"numbers up to {peak:.3g}")
        if time.monotonic() > end:
            break
    return large


def _told(stored: Stored, what: str) -> str:
    return (
        f"{stored.name} in {stored.file.path.name} contains {what}: the file is damaged. "
        "Fetch it again, or choose another one."
    )
