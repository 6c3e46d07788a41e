"""Pictures saved in other ways than SaveImage's: moving, or two side by side to compare."""

from __future__ import annotations

import os
from typing import Any

from .image_files import HIDDEN, prefix_problem, save_pictures
from .sockets import IMAGE, STRING, Declared, Inputs, choice, integer, number, switch, wire

PREFIX_TIP = "Beginning of the file names. Slashes make folders; %width% %height% %year% %month% %day% are filled in."


def prefix() -> Declared:
    return STRING, {"default": "ComfyUI", "tooltip": PREFIX_TIP}


def fps() -> Declared:
    return number(6.0, 0.01, 1000.0, 0.01, "Pictures a second.")


class SaveAnimatedWEBP:
    """A moving WebP."""

    TITLE = "SaveAnimatedWEBP"
    DESCRIPTION = "Saves a batch of pictures as one moving WebP that carries the workflow."
    CATEGORY = "image/animation"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "images": wire(IMAGE, "The pictures, one after the other."),
                "filename_prefix": prefix(),
                "fps": fps(),
                "lossless": switch(True, "Keep every pixel as it is; quality then only sets the effort."),
                "quality": integer(80, 0, 100, "More is larger and better."),
                "method": choice(["default", "fastest", "slowest"], "Slower makes smaller files."),
            },
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        return prefix_problem(filename_prefix)

    def save(
        self,
        images: Any,
        filename_prefix: str,
        fps: float,
        lossless: bool,
        quality: int,
        method: str,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        from ..flux_core.images.animations import webp

        data = webp(images, fps, lossless, quality, method, prompt, extra_pnginfo)
        return _saved(data, ".webp", filename_prefix, images)


class SaveAnimatedPNG:
    """A moving PNG."""

    TITLE = "SaveAnimatedPNG"
    DESCRIPTION = "Saves a batch of pictures as one moving PNG that carries the workflow."
    CATEGORY = "image/animation"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "images": wire(IMAGE, "The pictures, one after the other."),
                "filename_prefix": prefix(),
                "fps": fps(),
                "compress_level": integer(4, 0, 9, "More is smaller and slower; the pixels are the same."),
            },
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        return prefix_problem(filename_prefix)

    def save(
        self,
        images: Any,
        fps: float,
        compress_level: int,
        filename_prefix: str = "ComfyUI",
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        from ..flux_core.images.animations import apng

        return _saved(apng(images, fps, compress_level, prompt, extra_pnginfo), ".png", filename_prefix, images)


class ImageCompare:
    """Two pictures under a slider."""

    TITLE = "Image Compare"
    DESCRIPTION = "Shows two pictures one over the other, with a slider between them."
    CATEGORY = "image"
    EXPERIMENTAL = True
    FUNCTION = "show"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"compare_view": ("IMAGECOMPARE", {"socketless": True, "tooltip": "The two pictures."})},
            "optional": {
                "image_a": wire(IMAGE, "The picture on the left."),
                "image_b": wire(IMAGE, "The picture on the right."),
            },
            "hidden": HIDDEN,
        }

    def __init__(self) -> None:
        self.mark = os.urandom(3).hex()  # two of these never share names

    def show(
        self,
        compare_view: Any,
        image_a: Any = None,
        image_b: Any = None,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        from .host import host

        shown = {}
        for side, images in (("a", image_a), ("b", image_b)):
            name = f"comfy.compare.{side}_temp_{self.mark}"
            saved = [] if images is None else save_pictures(images, name, host().temp, "temp", 1, prompt, extra_pnginfo)
            shown[f"{side}_images"] = saved
        return {"ui": shown}


def _saved(data: bytes, suffix: str, prefix: str, images: Any) -> dict[str, Any]:
    """One file in the output folder, and what the editor is told of it."""
    from ..flux_core.io.saving import place
    from .host import host

    target = place(prefix, host().output, width=images.shape[2], height=images.shape[1])
    name = target.save(data, suffix=suffix)
    shown = [{"filename": name, "subfolder": target.subfolder, "type": "output"}]
    return {"ui": {"images": shown, "animated": (True,)}}
