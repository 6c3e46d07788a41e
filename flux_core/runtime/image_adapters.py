"""XLabs' IP-Adapter, from its file to the inputs of a run: keys and values of images, one tensor per double block.

Independent of: nodes, solvers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.load import Resident
from ..errors import InputError
from ..memory.manager import Manager
from ..models.image_adapter import ImageAdapter as ImageAdapterModule
from ..models.image_adapter import ImageAdapterConfig
from ..quant.int8 import Integers
from .encoder import ManagedEncoder
from .runtime import Runtime
from .vision import VisionModel, run_encoder
from .weights import Weights, weights_in


class ImageAdapterWeights(Weights[ImageAdapterModule]):
    """The weights in their stored format."""

    config: ImageAdapterConfig

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> ImageAdapterConfig:
        return ImageAdapterConfig.from_shapes(shapes)

    def _make(self) -> ImageAdapterModule:
        return ImageAdapterModule(self.config)

    def _holder(self, device: torch.device, dtype: torch.dtype, integers: Integers | None = None) -> Resident:
        return Resident(device, None, packed=True)

    def _manage(self, manager: Manager, dtype: torch.dtype, integers: Integers | None) -> ManagedEncoder:
        sample = (torch.empty(1, self.config.embedding, device="meta"),)
        holder = self._holder(manager.device, dtype)
        return ManagedEncoder(manager, "IP-Adapter", self._make, self.tensors, dtype, holder, sample)


@dataclass(frozen=True, eq=False)
class SeenImages:
    """Images for a run: for each double block keys and values [2, n, tokens, hidden], the values multiplied by the
    strength. nothing: the same for a black image, for conditionings without an image.
    """

    keys_and_values: tuple[Tensor, ...]
    nothing: tuple[Tensor, ...]


@dataclass(frozen=True)
class ImageAdapter:
    """The file of an adapter, with the vision encoder for which it was made."""

    weights: ImageAdapterWeights
    vision: VisionModel

    def see(self, image: Tensor, strengths: Sequence[float] | float, average: bool) -> SeenImages:
        """Images [n, H, W, C] in 0..1. strengths: one per double block, or one for all. average: use the mean embedding
        of all images.

        Raises InputError for a vision encoder of another kind, BudgetTooSmall.
        """
        shown, nothing = (self._made(each, strengths, average) for each in (image, torch.zeros_like(image)))
        return SeenImages(shown, nothing)

    def strengths(self, begin: float, end: float, course: str) -> list[float]:
        """The strength of each double block, from the first to the last; `course` is a name of XLabs' node."""
        count = self.weights.config.blocks
        half = count // 2
        if course == "Sigmoid":
            fade = torch.sigmoid((torch.arange(count) - count / 2) * 8 / count) - 0.5
            made: list[float] = (begin + (end - begin) * fade).tolist()
            return made
        if course == "Linear":
            return _line(begin, end, count)
        if course == "First half":
            return [*_line(begin, end, half), *[end] * (count - half)]
        return [*[begin] * (count - half), *_line(begin, end, half)]

    def _made(self, image: Tensor, strengths: Sequence[float] | float, average: bool) -> tuple[Tensor, ...]:
        embedding = self.vision.encode(image).image_embeds
        config = self.weights.config
        if embedding.ndim != 2 or embedding.shape[-1] != config.embedding:
            raise InputError(
                f"{self.weights.path.name} needs embeddings {config.embedding} wide of CLIP-L's vision encoder, and "
                f"{self.vision.weights.path.name} is another one. Load that of openai/clip-vit-large-patch14."
            )
        if average:
            embedding = embedding.mean(dim=0, keepdim=True)
        made: Tensor = run_encoder(self.weights, "IP-Adapter", embedding, embedding.shape[0])
        each = [strengths] * len(made) if isinstance(strengths, (int, float)) else strengths
        return tuple(torch.stack((k, v * strength)) for (k, v), strength in zip(made, each, strict=True))


def _line(begin: float, end: float, count: int) -> list[float]:
    return [begin + (end - begin) * number / max(1, count - 1) for number in range(count)]


def load_image_adapter(runtime: Runtime, path: str | Path, vision: VisionModel) -> ImageAdapter:
    """The adapter of a file. Raises MissingFileError and FileFormatError."""
    return ImageAdapter(weights_in(runtime, path, "ip_adapter", ImageAdapterWeights), vision)
