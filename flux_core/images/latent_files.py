"""Latents as files, in ComfyUI's form: a safetensors file of `latent_tensor`, with the workflow in its metadata.

Files without `latent_format_version_0` are older: they hold scaled latents of Stable Diffusion 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.whole_files import read_tensors, safetensors
from ..errors import FileFormatError
from ..io import strict_json
from .latents import Latent

OLD_SCALE = 0.18215


def encode(latent: Latent, prompt: Mapping[str, Any] | None, extra: Mapping[str, Any] | None) -> bytes:
    """A latent as the bytes of a file. `prompt` and each entry of `extra` (usually `workflow`) become metadata."""
    metadata = {"prompt": "" if prompt is None else strict_json.dumps(prompt)}
    metadata |= {key: strict_json.dumps(value) for key, value in (extra or {}).items()}
    tensors = {"latent_tensor": latent["samples"], "latent_format_version_0": torch.tensor([])}
    return safetensors(tensors, metadata)


def decode(path: Path) -> Latent:
    """The latent in a file: {"samples": fp32 tensor}. Raises MissingFileError, FileFormatError."""
    tensors = read_tensors(path)
    if "latent_tensor" not in tensors:
        raise FileFormatError(f"{path.name} holds no latent_tensor; save a latent with SaveLatent.")
    scale = 1.0 if "latent_format_version_0" in tensors else 1 / OLD_SCALE
    return {"samples": tensors["latent_tensor"].float() * scale}
