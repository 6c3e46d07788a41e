"""The base models of weight files, in the terms of comfyui-tooling-nodes. Opens headers and reads no weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..checkpoint.detect import detect
from ..checkpoint.files import open_weights
from ..errors import SluiceError
from ..io.folders import Folders


def model_info(folders: Folders, kind: str, names: Iterable[str]) -> dict[str, Any]:
    """{file: {"base_model": "flux", "flux-schnell" or "unknown", "is_inpaint", "error"?}}."""
    return {name: _info(folders, kind, name) for name in names}


def _info(folders: Folders, kind: str, name: str) -> dict[str, Any]:
    path = folders.find(kind, name)
    try:
        found = detect(open_weights(path)) if path is not None else None
    except (SluiceError, OSError) as error:
        return {"base_model": "unknown", "error": str(error)}
    if found is None or "flux" not in found.parts:
        return {"base_model": "unknown"}
    variant = found.facts.get("variant")
    return {"base_model": "flux-schnell" if variant == "schnell" else "flux", "is_inpaint": variant == "fill"}
