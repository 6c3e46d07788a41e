"""Images as prompts: vision encoders, Redux and USO's style projector, from files to ready models.

    load_vision, load_style, load_model_patch     path -> handle; only headers are read
    VisionModel                 the value of a CLIP_VISION link
    VisionOutput                the value of a CLIP_VISION_OUTPUT link, with ComfyUI's names
    StyleModel                  the value of a STYLE_MODEL link
    StyleReference              the value of a MODEL_PATCH link

All are small compared with the transformer and run once per image: under a budget they are streamed through the memory
that the transformer leaves, like text encoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.load import Resident
from ..errors import InputError, NotFinite
from ..memory.manager import Manager
from ..models.clip_vision import DEPTHS, VisionConfig, VisionEncoder, pixels_for
from ..models.redux import Redux, ReduxConfig
from ..models.style_projector import StyleConfig, StyleProjector
from ..quant.int8 import Integers
from .encoder import ManagedEncoder
from .loaded_whole import ReportedEncoder
from .runtime import Runtime
from .sound import unsound
from .weights import Weights, weights_in

COMPUTED = torch.float32  # for all of them, whatever their files contain
PROJECTOR = "style projector"  # in plans and messages


class VisionWeights(Weights[VisionEncoder]):
    """A vision encoder, converted to float16 whatever the file has, as in ComfyUI."""

    config: VisionConfig

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> VisionConfig:
        return VisionConfig.from_shapes(shapes)

    def _make(self) -> VisionEncoder:
        return VisionEncoder(self.config)

    def _holder(self, device: torch.device, dtype: torch.dtype, integers: Integers | None = None) -> Resident:
        return Resident(device, None, round_to=torch.float16, packed=True)

    def _manage(self, manager: Manager, dtype: torch.dtype, integers: Integers | None) -> ManagedEncoder:
        sample = (torch.empty(1, 3, self.config.size, self.config.size, device="meta"),)
        holder = self._holder(manager.device, dtype)
        return ManagedEncoder(manager, "vision encoder", self._make, self.tensors, dtype, holder, sample)


class ReduxWeights(Weights[Redux]):
    """Redux in its stored format."""

    config: ReduxConfig

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> ReduxConfig:
        return ReduxConfig.from_shapes(shapes)

    def _make(self) -> Redux:
        return Redux(self.config)

    def _holder(self, device: torch.device, dtype: torch.dtype, integers: Integers | None = None) -> Resident:
        return Resident(device, None, packed=True)

    def _manage(self, manager: Manager, dtype: torch.dtype, integers: Integers | None) -> ManagedEncoder:
        sample = (torch.empty(1, 2, self.config.width, device="meta"),)
        holder = self._holder(manager.device, dtype)
        return ManagedEncoder(manager, "Redux", self._make, self.tensors, dtype, holder, sample)


class ProjectorWeights(Weights[StyleProjector]):
    """The style projector of USO in its stored format."""

    config: StyleConfig

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> StyleConfig:
        return StyleConfig.from_shapes(shapes)

    def _make(self) -> StyleProjector:
        return StyleProjector(self.config)

    def _holder(self, device: torch.device, dtype: torch.dtype, integers: Integers | None = None) -> Resident:
        return Resident(device, None, packed=True)

    def _manage(self, manager: Manager, dtype: torch.dtype, integers: Integers | None) -> ManagedEncoder:
        sample = (torch.empty(1, 3, self.config.seen, self.config.width, device="meta"),)
        holder = self._holder(manager.device, dtype)
        return ManagedEncoder(manager, PROJECTOR, self._make, self.tensors, dtype, holder, sample)


@dataclass(frozen=True, eq=False)
class VisionOutput:
    """The output of a vision encoder, float32 on the CPU; see `VisionEncoder.forward`.

    depths: the hidden states that USO needs, of encoders that have them. ComfyUI keeps those of all layers, nine times
    as much memory.
    """

    last_hidden_state: Tensor
    penultimate_hidden_states: Tensor
    image_embeds: Tensor
    mm_projected: None = None
    depths: Tensor | None = None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


@dataclass(frozen=True)
class VisionModel:
    """The file of a vision encoder."""

    weights: VisionWeights

    def encode(self, image: Tensor, crop: bool = True) -> VisionOutput:
        """Images [B, H, W, C >= 3] in 0..1, one after the other. crop: crop to the centre, otherwise squash.

        Raises BudgetTooSmall, and NotFinite for a file with numbers that are not finite.
        """
        pixels = pixels_for(image, self.weights.config, crop)
        count = self.weights.config.tokens
        parts = [run_encoder(self.weights, "vision encoder", one, count) for one in pixels.split(1)]
        last, before, embedding, *depths = (torch.cat(each) for each in zip(*parts, strict=True))
        _check_finite(self.weights, "vision encoder", last)
        return VisionOutput(last, before, embedding, depths=next(iter(depths), None))


@dataclass(frozen=True)
class StyleModel:
    """The file of a Redux model."""

    weights: ReduxWeights

    def tokens(self, seen: Any) -> Tensor:
        """[1, B * T, context_dim] for the output of a vision encoder. Raises InputError, BudgetTooSmall."""
        states: Tensor = seen.last_hidden_state
        if states.shape[-1] != self.weights.config.width:
            raise InputError(
                f"{self.weights.path.name} needs tokens {self.weights.config.width} wide, and this vision encoder "
                f"makes them {states.shape[-1]} wide. Load sigclip_vision_patch14_384 with Load CLIP Vision."
            )
        made: Tensor = run_encoder(self.weights, "Redux", states.float(), states.shape[0] * states.shape[1])
        _check_finite(self.weights, "Redux model", made)
        return made.flatten(0, 1)[None]


@dataclass(frozen=True)
class StyleReference:
    """The file of a style projector."""

    weights: ProjectorWeights

    def tokens(self, seen: Any) -> Tensor:
        """[1, S, hidden] for the output of a vision encoder for one image. Raises InputError, BudgetTooSmall."""
        config, states = self.weights.config, _depths(seen)
        advice = "Load sigclip_vision_patch14_384 with Load CLIP Vision."
        if states is None:
            raise InputError(
                f"USO needs the hidden states of a SigLIP with at least {max(DEPTHS)} layers, and this vision encoder "
                f"is none. {advice}"
            )
        if states.shape[0] != 1:
            raise InputError(
                f"A style reference is one image, and CLIP Vision Encode was given {states.shape[0]}. Use one node USO "
                "Style Reference for each image, one after the other."
            )
        if tuple(states.shape[-2:]) != (config.seen, config.width):
            raise InputError(
                f"{self.weights.path.name} needs {config.seen} tokens {config.width} wide, and this vision encoder "
                f"makes {states.shape[-2]} tokens {states.shape[-1]} wide. {advice}"
            )
        made: Tensor = run_encoder(self.weights, PROJECTOR, states.float(), states.shape[1] * states.shape[2])
        _check_finite(self.weights, PROJECTOR, made)
        return made


def load_vision(runtime: Runtime, path: str | Path) -> VisionModel:
    """The vision encoder of a file, SigLIP's or CLIP's. Raises MissingFileError and FileFormatError."""
    return VisionModel(weights_in(runtime, path, "clip_vision", VisionWeights))


def load_style(runtime: Runtime, path: str | Path) -> StyleModel:
    """The Redux model of a file. Raises MissingFileError and FileFormatError."""
    return StyleModel(weights_in(runtime, path, "redux", ReduxWeights))


def load_model_patch(runtime: Runtime, path: str | Path) -> StyleReference:
    """The style projector of a file. Raises MissingFileError and FileFormatError, also for patches of other models."""
    return StyleReference(weights_in(runtime, path, "style_projector", ProjectorWeights))


@torch.no_grad()
def run_encoder(weights: Weights[Any], label: str, x: Tensor, tokens: int) -> Any:
    """The output of a model for x, on the CPU: under the budget if there is one. tokens: their number."""
    runtime, device = weights.runtime, weights.runtime.device
    manager = runtime.manager(device, weights.nbytes)
    if manager is not None:
        managed: ManagedEncoder = weights.managed(manager, COMPUTED)
        made = managed.run(x.to(device), tokens=tokens)
    else:
        module: Any = weights.module(device, COMPUTED)
        if runtime.events.has_listeners:
            module = ReportedEncoder(label, module, runtime, device, weights.tensors, COMPUTED)
        made = module(x.to(device))
    return tuple(part.cpu() for part in made) if isinstance(made, tuple) else made.cpu()


def _depths(seen: Any) -> Tensor | None:
    """The states at `DEPTHS` [B, 3, T, D] of an output of ours or of ComfyUI, which has those of all layers."""
    states: Tensor | None = getattr(seen, "depths", None)
    whole: Tensor | None = getattr(seen, "all_hidden_states", None)
    if states is None and whole is not None and whole.shape[1] >= max(DEPTHS):
        return whole[:, [-depth for depth in DEPTHS]]
    return states


def _check_finite(weights: Weights[Any], noun: str, made: Tensor) -> None:
    if not torch.isfinite(made).all():
        reason = unsound(weights.tensors) or "Check the input image."
        raise NotFinite(f"The {noun} produced numbers that are not finite (NaN or infinity). {reason}")
