"""Sluice: FLUX.1 image generation in the memory you have.

This one tree is imported under three names: its folder's path (ComfyUI's loader), ``sluice`` (the installed
package) and whatever pytest makes of the folder. So imports inside it are relative, and importing it costs
nothing: the node tables come on first use.
"""

import os
from typing import Any

__version__ = "0.1.0"
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

# ComfyUI loads every .js below this folder as an extension.
WEB_DIRECTORY = "./web/comfyui"

# `python -m sluice` looks for `sluice.__main__` along this path.
__path__ = [os.path.dirname(__file__), os.path.join(os.path.dirname(__file__), "flux_core", "entry")]


def __getattr__(name: str) -> Any:
    if name not in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .flux_core.worker.registry import comfyui_tables
    from .nodes.host import pack_host

    classes, titles = comfyui_tables(pack_host())
    globals().update(NODE_CLASS_MAPPINGS=classes, NODE_DISPLAY_NAME_MAPPINGS=titles)
    return globals()[name]
