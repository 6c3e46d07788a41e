"""comfy.controlnet: ControlNets for FLUX.1 as objects with ComfyUI's methods."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....conditioning.controls import ControlUse
from ....errors import InputError
from ....runtime import controlnets
from ...engine import current
from ...link_values import to_engine
from ...partly_offered import PartlyOffered

__all__ = ["ControlBase", "ControlNet", "load_controlnet"]


class ControlBase(metaclass=PartlyOffered):
    """A ControlNet, after `set_cond_hint` with an image and a strength."""

    latent_format = extra_concat_orig = None
    compression_ratio = upscale_algorithm = None

    def __init__(self, handle: controlnets.ControlNet) -> None:
        self._handle = handle
        self._use: ControlUse | None = None
        self.previous_controlnet: Any = None
        self.strength = 1.0
        self.timestep_percent_range = (0.0, 1.0)
        self.cond_hint_original: Tensor | None = None

    @property
    def load_device(self) -> torch.device:
        return current().runtime.device

    @property
    def concat_mask(self) -> bool:
        """Whether it is made for inpainting: `extra_concat` of `set_cond_hint` is then a mask, 1 = keep."""
        return self._handle.takes_mask

    def handle(self) -> controlnets.ControlNet:
        return self._handle

    def copy(self) -> ControlBase:
        return copy.copy(self)

    def set_cond_hint(
        self,
        cond_hint: Tensor,
        strength: float = 1.0,
        timestep_percent_range: Sequence[float] = (0.0, 1.0),
        vae: Any = None,
        extra_concat: Sequence[Tensor] = (),
    ) -> ControlBase:
        """cond_hint: the image as [B, C, H, W] in 0..1. Returns the same object."""
        self.cond_hint_original, self.strength = cond_hint, strength
        self.timestep_percent_range = (float(timestep_percent_range[0]), float(timestep_percent_range[1]))
        picture, mask = cond_hint.movedim(1, -1), next(iter(extra_concat), None)
        self._use = ControlUse(
            self._handle, picture, strength, *self.timestep_percent_range, autoencoder=to_engine(vae), mask=mask
        )
        return self

    def set_previous_controlnet(self, controlnet: Any) -> ControlBase:
        self.previous_controlnet = controlnet
        return self

    def set_extra_arg(self, argument: str, value: Any = None) -> None:
        """Only "control_type", the numbers of the image types of a union ControlNet, has an effect."""
        if argument == "control_type":
            self._handle = replace(self._handle, modes=tuple(value or ()))
            self._use = self._use and replace(self._use, network=self._handle)

    def control_use(self) -> ControlUse:
        """The same for our samplers. Raises InputError without an image."""
        if self._use is None:
            raise InputError("A node pack applies a ControlNet without an image (set_cond_hint).")
        before = self.previous_controlnet
        return replace(self._use, previous=before.control_use() if isinstance(before, ControlBase) else before)

    def chain(self) -> list[ControlUse]:
        return self.control_use().chain()

    def get_models(self) -> list[Any]:
        """None to load: our memory manager does it."""
        return []

    def cleanup(self) -> None:
        """Does nothing: our memory manager frees memory."""


class ControlNet(ControlBase):
    """A ControlNet for FLUX.1, the only kind here."""


def load_controlnet(ckpt_path: str, model: Any = None, model_options: Any = None) -> ControlNet:
    """Raises the errors of Load ControlNet Model, also for ControlNets of other models."""
    return ControlNet(controlnets.load_controlnet(current().runtime, ckpt_path))
