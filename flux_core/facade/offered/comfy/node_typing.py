"""comfy.comfy_types: names of link types, and a base for plain node classes. Types only."""

from __future__ import annotations

from abc import ABC
from enum import Enum
from typing import Any, TypedDict

__all__ = [
    "IO",
    "CheckLazyMixin",
    "ComfyNodeABC",
    "FileLocator",
    "HiddenInputTypeDict",
    "InputTypeDict",
    "InputTypeOptions",
    "StrEnum",
    "UnetApplyConds",
    "UnetApplyFunction",
    "UnetParams",
    "UnetWrapperFunction",
]


class StrEnum(str, Enum):
    def __str__(self) -> str:
        return str(self.value)


class IO(StrEnum):
    """Link types by their names."""

    STRING = "STRING"
    IMAGE = "IMAGE"
    MASK = "MASK"
    LATENT = "LATENT"
    BOOLEAN = "BOOLEAN"
    INT = "INT"
    FLOAT = "FLOAT"
    COMBO = "COMBO"
    CONDITIONING = "CONDITIONING"
    SAMPLER = "SAMPLER"
    SIGMAS = "SIGMAS"
    GUIDER = "GUIDER"
    NOISE = "NOISE"
    CLIP = "CLIP"
    CONTROL_NET = "CONTROL_NET"
    VAE = "VAE"
    MODEL = "MODEL"
    LORA_MODEL = "LORA_MODEL"
    LOSS_MAP = "LOSS_MAP"
    CLIP_VISION = "CLIP_VISION"
    CLIP_VISION_OUTPUT = "CLIP_VISION_OUTPUT"
    STYLE_MODEL = "STYLE_MODEL"
    GLIGEN = "GLIGEN"
    UPSCALE_MODEL = "UPSCALE_MODEL"
    AUDIO = "AUDIO"
    WEBCAM = "WEBCAM"
    POINT = "POINT"
    FACE_ANALYSIS = "FACE_ANALYSIS"
    BBOX = "BBOX"
    SEGS = "SEGS"
    VIDEO = "VIDEO"
    ANY = "*"
    NUMBER = "FLOAT,INT"
    PRIMITIVE = "STRING,FLOAT,INT,BOOLEAN"

    def __ne__(self, value: object) -> bool:
        """ "*" fits every type: packs compare types with !=."""
        if self == "*" or value == "*":
            return False
        if not isinstance(value, str):
            return True
        return not set(value.split(",")) <= set(str(self.value).split(","))

    __hash__ = str.__hash__


InputTypeOptions = dict[str, Any]
InputTypeDict = dict[str, Any]
HiddenInputTypeDict = dict[str, Any]
UnetApplyFunction = UnetApplyConds = UnetParams = UnetWrapperFunction = Any


class FileLocator(TypedDict):
    filename: str
    subfolder: str
    type: str


class ComfyNodeABC(ABC):  # noqa: B024
    """A base without behaviour, with the attributes of ComfyUI's plain node classes."""

    DESCRIPTION: str
    CATEGORY: str
    FUNCTION: str

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}


class CheckLazyMixin:
    """Requests every linked input that has no value yet."""

    def check_lazy_status(self, **kwargs: Any) -> list[str]:
        return [name for name, value in kwargs.items() if value is None]
