"""Sluice: FLUX.1 image generation in the memory you have.

This one tree is imported under three names: its folder's path (ComfyUI's loader), ``sluice`` (the installed
package) and whatever pytest makes of the folder. So imports inside it are relative, and importing it costs
nothing: the node tables and the Python API (``sluice.load``, ``sluice.workflow``) come on first use.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .flux_core.api.files import save
    from .flux_core.api.pipeline import Pipeline, load
    from .flux_core.api.program import Step
    from .flux_core.api.workflow import Workflow, workflow

__version__ = "0.1.0"
_API = {
    "Pipeline": "pipeline",
    "Step": "program",
    "Workflow": "workflow",
    "load": "pipeline",
    "save": "files",
    "workflow": "workflow",
}
__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "WEB_DIRECTORY",
    "Pipeline",
    "Step",
    "Workflow",
    "load",
    "save",
    "workflow",
]

# ComfyUI loads every .js below this folder as an extension.
WEB_DIRECTORY = "./web/comfyui"

# `python -m sluice` looks for `sluice.__main__` along this path.
__path__ = [os.path.dirname(__file__), os.path.join(os.path.dirname(__file__), "flux_core", "entry")]


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(import_module(f".flux_core.api.{_API[name]}", __name__), name)
    if name not in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .flux_core.worker.registry import comfyui_tables
    from .nodes.host import pack_host

    classes, titles = comfyui_tables(pack_host())
    globals().update(NODE_CLASS_MAPPINGS=classes, NODE_DISPLAY_NAME_MAPPINGS=titles)
    return globals()[name]
