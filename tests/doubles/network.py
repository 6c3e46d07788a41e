"""A network that is a function, in the place of a model handle."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from sluice.flux_core.sampling.guider import Guidance, Network, Run
from sluice.flux_core.sampling.inpaint import MaskFunction
from sluice.flux_core.sampling.schedule import Sampling
from sluice.flux_core.sampling.step_cache import StepCache


@dataclass(frozen=True)
class NetworkModel:
    """A Model (sampling/guider.py) around a network that is simply there."""

    network: Network
    sampling: Sampling
    in_channels: int = 16
    latent_channels: int = 16
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    mask_function: MaskFunction | None = None
    guidance: Guidance | None = None
    step_cache: StepCache | None = None

    def open(self, run: Run) -> AbstractContextManager[Network]:
        return nullcontext(self.network)

    def emit(self, event: dict[str, Any]) -> None:
        pass

    def unsound(self) -> str | None:
        return None
