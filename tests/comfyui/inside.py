"""A real ComfyUI in this process, on the CPU, with this checkout loaded as a node pack by ComfyUI's own loader.

Run by hand: the scripts beside this file take the path of a ComfyUI checkout and need its requirements installed.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_kept: list[Any] = []


def enter(comfyui: str, *flags: str) -> None:
    """Make ComfyUI importable, as its own main.py does."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root = str(Path(comfyui).resolve())
    sys.path.insert(0, root)
    sys.argv = ["main.py", "--cpu", *flags]
    declare_vision_operators()
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management  # noqa: F401
    import utils.extra_config  # before a module of comfy's takes the name  # noqa: F401


def declare_vision_operators() -> None:
    """Substitutes with which a torchvision built for another PyTorch can be imported; they are not called."""
    import torch

    _kept.append(library := torch.library.Library("torchvision", "DEF"))  # its end would undeclare them
    boxes = "Tensor dets, Tensor scores, float iou_threshold"
    library.define(f"nms({boxes}) -> Tensor")
    library.define(f"qnms({boxes}) -> Tensor")
    size = "float spatial_scale, int pooled_height, int pooled_width, int sampling_ratio, bool aligned"
    library.define(f"roi_align(Tensor input, Tensor rois, {size}) -> Tensor")


def load_pack(folder: Path) -> dict[str, type[Any]]:
    """The nodes of a pack by ComfyUI's loader, which must not fail, and the seconds it took."""
    import comfy_config.config_parser  # noqa: F401  # which ComfyUI imports with the first pack

    import nodes

    began = time.perf_counter()
    assert asyncio.run(nodes.load_custom_node(str(folder))), f"{folder} was not loaded"
    print(f"loaded {folder.name!r} in {1000 * (time.perf_counter() - began):.1f} ms")
    return {name: found for name, found in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("Sluice")}


def serve(comfyui: str, *flags: str) -> None:
    """ComfyUI itself, until it is ended."""
    enter(comfyui, *flags)
    os.chdir(comfyui)
    runpy.run_path(str(Path(comfyui) / "main.py"), run_name="__main__")


def module_of(pack: Path, name: str) -> Any:
    """A module of the pack by its name below the root."""
    import importlib

    return importlib.import_module(f"{str(pack).replace('.', '_x_')}.{name}")


if __name__ == "__main__":
    serve(*sys.argv[1:])
