"""comfy.sampler_helpers: masks for sampling. ControlNets and models need no preparation here."""

from __future__ import annotations

from typing import Any

from ...guidance import as_dicts as convert_cond
from .sample import cleanup_additional_models, prepare_mask

__all__ = ["cleanup_additional_models", "convert_cond", "get_additional_models", "prepare_mask"]


def get_additional_models(conds: Any, dtype: Any) -> tuple[list[Any], int]:
    """(models, bytes) that the conditionings need: none that a pack must load."""
    return [], 0
