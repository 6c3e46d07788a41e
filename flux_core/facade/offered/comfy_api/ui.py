"""comfy_api.latest.ui: data that a node shows, and saving images for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import nodes

__all__ = [
    "ImageSaveHelper",
    "PreviewImage",
    "PreviewMask",
    "PreviewText",
    "PreviewVideo",
    "SavedImages",
    "SavedResult",
]


class SavedResult(dict[str, Any]):
    """The place of a file: {"filename", "subfolder", "type"}."""

    def __init__(self, filename: str, subfolder: str, type: Any) -> None:
        super().__init__(filename=filename, subfolder=subfolder, type=getattr(type, "value", type))

    @property
    def filename(self) -> str:
        return str(self["filename"])

    @property
    def subfolder(self) -> str:
        return str(self["subfolder"])

    @property
    def type(self) -> str:
        return str(self["type"])


class SavedImages:
    def __init__(self, results: Sequence[Mapping[str, Any]], is_animated: bool = False) -> None:
        self.results, self.is_animated = list(results), is_animated

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.results, **({"animated": (True,)} if self.is_animated else {})}


class ImageSaveHelper:
    """Saves images like SaveImage; `cls` is the node, whose prompt and canvas are added to the file."""

    @staticmethod
    def save_images(
        images: Any, filename_prefix: str, folder_type: Any, cls: Any, compress_level: int = 4
    ) -> list[SavedResult]:
        kind = getattr(folder_type, "value", folder_type)
        saver: Any = nodes.Previewer() if kind == "temp" else nodes.Saver()
        hidden = getattr(cls, "hidden", None)
        texts = (getattr(hidden, "prompt", None), getattr(hidden, "extra_pnginfo", None))
        return [SavedResult(**one) for one in saver.save_images(images, filename_prefix, *texts)["ui"]["images"]]

    @staticmethod
    def get_save_images_ui(images: Any, filename_prefix: str, cls: Any, compress_level: int = 4) -> SavedImages:
        return SavedImages(ImageSaveHelper.save_images(images, filename_prefix, "output", cls, compress_level))


class PreviewImage:
    """Images shown under the node."""

    def __init__(self, image: Any, animated: bool = False, cls: Any = None, **kwargs: Any) -> None:
        self.values = ImageSaveHelper.save_images(image, "ComfyUI", "temp", cls)
        self.animated = animated

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.values, "animated": (self.animated,)}


class PreviewMask(PreviewImage):
    def __init__(self, mask: Any, animated: bool = False, cls: Any = None, **kwargs: Any) -> None:
        image = mask.reshape(-1, 1, *mask.shape[-2:]).movedim(1, -1).expand(-1, -1, -1, 3)
        super().__init__(image, animated, cls)


class PreviewText:
    def __init__(self, value: str, **kwargs: Any) -> None:
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        return {"text": (self.value,)}


class PreviewVideo:
    def __init__(self, values: Sequence[Mapping[str, Any]], **kwargs: Any) -> None:
        self.values = list(values)

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.values, "animated": (True,)}
