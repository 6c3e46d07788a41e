"""Previews of an unfinished image, as often as they cost little time.

A preview is a projection of the latent as a small JPEG. Before the next one fifty times the time of the last one
passes, so that they cost less than 2 % of the time: with real models there is one at every step.

Independent of: latents, models, clients.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SHARE = 50  # a preview may take 1/50 of the time
SIZE = 512  # pixels; previews are fitted into a square of this side
ENLARGED = 8  # at most: a latent has an eighth of its image's side
QUALITY = 95
FULL_SIZE = "full size"  # in the info of an image that has the pixels of what it shows, not one for each latent cell


class Throttle:
    """Makes a preview if enough time has passed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = float("-inf")

    def make(self, preview: Callable[[], Image.Image]) -> bytes | None:
        """A JPEG, or None if the last one is too recent."""
        if self._clock() < self._next:
            return None
        _wait_for_device()
        began = self._clock()
        picture = jpeg(preview())
        ended = self._clock()
        self._next = ended + (ended - began) * SHARE
        return picture


def jpeg(image: Image.Image) -> bytes:
    """The preview, as large as the finished image if that is not too large."""
    buffer = io.BytesIO()
    scale = min(1 if image.info.get(FULL_SIZE) else ENLARGED, SIZE / max(image.size))
    image = image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size])
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _wait_for_device() -> None:
    """Wait for the end of the step, so that this time does not count as the preview's cost.

    Only for cards that this process uses: waiting for another one would take some hundred MB of its memory.
    """
    torch = sys.modules.get("torch")
    if torch is None or not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return
    for card in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(card):
            torch.cuda.current_stream(card).synchronize()
