"""Previews by TAEF1 while a model samples, within the memory that the sampling has anyway.

Between two steps the transformer's activations are free, and a tile needs less than any step: so no other model gives
way, and images of every size are shown.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..models.latents import CELL
from ..models.taef1 import Taef1
from ..models.tiling import tiled
from .handles import load_autoencoder
from .runtime import Runtime

TILE, OVERLAP = 32, 8  # in latent cells


class Taef1Previews:
    """Latents to images by the decoder in a file, which is read at the first one."""

    def __init__(self, runtime: Runtime, path: Path) -> None:
        """Raises MissingFileError, FileFormatError, and InputError for a file without TAEF1's decoder."""
        self.runtime = runtime
        self.weights = load_autoencoder(runtime, path).weights
        if not getattr(self.weights.config, "decodes", False):
            raise InputError(f"{path.name} is not TAEF1's decoder, which --previews taef1 needs.")

    @torch.inference_mode()
    def image(self, latent: Tensor) -> Tensor:
        """A latent [16, h, w] in the transformer's scale -> uint8 [8 h, 8 w, 3] on the CPU."""
        runtime = self.runtime
        module = self.weights.module(runtime.device, runtime.autoencoder_dtype)
        assert isinstance(module, Taef1)
        given = latent[None].to(runtime.device, runtime.autoencoder_dtype)
        pixels = tiled(given, module.decode_scaled, (TILE, TILE), OVERLAP, CELL)[0].float()
        return pixels.clamp(0, 1).mul(255).round().to(torch.uint8).movedim(0, -1).cpu()
