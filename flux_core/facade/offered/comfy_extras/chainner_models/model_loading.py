"""comfy_extras.chainner_models.model_loading: upscale models, which the library spandrel loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .....runtime.spandrel import spandrel

__all__ = ["load_state_dict"]


def load_state_dict(state_dict: Mapping[str, Tensor]) -> Any:
    """The network for these weights. Raises InputError without spandrel, and spandrel's errors."""
    return spandrel().ModelLoader().load_from_state_dict(dict(state_dict)).eval()
