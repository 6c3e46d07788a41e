"""Images sent to and from the Krita plugin: nodes of comfyui-tooling-nodes that use ids, base64 or the websocket.

Images with an id are files that server and worker share (server/exchange.py).
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from ..binding import HostedNode
from ..sockets import IMAGE, MASK, STRING, Inputs
from .declared import COVER, PICTURE, OfAnotherPack, line, lines, one_of

TOOLING = "comfyui-tooling-nodes"
FOLDER = "exchange"
FORMATS = ("PNG", "JPEG")


class LoadImageCache(OfAnotherPack, HostedNode):
    """An image by its id."""

    PACK = TOOLING
    TITLE = "Load Image from Cache"
    DESCRIPTION = "Loads an image that a program has sent under an id, and its transparency as a mask."
    FUNCTION = "load"
    RETURN_TYPES = (IMAGE, MASK)
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The image.", "Its transparency; for an image without transparency, its red channel.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"id": line("The id.")}}

    def load(self, id: str) -> tuple[Any, Any]:
        from ...flux_core.images.files import from_bytes

        path = self.host.temp / FOLDER / id
        if "/" in id or "\\" in id or id.startswith(".") or not path.is_file():
            from ...flux_core.errors import MissingFileError

            raise MissingFileError(f"There is no image with the id {id!r}; images are kept for an hour.")
        planes = from_bytes(path.read_bytes())
        image = planes[..., :3] if planes.shape[-1] > 1 else planes.expand(-1, -1, -1, 3)
        return image, planes[..., 3] if planes.shape[-1] == 4 else planes[..., 0]


class SaveImageCache(OfAnotherPack, HostedNode):
    """Images under new ids."""

    PACK = TOOLING
    TITLE = "Save Image to Cache"
    DESCRIPTION = "Keeps images for the program that queued the job, which gets their ids. Nothing is saved."
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": PICTURE, "format": one_of(FORMATS, "The format in which they are kept.", "PNG")}}

    def save(self, images: Any, format: str = "PNG") -> dict[str, Any]:
        from ...flux_core.images.encode import as_file
        from ...flux_core.io.saving import write_whole

        folder = self.host.temp / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        told = []
        for image in images:
            name = uuid4().hex
            write_whole(folder / name, as_file(image, format.lower(), 95, False))
            told.append({"source": "http", "id": name, "content-type": f"image/{format.lower()}", "type": "output"})
        return {"ui": {"images": told}}


class _Base64(OfAnotherPack):
    """An image as text in the workflow."""

    PACK = TOOLING
    FUNCTION = "load"

    @staticmethod
    def decoded(text: str) -> Any:
        """[1, H, W, C]. Raises InputError."""
        import base64
        import binascii

        from ...flux_core.errors import InputError
        from ...flux_core.images.files import from_bytes

        try:
            return from_bytes(base64.b64decode(text.rpartition("base64,")[2], validate=True))
        except binascii.Error as error:
            raise InputError(f"This is not an image in base64: {error}.") from error


class LoadImageBase64(_Base64):
    """An image as text in the workflow."""

    TITLE = "Load Image (Base64)"
    DESCRIPTION = "Loads an image that the workflow contains as text, and its transparency as a mask."
    RETURN_TYPES = (IMAGE, MASK)
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The image.", "Its transparency; 1 everywhere without transparency.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": line("The file in base64.")}}

    def load(self, image: str) -> tuple[Any, Any]:
        planes = self.decoded(image)
        shown = planes[..., :3] if planes.shape[-1] > 1 else planes.expand(-1, -1, -1, 3)
        return shown, planes[..., 3] if planes.shape[-1] == 4 else planes.new_ones(planes.shape[:3])


class LoadMaskBase64(_Base64):
    """A mask as text in the workflow."""

    TITLE = "Load Mask (Base64)"
    DESCRIPTION = "Loads a mask that the workflow contains as an image in text: its red channel."
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"mask": line("The file in base64.")}}

    def load(self, mask: str) -> tuple[Any]:
        return (self.decoded(mask)[..., 0],)


class SendImageWebSocket(OfAnotherPack, HostedNode):
    """Images over the websocket."""

    PACK = TOOLING
    TITLE = "Send Image (WebSocket)"
    DESCRIPTION = "Sends images over the websocket to the program that queued the job. Nothing is saved."
    FUNCTION = "send"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": PICTURE, "format": one_of(FORMATS, "They are sent as PNG.", "PNG")}}

    @classmethod
    def IS_CHANGED(cls, images: Any, format: str = "PNG") -> float:
        import time

        return time.time()  # a cached image would not be sent

    def send(self, images: Any, format: str = "PNG") -> dict[str, Any]:
        from ...flux_core.images.files import to_pil

        for n, image in enumerate(images):
            self.host.send(to_pil(image), n, len(images))
        told = [{"source": "websocket", "content-type": "image/png", "type": "output"} for _ in images]
        return {"ui": {"images": told}}


class ApplyMaskToImage(OfAnotherPack):
    """A mask as transparency."""

    PACK = TOOLING
    TITLE = "Apply Mask to Image"
    DESCRIPTION = "Uses a mask as the transparency of an image: 1 is opaque."
    FUNCTION = "apply"
    RETURN_TYPES = (IMAGE,)
    RETURN_NAMES = ("masked",)
    OUTPUT_TOOLTIPS = ("The image with four channels.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": PICTURE, "mask": COVER}}

    def apply(self, image: Any, mask: Any) -> tuple[Any]:
        import torch

        from ...flux_core.errors import InputError

        layers = mask.reshape(-1, *mask.shape[-2:])
        if layers.shape[-2:] != image.shape[1:3]:
            raise InputError(f"The mask is {tuple(layers.shape[-2:])} and the image {tuple(image.shape[1:3])} pixels.")
        layers = layers if len(layers) == len(image) else layers[:1].expand(len(image), -1, -1)
        return (torch.cat((image[..., :3], layers[..., None].to(image)), dim=-1),)


class Translate(OfAnotherPack):
    """A text, not translated."""

    PACK = TOOLING
    TITLE = "Translate Text"
    DESCRIPTION = "Passes a text on without translating it. Write prompts in English."
    FUNCTION = "pass_on"
    RETURN_TYPES = (STRING,)
    RETURN_NAMES = ("translation",)
    OUTPUT_TOOLTIPS = ("The same text without language marks (lang:xx).",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"text": lines("The text.")}}

    def pass_on(self, text: str) -> tuple[str]:
        import re

        return (re.sub(r"lang:\w\w\s*", "", text),)
