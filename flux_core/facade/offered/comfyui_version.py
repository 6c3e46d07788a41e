"""comfyui_version: the version of ComfyUI whose modules packs find here."""

from __future__ import annotations

from ..module_names import VERSION

__all__ = ["__version__"]

__version__ = VERSION
