"""The attention of a run: PyTorch's, or that of a library if the user chose it and it can be used here.

A library belongs to a runtime, the choice to a run: runs with and without it share the weights of a model and nothing
else. If the choice cannot be followed, a warning says why, and PyTorch's attention is used.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import nn

from ..models.attention_library import LibraryAttention, RunAttention
from ..models.flux import Flux
from .integer_products import products_of
from .settings import SAGE

if TYPE_CHECKING:
    from .flux_handle import FluxModel

log = logging.getLogger(__name__)

NAME = "sageattention"


def run_attention(model: FluxModel) -> RunAttention | None:
    """What computes the attention of one run of this model; None: PyTorch, as nothing else was chosen."""
    if model.attention != SAGE:
        return None
    runtime = model.runtime
    if runtime.library_attention is None:
        runtime.library_attention = LibraryAttention.installed()
    if runtime.team is not None or runtime.share is not None:
        refused = "several devices compute this image"
    else:
        refused = runtime.library_attention.refused(model.device, model.dtype, model.weights.config.head_dim)
    if refused:
        log.warning("%s is not used for attention: %s. PyTorch's attention is used.", NAME, refused)
    return RunAttention(runtime.library_attention, NAME, refused)


def note_of(module: nn.Module) -> str:
    """What multiplied the matrices and computed the attention of a model, where it is not what is usual."""
    attend = module.attend if isinstance(module, Flux) else None
    notes = products_of(module), attend.note if isinstance(attend, RunAttention) else ""
    return " · ".join(note for note in notes if note)
