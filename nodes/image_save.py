"""Save images in other formats and as animations, and compare two images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .binding import HostedNode
from .image_files import HIDDEN, prefix_problem, save_pngs
from .sockets import IMAGE, STRING, Declared, Inputs, choice, integer, number, socket, switch

if TYPE_CHECKING:
    from .host import Host

PREFIX_TIP = "Beginning of the file names. Slashes create folders; %width% %height% %year% %month% %day% are replaced."


def prefix() -> Declared:
    return STRING, {"default": "ComfyUI", "tooltip": PREFIX_TIP}


def fps() -> Declared:
    return number(6.0, 0.01, 1000.0, 0.01, "Images per second.")


class SaveImageAdvanced(HostedNode):
    """Images as files of a chosen format."""

    TITLE = "Save Image (Advanced)"
    DESCRIPTION = "Saves images as PNG with 8 or 16 bits, as EXR with linear light, or as AVIF, with their workflow."
    CATEGORY = "image"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = (IMAGE,)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The same images.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        options = [{"key": key, "inputs": {"required": inputs}} for key, inputs in _formats().items()]
        return {
            "required": {
                "images": socket(IMAGE, "The images to save."),
                "filename_prefix": prefix(),
                "format": ("COMFY_DYNAMICCOMBO_V3", {"options": options, "tooltip": "The kind of file."}),
            },
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        return prefix_problem(cls.host, filename_prefix)

    def save(
        self,
        images: Any,
        filename_prefix: str,
        format: dict[str, Any],
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        from ..flux_core.io.saving import place

        target = place(filename_prefix, self.host.output, width=images.shape[2], height=images.shape[1])
        moving = format.get("save_mode", {}).get("save_mode") == "animated"
        shown = []
        for at, batch in enumerate([images] if moving else images.split(1)):
            data = _encoded(batch, format, prompt, extra_pnginfo)
            name = target.save(data, at, suffix=f".{format['format']}")
            shown.append({"filename": name, "subfolder": target.subfolder, "type": "output"})
        told = {"images": shown, "animated": (True,)} if moving and len(images) > 1 else {"images": shown}
        return {"ui": told, "result": (images,)}


def _formats() -> dict[str, dict[str, Declared]]:
    """File format -> the inputs that it needs."""

    def space(options: list[str], tip: str) -> Declared:
        return choice(options, tip, default="sRGB", advanced=True)

    looping = integer(0, 0, 1000, "Number of repetitions; 0 means endless.", advanced=True)
    modes = [
        {"key": "still images", "inputs": {"required": {}}},
        {"key": "animated", "inputs": {"required": {"fps": fps(), "loop_count": looping}}},
    ]
    return {
        "png": {
            "bit_depth": choice(["8-bit", "16-bit"], "Bits per channel.", default="8-bit", advanced=True),
            "input_color_space": space(["sRGB"], "The colour space of the images."),
        },
        "exr": {
            "bit_depth": choice(["32-bit float"], "Numbers per channel.", default="32-bit float", advanced=True),
            "input_color_space": space(["sRGB", "HDR", "linear"], "The images' colour space; HDR is BT.2100 HLG."),
        },
        "avif": {
            "bit_depth": choice(
                ["auto", "8-bit YUV420", "10-bit YUV420"], "Bits per channel; 8 here.", default="auto", advanced=True
            ),
            "input_color_space": space(["sRGB", "HDR", "HDR PQ"], "The colour space of the images; sRGB here."),
            "crf": integer(18, 1, 63, "A lower value gives a better and larger file.", advanced=True),
            "save_mode": ("COMFY_DYNAMICCOMBO_V3", {"options": modes, "tooltip": "A file per image, or an animation."}),
        },
    }


def _encoded(batch: Any, format: dict[str, Any], prompt: Any, extra: Any) -> bytes:
    from ..flux_core.images import encode

    depth, space = format["bit_depth"], format.get("input_color_space", "sRGB")
    if format["format"] == "png":
        return encode.png(batch[0], int(depth.partition("-")[0]), prompt, extra)
    if format["format"] == "exr":
        return encode.exr(batch[0], space, prompt, extra)
    return encode.avif(batch, depth, space, format["crf"], format["save_mode"].get("fps"), prompt, extra)


class SaveAnimatedWEBP(HostedNode):
    """Save an animated WebP."""

    TITLE = "SaveAnimatedWEBP"
    DESCRIPTION = "Saves a batch of images as one animated WebP with the workflow inside."
    CATEGORY = "image/animation"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "images": socket(IMAGE, "The images, one after the other."),
                "filename_prefix": prefix(),
                "fps": fps(),
                "lossless": switch(True, "Keep each pixel exactly; quality then only sets the effort."),
                "quality": integer(80, 0, 100, "A higher value gives a larger and better file."),
                "method": choice(["default", "fastest", "slowest"], "Slower methods give smaller files."),
            },
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        return prefix_problem(cls.host, filename_prefix)

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
        return _saved(self.host, data, ".webp", filename_prefix, images)


class SaveAnimatedPNG(HostedNode):
    """Save an animated PNG."""

    TITLE = "SaveAnimatedPNG"
    DESCRIPTION = "Saves a batch of images as one animated PNG with the workflow inside."
    CATEGORY = "image/animation"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "images": socket(IMAGE, "The images, one after the other."),
                "filename_prefix": prefix(),
                "fps": fps(),
                "compress_level": integer(4, 0, 9, "Higher values give smaller files and take longer."),
            },
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        return prefix_problem(cls.host, filename_prefix)

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

        data = apng(images, fps, compress_level, prompt, extra_pnginfo)
        return _saved(self.host, data, ".png", filename_prefix, images)


class ImageCompare(HostedNode):
    """Compare two images with a slider."""

    TITLE = "Image Compare"
    DESCRIPTION = "Shows two images on top of each other, with a slider between them."
    CATEGORY = "image"
    EXPERIMENTAL = True
    FUNCTION = "show"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"compare_view": ("IMAGECOMPARE", {"socketless": True, "tooltip": "The two images."})},
            "optional": {
                "image_a": socket(IMAGE, "The image on the left."),
                "image_b": socket(IMAGE, "The image on the right."),
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
        shown = {}
        for side, images in (("a", image_a), ("b", image_b)):
            name = f"comfy.compare.{side}_temp_{self.mark}"
            shown[f"{side}_images"] = (
                [] if images is None else save_pngs(images, name, self.host.temp, "temp", 1, prompt, extra_pnginfo)
            )
        return {"ui": shown}


def _saved(host: Host, data: bytes, suffix: str, prefix: str, images: Any) -> dict[str, Any]:
    """Save a new file in the output folder. Returns it in the form sent to the editor."""
    from ..flux_core.io.saving import place

    target = place(prefix, host.output, width=images.shape[2], height=images.shape[1])
    name = target.save(data, suffix=f"_{suffix}")
    shown = [{"filename": name, "subfolder": target.subfolder, "type": "output"}]
    return {"ui": {"images": shown, "animated": (True,)}}
