"""ControlNet files to ready models: the handle that CONTROL_NET links carry.

Independent of: nodes, solvers, and where the weights of a ControlNet are while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..images.masks import layers
from ..images.resize import repeat_to_batch, resize
from ..models.latents import CELL, process_in
from .model_weights import ControlNetWeights
from .runtime import Runtime
from .weights import weights_in


@dataclass(frozen=True)
class ControlNet:
    """The file of a ControlNet, and the type of its images."""

    weights: ControlNetWeights
    modes: tuple[int, ...] = ()

    @property
    def takes_latent(self) -> bool:
        """Whether its image must be encoded by the autoencoder."""
        return self.weights.config.takes_latent

    @property
    def takes_mask(self) -> bool:
        """Whether it is made for inpainting."""
        return self.weights.config.takes_mask

    def hint(self, picture: Tensor, mask: Tensor | None, autoencoder: Any, height: int, width: int) -> Tensor:
        """[B, 16, h, w], with a mask [B, 17, h, w], or for XLabs' pixels [B, 3, 8h, 8w]: float32 on the CPU.

        image [B, H, W, C >= 3] in 0..1 is cropped around its centre to the shape of the latent; mask [B, 1, H', W'], 1
        = keep. Raises InputError without the autoencoder that the network needs.
        """
        if not self.takes_latent and (height % 2 or width % 2):
            raise InputError(
                f"{self.weights.path.name} takes images whose sides are multiples of {2 * CELL} pixels; this one is "
                f"{width * CELL}x{height * CELL}."
            )
        fitted = resize(picture[..., :3].movedim(-1, 1), width * CELL, height * CELL, "nearest-exact", "center")
        if not self.takes_latent:
            return fitted
        if autoencoder is None:
            raise InputError(
                f"{self.weights.path.name} uses its image as a latent and needs the autoencoder for it. Apply it "
                "with the node Apply ControlNet, and connect its input vae."
            )
        latent: Tensor = process_in(autoencoder.encode_image(fitted.movedim(1, -1)))
        if not self.takes_mask:
            return latent
        mask = torch.ones(1, 1, 1, 1) if mask is None else layers(mask)
        mask = resize(mask.to(latent), width, height, "nearest-exact", "center")
        return torch.cat((latent, repeat_to_batch(mask, latent.shape[0])), dim=1)


def load_controlnet(runtime: Runtime, path: str | Path) -> ControlNet:
    """The ControlNet of a file. Raises MissingFileError, or FileFormatError with the kind of the file."""
    return ControlNet(weights_in(runtime, path, "controlnet", ControlNetWeights))
