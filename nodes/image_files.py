"""Images from files and into files."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from .binding import HostedNode
from .sockets import IMAGE, MASK, STRING, Inputs, choice, socket

if TYPE_CHECKING:
    from .host import Host

HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


class LoadImage(HostedNode):
    """Load an image from the input folder."""

    MODELS = False  # none on its links; declared here, because listing its inputs lists a folder
    TITLE = "Load Image"
    DESCRIPTION = "Loads an image, and its transparency as a mask. Several frames become a batch."
    CATEGORY = "image"
    FUNCTION = "load"
    RETURN_TYPES = (IMAGE, MASK)
    OUTPUT_TOOLTIPS = ("The image.", "1 where the image is transparent.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": _input_images(cls.host)}}

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        return fingerprint_of(cls.host, image)

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        return missing_problem(cls.host, image)

    def load(self, image: str) -> tuple[Any, Any]:
        from ..flux_core.images.files import load

        return load(self.host.file(image))


class LoadImageMask(HostedNode):
    """Load one channel of an image from the input folder."""

    MODELS = False  # none on its links; declared here, because listing its inputs lists a folder
    TITLE = "Load Image (as Mask)"
    DESCRIPTION = "Loads one channel of an image as a mask."
    CATEGORY = "mask"
    FUNCTION = "load"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The channel. Alpha is inverted: 1 is transparent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        channel = choice(["alpha", "red", "green", "blue"], "The channel that becomes the mask.")
        return {"required": {"image": _input_images(cls.host), "channel": channel}}

    @classmethod
    def IS_CHANGED(cls, image: str, channel: str) -> str:
        return fingerprint_of(cls.host, image)

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        return missing_problem(cls.host, image)

    def load(self, image: str, channel: str) -> tuple[Any]:
        from ..flux_core.images.files import load_channel

        return (load_channel(self.host.file(image), channel),)


class LoadImageOutput(HostedNode):
    """Load an image from the output folder."""

    MODELS = False
    TITLE = "Load Image (from Outputs)"
    DESCRIPTION = "Loads an image from the output folder. The button beside its name chooses the newest one."
    CATEGORY = "image"
    EXPERIMENTAL = True
    FUNCTION = "load"
    RETURN_TYPES = (IMAGE, MASK)
    OUTPUT_TOOLTIPS = ("The image.", "1 where the image is transparent.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        newest = {"route": "/internal/files/output", "refresh_button": True, "control_after_refresh": "first"}
        options = {"image_upload": True, "image_folder": "output", "remote": newest}
        return {"required": {"image": ("COMBO", {**options, "tooltip": "An image of the output folder."})}}

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        return fingerprint_of(cls.host, image)

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        return missing_problem(cls.host, image)

    def load(self, image: str) -> tuple[Any, Any]:
        from ..flux_core.images.files import load

        return load(self.host.file(image))


class SaveImage(HostedNode):
    """Save images in the output folder, with their workflow inside."""

    TITLE = "Save Image"
    DESCRIPTION = "Saves images as PNG files with the workflow inside: drop one on the editor to open it again."
    CATEGORY = "image"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = (IMAGE,)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The same images.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "Beginning of the file names. Slashes create folders; %width% %height% %year% %month% %day% are replaced."
        return {
            "required": {
                "images": socket(IMAGE, "The images to save."),
                "filename_prefix": (STRING, {"default": "ComfyUI", "tooltip": tip}),
            },
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        return prefix_problem(cls.host, filename_prefix)

    def save(
        self, images: Any, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        saved = save_pngs(images, filename_prefix, self.host.output, "output", 4, prompt, extra_pnginfo)
        return {"ui": {"images": saved}, "result": (images,)}


class PreviewImage(HostedNode):
    """Images to look at, not to keep."""

    TITLE = "Preview Image"
    DESCRIPTION = "Shows images without keeping them: they are saved in the folder for temporary files."
    CATEGORY = "image"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = (IMAGE,)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The same images.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": socket(IMAGE, "The images to show.")}, "hidden": HIDDEN}

    def __init__(self) -> None:
        self.mark = os.urandom(3).hex()  # two previews never share names

    def save(self, images: Any, prompt: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:
        saved = save_pngs(images, f"ComfyUI_temp_{self.mark}", self.host.temp, "temp", 1, prompt, extra_pnginfo)
        return {"ui": {"images": saved}, "result": (images,)}


class SaveImageWebsocket(HostedNode):
    """Send images to the client that queued the job, without a file."""

    TITLE = "SaveImageWebsocket"
    DESCRIPTION = "Sends images over the websocket to the program that queued the job. Nothing is saved."
    CATEGORY = "api/image"
    FUNCTION = "send"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": socket(IMAGE, "The images to send.")}}

    @classmethod
    def IS_CHANGED(cls, images: Any) -> float:
        return time.time()  # a cached result would not be sent

    def send(self, images: Any) -> dict[str, Any]:
        from ..flux_core.images.files import to_pil

        for number, image in enumerate(images):
            self.host.send(to_pil(image), number, len(images))
        return {}


def save_pngs(
    images: Any, prefix: str, folder: os.PathLike[str], kind: str, compress_level: int, prompt: Any, extra: Any
) -> list[dict[str, str]]:
    """Save each image of a batch as a PNG with its workflow. Returns the files in the form sent to clients."""
    from ..flux_core.images.files import to_pil
    from ..flux_core.io.png import encode
    from ..flux_core.io.saving import place

    target = place(prefix, folder, width=images.shape[2], height=images.shape[1])
    saved = []
    for number, image in enumerate(images):
        name = target.save(encode(to_pil(image), prompt, extra, compress_level), number)
        saved.append({"filename": name, "subfolder": target.subfolder, "type": kind})
    return saved


def prefix_problem(host: Host, filename_prefix: str | None) -> bool | str:
    """What is wrong with a file name prefix, for VALIDATE_INPUTS; True if nothing. None: a link provides it."""
    from ..flux_core.errors import SluiceError
    from ..flux_core.io.saving import check_prefix

    try:
        check_prefix(filename_prefix or "", host.output)
    except SluiceError as error:
        return str(error)
    return True


def _input_images(host: Host) -> tuple[list[str], dict[str, Any]]:
    return host.images(), {"image_upload": True, "tooltip": "An image of the input folder."}


def missing_problem(host: Host, image: str) -> bool | str:
    """What is wrong with the name of an input file; True if nothing."""
    from ..flux_core.errors import SluiceError

    if not isinstance(image, str):
        return f"{image!r} is not the name of a file"
    try:
        host.file(image)
    except SluiceError as error:
        return str(error)
    return True


def fingerprint_of(host: Host, image: str) -> str:
    """A text that changes when the content of an input file changes."""
    from ..flux_core.images.files import fingerprint

    return fingerprint(host.file(image))
