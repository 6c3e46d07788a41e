"""comfy_api.latest and its numbered versions: the base of a pack with a schema, and progress."""

from __future__ import annotations

from typing import Any

from ...engine import current
from .input import AudioInput, ImageInput, LatentInput, MaskInput

__all__ = ["ComfyAPI", "ComfyAPISync", "ComfyExtension", "Input"]


class ComfyExtension:
    """The result of a pack's `comfy_entrypoint`: `get_node_list` returns its node classes."""

    async def on_load(self) -> None:
        """Called once, before the list of nodes is requested."""

    async def get_node_list(self) -> list[Any]:
        raise NotImplementedError


class Input:
    """Names of value types."""

    Image, Mask, Latent, Audio = ImageInput, MaskInput, LatentInput, AudioInput


def _progress(value: float, max_value: float, preview_image: Any = None, **more: Any) -> None:
    current().progress(value, max_value, None if preview_image is None else lambda: preview_image)


class _Execution:
    async def set_progress(self, value: float, max_value: float, **more: Any) -> None:
        """Report the progress of the running node. Raises Interrupted if the run must stop."""
        _progress(value, max_value, **more)


class _ExecutionSync:
    def set_progress(self, value: float, max_value: float, **more: Any) -> None:
        """Report the progress of the running node. Raises Interrupted if the run must stop."""
        _progress(value, max_value, **more)


class ComfyAPI:
    VERSION = "latest"
    STABLE = False

    def __init__(self) -> None:
        self.execution = _Execution()


class ComfyAPISync:
    VERSION = "latest"
    STABLE = False

    def __init__(self) -> None:
        self.execution = _ExecutionSync()
